"""What a page says of a run in tables and sentences: what it is and from what, its figures, how it came about.

Pure functions of what is known of a run, to plain values.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.base.spelling import flag_name
from pipeline.base.values import Cell, Column, Part, Table, figures
from pipeline.base.words import ABSENT, chosen_of, count, few, many, percent, seconds, setting, significant, size
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.scores.label_noise import LabelNoise
from pipeline.show.page.document import Tile
from pipeline.show.tables import metric_name
from pipeline.show.trace import ROWS, Remarks, places
from pipeline.stages.report.answers import Answers
from pipeline.stages.report.story import Story
from pipeline.stages.score.figures import SHARES, EvaluateResult
from pipeline.stages.score.words import as_which, beside_float32, figures_lines, ordinal

FACTS = (Column(fit="wrap"), Column(fit="fold"))
CLASSES_NAMED = 12
TRIALS = 10
VARIED = 6  # settings of a ranking that have a column
COLUMNS = ("Loss", "Accuracy", "Val accuracy")


def facts(rows: Sequence[tuple[str, str | None]], title: str = "") -> Table:
    """Names and what goes with them; what is None is left out."""
    return Table(FACTS, [[name, value] for name, value in rows if value is not None], title)


# -- what it is, and from what ----------------------------------------------------------------------------------------


def source(story: Story) -> str:
    """The name of what the images came from: the last part of a path, or a word."""
    told = story.run.config["cache"]["about"]["source"]
    return os.path.basename(os.path.abspath(told)) if os.sep in told else told


def trunk(story: Story) -> str:
    """The network's name."""
    return story.run.made_by["trunk"]["name"]


def head(story: Story) -> str:
    """What learned, in a few words."""
    if story.run.stage == "finetune":
        return "the fine-tuned network"
    config, kind = story.metrics.get("config", {}), story.head.kind if story.head else MinibatchConfig.kind
    solver = str(config.get("solver", story.metrics.get("solver", "")))
    by = f"C {config['C']:.3g}" if isinstance(config.get("C"), float) else _minibatch(config)
    return f"a {kind} head ({', '.join(part for part in (solver, by) if part)})"


def _minibatch(config: Mapping[str, Any]) -> str:
    told = [f"{name.replace('_', ' ')} {setting(config[name])}" for name in ("lr", "weight_decay") if name in config]
    return ", ".join(told)


def lead(story: Story) -> str:
    """The run's result in a sentence or two."""
    what = f"{capital(head(story))} on the features of {trunk(story)}"
    if story.run.stage == "finetune":
        what = f"{trunk(story)}, fine-tuned with its new head,"
    told = f"{what} tells {many(len(story.classes), 'class')} of {source(story)} apart"
    best = _headline(story)
    if story.run.config["cache"]["about"]["pretrained"] is False:
        told += ", but the network's weights are random numbers: good for trying things, not for use"
    return f"{told}. {best}" if best else f"{told}."


def _headline(story: Story) -> str:
    if story.test is not None:
        test = story.test.test
        return f"It is right on {percent(test['accuracy'])} of {many(test['n'], 'test image')}{_between(test)}."
    if story.answers is not None:
        found, on = story.answers.figures, story.answers.of
        n, by = candidates(story), story.metrics.get("chosen_by") or "val"
        optimistic = f"; {by} chose it among {n:,}, so that this is optimistic" if n > 1 else ""
        images = f"{many(found['n'], 'image')} of {on}{_unseen(story.answers)}"
        return f"It is right on {percent(found['accuracy'])} of {images}{_between(found)}{optimistic}."
    return ""


def _unseen(answers: Answers) -> str:
    return " that it has not learned from" if answers.unseen else ", which the head that it began with had learned from"


def by_folds(story: Story) -> bool:
    """Whether rows that folds had left out have chosen it, and not val."""
    return bool(story.run.config["settings"].get("cv"))


def _between(test: Mapping[str, Any]) -> str:
    ends = (test.get("intervals") or {}).get("accuracy")
    return "" if not ends else f" (95 % interval {100 * ends[0]:.1f} to {100 * ends[1]:.1f})"


def capital(text: str) -> str:
    """The text as a sentence begins."""
    return text[:1].upper() + text[1:]


