"""Tables for the terminal from plain numbers.

Knows rows of figures; nothing of where they come from, and chooses nothing: the order of a ranking is its caller's.
A column appears only where some row has a figure for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.base.words import ABSENT, count, percent, seconds, setting, significant, visible

PER_CLASS_ROWS = 30
SEARCH_ROWS = 10
FILE_ROWS = 10
NAME_WIDTH = 36
WORTH_SHOWING = 0.001  # a probability below this is 0.0 % to a reader


@dataclass(frozen=True)
class Result:
    """One line of a results table; accuracies and macro-F1 as shares in [0, 1], ``seconds`` of training."""

    name: str
    val: float | None = None
    test: float | None = None
    macro_f1: float | None = None
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Trial:
    """One line of a search ranking: the settings that were varied and what they scored."""

    settings: Mapping[str, object]
    val: float | None = None
    train: float | None = None
    seconds: float | None = None
    note: str = ""


def results_table(results: Sequence[Result], title: str = "") -> RenderableType:
    """Results side by side, the best in bold: by val where there is one (test must not choose, S6), else by test."""
    figures: list[tuple[str, Callable[[Result], float | None], Callable[[float | None], str]]] = [
        ("Val", lambda r: r.val, percent),
        ("Test", lambda r: r.test, percent),
        ("Macro-F1", lambda r: r.macro_f1, percent),
        ("Time", lambda r: r.seconds, seconds),
    ]
    shown = [f for f in figures if any(f[1](r) is not None for r in results)]
    notes = any(r.note for r in results)
    table = plain_table()
    table.add_column("Method", no_wrap=True, overflow="ellipsis", max_width=NAME_WIDTH)
    for heading, _, _ in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    if notes:
        table.add_column("")
    best = _best([r.val for r in results]) or _best([r.test for r in results])
    for i, r in enumerate(results):
        row = [visible(r.name), *(write(get(r)) for _, get, write in shown)]
        note = [Text(visible(r.note), "dim")] if notes else []
        table.add_row(*map(Text, row), *note, style="bold" if i in best else "")
    return titled(table, title)


def _best(scores: Sequence[float | None]) -> set[int]:
    """Places of the highest score, ties included; none where all are absent."""
    top = max((s for s in scores if s is not None and s == s), default=None)
    return {i for i, s in enumerate(scores) if s == top} if top is not None else set()


def per_class_table(
    per_class: Sequence[Mapping[str, Any]], title: str = "", limit: int = PER_CLASS_ROWS
) -> RenderableType:
    """Rows with ``name precision recall f1 support`` and perhaps ``auroc``; beyond ``limit`` those of lowest F1."""
    rows = list(per_class)
    caption = ""
    if len(rows) > limit:
        rows = sorted(rows, key=lambda r: (r["f1"], r["name"]))[:limit]
        caption = f"the {limit} classes with the lowest F1, of {count(len(per_class))}"
    table = plain_table()
    table.add_column("Class", no_wrap=True, overflow="ellipsis", max_width=NAME_WIDTH)
    ranked = any(r.get("auroc") is not None for r in rows)
    for heading in ("Precision", "Recall", "F1", *(["AUROC"] if ranked else []), "Images"):
        table.add_column(heading, justify="right", no_wrap=True)
    for r in rows:
        figures = [percent(r["precision"]), percent(r["recall"]), percent(r["f1"])]
        auroc = [significant(r.get("auroc"))] if ranked else []
        table.add_row(Text(visible(str(r["name"]))), *figures, *auroc, count(int(r["support"])))
    return titled(table, title, caption)


def settings_panel(pairs: Mapping[str, object], title: str = "") -> RenderableType:
    """Names and values in two columns, the names dim; a value may be text, a number, a list or absent."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs.items():
        grid.add_row(Text(visible(name.replace("_", " "))), Text(setting(value)))
    return titled(grid, title)


def search_table(
    trials: Sequence[Trial], title: str = "", limit: int = SEARCH_ROWS, share: bool = True
) -> RenderableType:
    """The ranking in the order given, best first; at most ``limit`` rows, the first in bold.

    ``share`` says that the figures are shares in [0, 1]; a log-loss is not.
    """
    write = percent if share else significant
    caption = f"the first {limit} of {count(len(trials))}" if len(trials) > limit else ""
    table = plain_table()
    shown = list(trials[:limit])
    names = list(dict.fromkeys(name for t in shown for name in t.settings))
    table.add_column("", justify="right", style="dim")
    for name in names:
        table.add_column(visible(name.replace("_", " ")), justify="right", no_wrap=True)
    optional = {"Val": any(t.val is not None for t in shown), "Train": any(t.train is not None for t in shown)}
    optional["Time"] = any(t.seconds is not None for t in shown)
    optional[""] = any(t.note for t in shown)
    for heading, present in optional.items():
        if present:
            table.add_column(heading, justify="right" if heading else "left", no_wrap=bool(heading))
    for rank, t in enumerate(shown, start=1):
        values = [setting(t.settings[name]) if name in t.settings else ABSENT for name in names]
        extras = {"Val": write(t.val), "Train": write(t.train), "Time": seconds(t.seconds)}
        cells = [*values, *(extras[h] for h in extras if optional[h])]
        note = [Text(visible(t.note), "dim")] if optional[""] else []
        table.add_row(str(rank), *cells, *note, style="bold" if rank == 1 and t.val is not None else "")
    return titled(table, title, caption)


