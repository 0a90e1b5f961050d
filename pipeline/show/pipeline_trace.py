"""The two traces: the model's four steps, and one image's way from file to class.

Knows the figures it is given, every one of them real, and lays them out; it computes nothing of a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from pipeline.base.words import count, percent, shape, significant, visible

BAR_WIDTH = 24
_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class Layer:
    """One line of a step: ``output`` is the shape for one image; ``state`` is ``frozen``, ``trained`` or ``""``."""

    name: str
    output: tuple[int, ...] | None
    parameters: int
    state: str = ""


@dataclass(frozen=True)
class Step:
    """One step of the model's way: what is done, in a word and in a sentence, and the layers after it."""

    title: str
    detail: str
    rows: Sequence[Layer]


@dataclass(frozen=True)
class TopClass:
    """One class of a prediction; ``probability`` in [0, 1]."""

    name: str
    logit: float
    probability: float


@dataclass(frozen=True)
class PredictionTrace:
    """What happened to one image; ``top`` holds the likeliest classes, the likeliest first."""

    path: str | bytes
    width: int
    height: int
    mode: str
    input_shape: tuple[int, ...]
    input_min: float
    input_mean: float
    input_max: float
    features_shape: tuple[int, ...]
    features_first: Sequence[float]
    features_norm: float
    logits_shape: tuple[int, ...]
    top: Sequence[TopClass]
    true_class: str | None = None


def model_trace(steps: Sequence[Step]) -> ModelTrace:
    """The steps one under the other, their columns aligned with each other."""
    return ModelTrace(tuple(steps))


def prediction_trace(data: PredictionTrace) -> PredictionView:
    """The image's way from file to class, a line or a few for each station."""
    return PredictionView(data)


@dataclass(frozen=True)
class ModelTrace:
    """Renders the steps of :func:`model_trace`."""

    steps: tuple[Step, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield each step's title, its layers and their sum."""
        layers = [layer for step in self.steps for layer in step.rows]
        names = max([len("parameters in all"), *(cell_len(visible(r.name)) for r in layers)])
        outputs = max([len("output"), *(len(_output(r)) for r in layers)])
        for number, step in enumerate(self.steps, start=1):
            if number > 1:
                yield Text("")
            yield _title(number, step)
            grid = Table.grid(padding=(0, 2))
            grid.add_column(width=1)
            grid.add_column(width=names, no_wrap=True, overflow="ellipsis")
            grid.add_column(width=outputs, justify="right", no_wrap=True)
            grid.add_column(width=12, justify="right", no_wrap=True)
            grid.add_column()
            grid.add_row("", *(Text(t, "dim") for t in ("layer", "output", "parameters", "")))
            for r in step.rows:
                parameters = count(r.parameters) if r.parameters else "–"
                grid.add_row("", Text(visible(r.name)), _output(r), parameters, Text(r.state, _state_style(r.state)))
            total = sum(r.parameters for r in step.rows)
            grid.add_row("", Text("parameters in all", "dim"), "", count(total), Text(_share(step, total), "dim"))
            yield grid


def _title(number: int, step: Step) -> Text:
    return Text.assemble((f"{number}  {visible(step.title)}", "bold"), f"   {visible(step.detail)}")


def _output(layer: Layer) -> str:
    return "–" if layer.output is None else shape(layer.output)


def _state_style(state: str) -> str:
    return {"frozen": "blue", "trained": "green"}.get(state, "dim")


def _share(step: Step, total: int) -> str:
    """What of the step's parameters is trained: ``all frozen``, ``all trained`` or ``20,490 trained``."""
    trained = sum(r.parameters for r in step.rows if r.state == "trained")
    return "all frozen" if not trained else "all trained" if trained == total else f"{count(trained)} trained"


@dataclass(frozen=True)
class PredictionView:
    """Renders a :class:`PredictionTrace`."""

    data: PredictionTrace

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the stations as rows of one grid: name, shape, values."""
        d = self.data
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(no_wrap=True, justify="right")
        grid.add_column(overflow="fold")
        grid.add_row("image", f"{d.width} × {d.height}", Text.assemble(visible(d.path), (f"  {d.mode}", "dim")))
        grid.add_row("input", shape(d.input_shape), _named(min=d.input_min, mean=d.input_mean, max=d.input_max))
        first = " ".join(significant(v, 3) for v in d.features_first)
        features = Text.assemble(first, " …  ", ("norm ", "dim"), significant(d.features_norm))
        grid.add_row("features", shape(d.features_shape), features)
        grid.add_row("head", shape(d.logits_shape), Text.assemble(("logits  ", "dim"), _logits(d.top)))
        for i, c in enumerate(d.top):
            grid.add_row("softmax" if i == 0 else "", percent(c.probability), _bar(c, d.top))
        grid.add_row("class", "", _verdict(d))
        yield grid


def _named(**values: float) -> Text:
    text = Text()
    for i, (name, value) in enumerate(values.items()):
        text.append(("   " if i else "") + name + " ", "dim").append(significant(value))
    return text


def _logits(top: Sequence[TopClass]) -> str:
    return "   ".join(f"{visible(c.name)} {significant(c.logit)}" for c in top)


def _bar(c: TopClass, top: Sequence[TopClass]) -> Text:
    """The class's name and a bar as long as its probability, all bars starting in one column."""
    width = max(cell_len(visible(t.name)) for t in top)
    name = visible(c.name)
    eighths = round(8 * BAR_WIDTH * c.probability)
    bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    return Text.assemble(name, " " * (width - cell_len(name) + 2), (bar, "blue"))


def _verdict(d: PredictionTrace) -> Text:
    best = d.top[0]
    text = Text.assemble((visible(best.name), "bold"))
    if d.true_class is not None:
        right = d.true_class == best.name
        text.append("  correct" if right else f"  wrong: it is {visible(d.true_class)}", "green" if right else "red")
    return text