def tiles(story: Story) -> list[Tile]:
    """The figures that are seen first."""
    found, metrics = [], story.metrics
    if story.test is not None:
        note = f"{_interval(story.test.test)}{many(story.test.test['n'], 'image')}{as_which(story.test.scored_before)}"
        found.append(Tile("Test accuracy", percent(story.test.test["accuracy"]), note))
    if story.answers is not None:
        told = story.answers.figures
        note = f"{_interval(told)}{many(told['n'], 'image')}{_unseen(story.answers)}"
        if story.answers.of == "val" or by_folds(story):
            note += chosen_of(candidates(story)).replace(" (", ", ").rstrip(")")
        found.append(Tile(f"Accuracy, {story.answers.of}", percent(told["accuracy"]), note))
    val, chosen_from = metrics.get("after", metrics.get("val")), candidates(story)
    apart = story.answers is None or (chosen_from > 1 and story.answers.of != "val" and not by_folds(story))
    if val is not None and apart:
        found.append(Tile("Val accuracy", percent(val), chosen_of(chosen_from).strip(" ()")))
    rows = story.run.config["cache"]["rows"]
    splits = ", ".join(f"{count(n)} {split}" for split, n in rows.items() if n)
    found.append(Tile("Images", count(sum(rows.values())), splits))
    if (took := metrics.get("seconds")) is not None:
        what = "the network and its head" if story.run.stage == "finetune" else "the head, from cached features"
        found.append(Tile("Training time", seconds(took), what))
    return found


def _interval(test: Mapping[str, Any]) -> str:
    ends = (test.get("intervals") or {}).get("accuracy")
    return "" if not ends else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} (95 % interval), "


def candidates(story: Story) -> int:
    """Of how many candidates this one was chosen."""
    if "verdict" in story.metrics:
        return story.metrics["verdict"]["candidates"]
    return story.metrics.get("chosen_from", 1)


def chosen(story: Story) -> str | None:
    """How it was chosen, and what that means for figures on what chose."""
    n, by = candidates(story), story.metrics.get("chosen_by") or "val"
    if n < 2:
        return None
    metric = story.run.config["settings"].get("metric")
    how = f" ({metric_name(metric)})" if isinstance(metric, str) else ""
    return f"the best of {n:,} by {by}{how}: its figures there are optimistic"


def from_what(story: Story) -> Table:
    """Data, network, weights, arithmetic and head."""
    config, by = story.run.config, story.run.made_by
    about, transform = config["cache"]["about"], by["transform"]
    rows = ", ".join(f"{count(n)} {split}" for split, n in config["cache"]["rows"].items() if n)
    decode = "large JPEGs shrunk while decoded" if "scaled" in by.get("decode", {}) else "decoded exactly"
    engine, width = by["engine"], story.head.dim if story.head else (story.cache.dim if story.cache else None)
    learned = " and ".join(config.get("learned_from", ["train"]))
    temperature, frozen = story.metrics.get("temperature"), "" if story.run.stage == "finetune" else ", frozen"
    return facts(
        [
            ("Run", f"{story.name}, {day(config['started'])}"),
            ("Data", f"{source(story)} ({about['source']})"),
            ("Images", f"{rows} (that could be read)"),
            ("Classes", f"{count(len(story.classes))}: {few(story.classes, CLASSES_NAMED)}"),
            ("Trunk", f"{trunk(story)}{frozen}, seeing {transform.crop} × {transform.crop} pixels"),
            ("Weights", f"{os.path.basename(about['weights'])}, SHA-256 {by['weights']['sha256'][:12]}"),
            ("Features", None if width is None else f"{count(width)} an image, of the layer {by['trunk']['layer']}"),
            (
                "Computed",
                f"in {by['precision']} by {engine['name']} {engine['version']} ({engine['device']}), {decode}",
            ),
            ("Settings fingerprint", config["cache"]["key"][:16]),
            ("What learned", f"{head(story)}, from {learned}"),
            ("Chosen", chosen(story)),
            ("Temperature", _temperature(temperature, story.metrics.get("temperature_from"))),
        ]
    )


def _temperature(value: float | None, came_from: str | None) -> str | None:
    if value is None:
        return None
    return f"{significant(value)}, from {came_from}" if came_from else "none: there were no rows to fit it on"