def shots_table(results: Sequence[Mapping[str, Any]], title: str = "", share: bool = True) -> RenderableType:
    """Few-shot figures: ``shots draws val val_deviation test test_deviation C``, a deviation None for one draw.

    ``share`` says that the figures are shares in [0, 1]; a log-loss is not.
    """
    table = plain_table()
    for name in ("Shots", "Draws", "Val", "Test", "Median C"):
        table.add_column(name, justify="right", no_wrap=True)

    def spread(r: Mapping[str, Any], name: str) -> str:
        mean, deviation = r[name], r[f"{name}_deviation"]
        if not share:
            return significant(mean) if deviation is None else f"{significant(mean)} ± {significant(deviation, 2)}"
        return percent(mean) if deviation is None else f"{percent(mean)} ± {100 * deviation:.1f}"

    for r in results:
        table.add_row(str(r["shots"]), str(r["draws"]), spread(r, "val"), spread(r, "test"), setting(float(r["C"])))
    return titled(table, title)


def parity_table(differences: Mapping[str, float], allowed: float, title: str = "") -> RenderableType:
    """Largest difference at each batch size, as a share of the largest logit, and what is allowed."""
    table = plain_table()
    for name in ("Batch", "Difference", "Allowed"):
        table.add_column(name, justify="right", no_wrap=True)
    for batch, difference in differences.items():
        table.add_row(batch, f"{difference:.1e}", f"{allowed:.0e}")
    return titled(table, title)


def files_summary(
    skipped: Mapping[str, int], failed: Sequence[tuple[str | bytes, str]], limit: int = FILE_ROWS
) -> RenderableType:
    """What was left out of a source: skipped files counted by reason, failed images with path and reason (I1, I5)."""
    parts: list[RenderableType] = []
    if skipped:
        reasons = ", ".join(f"{count(n)} {visible(reason)}" for reason, n in skipped.items())
        parts.append(Text.assemble(("skipped ", "bold"), f"{_files(sum(skipped.values()), 'file')}: {reasons}"))
    if failed:
        parts.append(Text.assemble(("failed ", "bold"), _files(len(failed), "image")))
        grid = Table.grid(padding=(0, 2))
        grid.add_column(width=0)
        grid.add_column(overflow="fold", ratio=3)
        grid.add_column(style="dim", overflow="fold", ratio=2)
        for path, reason in islice(failed, limit):
            grid.add_row("", Text(visible(path)), Text(visible(reason)))
        parts.append(grid)
        if len(failed) > limit:
            parts.append(Text(f"  and {count(len(failed) - limit)} more", "dim"))
    return Group(*parts)


def _files(n: int, noun: str) -> str:
    return f"{count(n)} {noun}{'s' * (n != 1)}"


def plain_table() -> Table:
    """The one look of every table here: a rule under the head, no frame."""
    return Table(
        header_style="dim", border_style="dim", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1)
    )


def titled(table: Table, title: str, caption: str = "") -> RenderableType:
    """The table under its title, with a caption below, neither broken at the table's width."""
    # A Table would break its own title and caption at the table's width, narrow as that may be.
    parts = [Text(visible(title), "bold")] if title else []
    return Group(*parts, table, *([Text(caption, "dim")] if caption else []))


def heading(text: str) -> Text:
    """A line that opens a part of a longer output, for example a command before it runs."""
    return Text(visible(text), "bold")


def predictions_table(
    predictions: Sequence[tuple[str, str | None, Sequence[tuple[str, float]], str | None]],
) -> Table:
    """For each image its class, its probability, and what else is likely: ``(path, class, [(class, p), ...], error)``.

    The class is None where none is named; the error says why an image could not be used.
    """
    table = plain_table()
    table.add_column("Image", overflow="fold")
    table.add_column("Class", overflow="ellipsis", max_width=NAME_WIDTH)
    table.add_column("Probability", justify="right", no_wrap=True)
    table.add_column("Next", style="dim", overflow="fold")
    for path, name, ranked, error in predictions:
        if error is not None:
            table.add_row(Text(visible(path)), ABSENT, ABSENT, Text(visible(error)))
            continue
        shown = Text(ABSENT) if name is None else Text(visible(name), "bold")
        following = ranked if name is None else ranked[1:]
        others = ", ".join(f"{visible(n)} {percent(q)}" for n, q in following if q >= WORTH_SHOWING)
        table.add_row(Text(visible(path)), shown, percent(ranked[0][1]), Text(others))
    return table


def difference_table(fields: Sequence[tuple[str, object, object]], names: Sequence[str]) -> Table:
    """Fields in which two things differ: ``(field, left, right)``, under the two names."""
    table = plain_table()
    table.add_column("Differs", no_wrap=True)
    for name in names:
        table.add_column(Text(visible(name)), overflow="fold")
    for field, left, right in fields:
        table.add_row(Text(visible(field)), *(ABSENT if v is None else Text(setting(v)) for v in (left, right)))
    return table