def day(when: str) -> str:
    """The day of a record's time, as it stands there."""
    return when[:10]


# -- figures ----------------------------------------------------------------------------------------------------------


def figures_table(columns: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """Figures side by side, with their 95 % intervals."""
    rows: list[list[Cell]] = [["Images", *(count(test["n"]) for _, test in columns)]]
    for name, label in SHARES.items():
        if any(test.get(name) is not None for _, test in columns):
            rows.append([capital(label), *(_share(test, name) for _, test in columns)])
    for name, label in (("auroc", "AUROC"), ("log_loss", "Log-loss")):
        if any(test.get(name) is not None for _, test in columns):
            rows.append([label, *(significant(test.get(name)) for _, test in columns)])
    rows.append(["Log-loss with the temperature", *(significant(_scaled(test, "log_loss")) for _, test in columns)])
    rows.append(["Calibration error", *(percent(test.get("ece")) for _, test in columns)])
    rows.append(["Calibration error with it", *(percent(_scaled(test, "ece")) for _, test in columns)])
    kept = [row for row in rows if any(cell != ABSENT for cell in row[1:])]
    return Table([Column(fit="wrap"), *figures(*(name for name, _ in columns))], kept)


def _share(test: Mapping[str, Any], name: str) -> Cell:
    ends = (test.get("intervals") or {}).get(name)
    between = f"  ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if ends else ""
    return (percent(test.get(name)), Part(between, "dim"))


def _scaled(test: Mapping[str, Any], name: str) -> float | None:
    found: float | None = (test.get("calibrated") or {}).get(name)
    return found


def about_figures(story: Story) -> list[str]:
    """Whose figures they are, what chose, and how often the test rows have been looked at."""
    told = []
    if story.answers is not None:
        told.append(f"{story.answers.whose}.")
        told += [capital(line) + "." for line in figures_lines(story.answers.figures, story.answers.of)[1:-1]]
    if (how := chosen(story)) is not None:
        told.append(f"The head is {how}." if story.run.stage != "finetune" else f"The network is {how}.")
    if story.test is None:
        told.append(f"Test: not scored. `pipeline evaluate {story.name}` does that, once.")
    else:
        told.append(scored(story.test))
        if story.test.float32 is not None:
            told += [f"{capital(line)}." for line in beside_float32(story.run.made_by["precision"], story.test.float32)]
    if (precision := story.run.learned_in) is not None:
        told.append(
            f"The head learned from features in {precision}; `predict` and `export` run the network in float32."
        )
    return told


def scored(test: EvaluateResult) -> str:
    """When and as which run the test rows were scored."""
    if test.scored_before is None:
        return f"Test: scored once, on {day(test.scored)}."
    which = f"Test: scored once, on {day(test.scored)}, as the {ordinal(test.scored_before + 1)} run on these rows."
    return which if not test.scored_before else f"{which} The best of several figures on test is optimistic."


def about_labels(story: Story, answers: Answers, noise: LabelNoise) -> list[str]:
    """How many labels may be wrong, and where the list of them is to be had."""
    low, high = noise.interval
    n = len(noise.order)
    about = (
        f"Of {many(len(answers), 'label')} of {answers.of} at most about {percent(noise.share)} ({percent(low)} to "
        f"{percent(high)}) are wrong: that counts what the run confuses, too."
    )
    if not n:
        return [f"{about} None looks suspect."]
    return [
        f"{about} {many(n, 'label')} {'looks' if n == 1 else 'look'} suspect. `pipeline audit {story.data} "
        f"{flag_name('labels')}` judges all of train and val, and lists what they seem to be for `pipeline relabel`."
    ]


def groups_table(name: str, rows: Sequence[tuple[str, int, float, tuple[float, float]]]) -> Table:
    """Accuracy by the values of a manifest's column: value, images, accuracy and its interval."""
    cells: list[list[Cell]] = [
        [value, count(n), percent(share), f"{100 * low:.1f} to {100 * high:.1f}"]
        for value, n, share, (low, high) in rows
    ]
    return Table([Column(name, fit="name"), *figures("Images", "Accuracy", "95 % interval")], cells, f"By {name}")


# -- how it came about ------------------------------------------------------------------------------------------------


def trace_table(story: Story) -> Table:
    """The training trace: a few of its rows, and what their numbers say."""
    step = trace_step(story)
    shown = [story.trace[i] for i in places(len(story.trace), ROWS[step])]
    remarks = Remarks()
    rows: list[list[Cell]] = [
        [
            str(row.epoch),
            significant(row.loss),
            percent(row.accuracy),
            percent(row.val_accuracy),
            Part(remarks.new(row.observation), "dim"),
        ]
        for row in shown
    ]
    caption = f"{len(shown)} of {many(len(story.trace), step.lower())}" if len(shown) < len(story.trace) else ""
    return Table([*figures(step, *COLUMNS), Column(fit="wrap")], rows, "", caption)


def trace_step(story: Story) -> str:
    """What a row of the trace is of."""
    return "Iteration" if "objective" in story.metrics.get("config", {}) else "Epoch"


def ranking(story: Story, metric: str) -> Table:
    """A search's candidates, best first: what differs among them, and their figures."""
    trials = story.trials
    shown: Sequence[Mapping[str, Any]] = trials[:TRIALS]
    scalars = [name for name, value in shown[0].items() if isinstance(value, (int, float, str)) and name != "note"]
    varied = [n for n in scalars if len({str(t.get(n)) for t in shown}) > 1 and not n.startswith(("n_", "grad_"))]
    write = significant if metric == "log_loss" else percent
    rows: list[list[Cell]] = []
    for rank, t in enumerate(shown, 1):
        values = [setting(_short(t.get(name))) for name in varied[:VARIED]]
        cells = [*values, write(t["val"].get(metric)), write(t["train"].get(metric)), percent(t["val"].get("accuracy"))]
        rows.append([Part(str(rank), "dim"), *(Part(cell, "best" if rank == 1 else "") for cell in cells)])
    names = [name.replace("_", " ") for name in varied[:VARIED]]
    columns = figures("Rank", *names, f"{metric_name(metric)}, val", f"{metric_name(metric)}, train", "accuracy, val")
    more = f"the first {len(shown)} of {count(len(trials))}; " if len(trials) > len(shown) else ""
    by = story.metrics.get("chosen_by") or "val"
    return Table(columns, rows, "", f"{more}{by} chose: its best figures are optimistic")


def _short(value: Any) -> Any:
    return float(f"{value:.3g}") if isinstance(value, float) else value


def failures_table(rows: Sequence[tuple[str, str, str]], of: int) -> Table:
    """Images that gave no features: path, kind, reason."""
    columns = [Column("Image", fit="fold"), Column("What"), Column("Why", fit="wrap")]
    more = f"the first {len(rows)} of {count(of)}" if of > len(rows) else ""
    return Table(columns, [list(row) for row in rows], "", more)


def times(story: Story) -> Table:
    """Times, settings, machine and versions."""
    config, metrics, machine = story.run.config, story.metrics, story.config.get("hardware", {})
    given = ", ".join(f"{name} {setting(value)}" for name, value in config.get("given", {}).items())
    memory = machine.get("memory_bytes")
    return facts(
        [
            ("Begun", config["started"].replace("T", " ").replace("Z", " UTC")),
            ("Training", seconds(metrics.get("seconds"))),
            ("Scoring on test", None if story.test is None else seconds(story.test.seconds)),
            ("Settings", given or "the defaults"),
            ("Began from", story.config.get("started_from")),
            ("Processor", _processor(machine)),
            ("Memory", size(memory) if isinstance(memory, int) else None),
            ("GPU", None if not machine.get("gpu") else str(machine["gpu"])),
            ("Versions", ", ".join(f"{name} {value}" for name, value in config["versions"].items())),
        ]
    )


def _processor(machine: Mapping[str, Any]) -> str | None:
    cores = machine.get("cores")
    told = [str(machine["processor"])] if "processor" in machine else []
    return ", ".join([*told, *([many(cores, "core")] if isinstance(cores, int) else [])]) or None


def note_of(answers: Answers, place: int, classes: Sequence[str]) -> str:
    """What is said of an answer: what the image is, what it is taken for, and how sure that is."""
    true, taken = int(answers.y[place]), int(answers.told.predicted[place])
    sure = percent(float(answers.told.confidence[place]))
    return f"{classes[true]}, {sure}" if true == taken else f"{classes[true]}, taken for {classes[taken]}, {sure}"
