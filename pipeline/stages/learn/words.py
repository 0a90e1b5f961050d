"""What learning says: a head in a line, a ranking, the path of penalties, few-shot figures.

Pure functions of what the stage has found, to lines and plain values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.base.interrupt import GOES_ON, NO_HALF_RUN
from pipeline.base.spelling import option
from pipeline.base.values import Column, Curve, Part, Table, figures
from pipeline.base.words import ABSENT, chosen_of, count, many, percent, seconds, setting, significant
from pipeline.heads.choice import at_the_end
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.scores.power_law import FARTHEST, FEWEST_SIZES, POINT
from pipeline.show.tables import metric_name, penalty_path
from pipeline.stages.learn.kept import Fit, TrainResult
from pipeline.stages.learn.settings import ALL, EXACT, SearchSettings
from pipeline.stages.learn.trials import Trial

SEARCH_ROWS = 10
Place = tuple[float, float, float, float]  # of a law: images, figure, low, high
NEVER = 0.5  # of the resamples: from this share on more labels are said to bring nothing
RARELY = 0.05  # ... and below it, nothing is said of that


def head(result: TrainResult, fit: Fit) -> str:
    """A kept head: its settings, its figures, where it is."""
    what = "chosen head" if result.trials > 1 else "head"
    r = fit.record
    if fit.converged is None:
        kind = "" if fit.kind == MinibatchConfig.kind else f"{fit.kind}, "
        lr, decay = setting(r["lr"]), setting(r["weight_decay"])
        config = f"{kind}{r['solver']}, lr {lr}, weight decay {decay}; epoch {result.steps}"
    else:
        config = f"exact, C {r['C']:.3g}; {many(result.steps, 'iteration')}, gradient {r['grad_norm']:.0e}"
    val = "" if result.val is None else f"val {percent(result.val)}{chosen_of(result.chosen_from)}, "
    return f"{what} ({config}): {val}train {percent(result.train)}, in {seconds(result.seconds)} -> {result.run}"


def no_temperature() -> str:
    """Said of a head for which there are no rows that it did not learn from."""
    return (
        f"no val rows: the head's probabilities are not calibrated (no temperature); extract with "
        f"{option('val_fraction')} above 0 for that"
    )


def kept_before(run: Path) -> str:
    """The search was killed when all was done but for tidying up."""
    return f"{run} was kept before the search was stopped: nothing is left to do"


def kept_of(settings: SearchSettings) -> str:
    """What is kept of a search when Ctrl-C comes."""
    if settings.space == EXACT:
        return NO_HALF_RUN
    where = (
        "heads that were tried to the end are kept"
        if settings.optuna is None
        else f"finished trials are in {settings.optuna}"
    )
    return f"{where}: {GOES_ON}"


def ranking(trials: Sequence[Trial], settings: SearchSettings, limit: int = SEARCH_ROWS) -> Table:
    """The trials in the order given, best first; at most ``limit`` rows, the first one marked.

    Their figures by the metric on what chose and on train, and what accuracy goes with it.
    """
    metric = settings.metric
    write = significant if metric == "log_loss" else percent
    names = list(dict.fromkeys(name for t in trials[:limit] for name in t.settings))
    notes = any(t.note for t in trials[:limit])
    rows = []
    for rank, t in enumerate(trials[:limit], start=1):
        values = [_varied(t.settings[name]) if name in t.settings else ABSENT for name in names]
        cells = [*values, write(t.val[metric]), write(t.train[metric])]
        cells += [] if metric == "accuracy" else [percent(t.val["accuracy"])]
        row = [Part(str(rank), "dim"), *(Part(cell, "best" if rank == 1 else "") for cell in cells)]
        rows.append([*row, Part(t.note, "dim")] if notes else row)
    more = [] if metric == "accuracy" else ["Val accuracy"]
    columns = [Column(right=True), *figures(*(name.replace("_", " ") for name in names), "Val", "Train", *more)]
    by = f"{settings.cv} folds" if settings.cv else "val"
    then = "" if metric == "log_loss" else ", then log-loss"
    shown = f"the first {limit} of {count(len(trials))}; " if len(trials) > limit else ""
    return Table(
        [*columns, Column(fit="wrap")] if notes else columns,
        rows,
        f"{many(len(trials), 'head')}, ranked by {metric_name(metric)} on {by}{then}",
        f"{shown}{by} chose: its best figures are optimistic" if len(trials) > 1 else "",
    )


def end_of_path(settings: SearchSettings, end: str) -> str:
    """The chosen C is the ``lowest`` or ``highest`` of the path."""
    Cs = settings.penalties
    C, beyond = (Cs[0], Cs[0] / 10) if end == "lowest" else (Cs[-1], Cs[-1] * 10)
    return (
        f"the best C, {C:.3g}, is the {end} that was tried: a better one may lie beyond, try "
        f"{option('Cs')} with {beyond:.3g}"
    )


def _varied(value: Any) -> str:
    """A setting that a search varied: three digits of a number tell it from its neighbours."""
    return setting(float(f"{value:.3g}") if isinstance(value, float) else value)


def path(trials: Sequence[Trial], metric: str, chosen: float, chose: str = "val") -> Curve:
    """A metric against the penalty on train and on the rows that ``chose`` C; the trials in the order of their C."""
    series = {"train": [t.train[metric] for t in trials], chose: [t.val[metric] for t in trials]}
    return penalty_path([t.settings["C"] for t in trials], series, metric, chosen)


def few_shot(results: Sequence[Mapping[str, Any]], settings: SearchSettings) -> Table:
    """Figures by shots (see ``few_shot.FewShotResult``), a deviation None for one draw.

    Without figures on test there is no column for them. The end of the path is said where it won half of the draws.
    """
    metric, tested = settings.metric, any(r["test"] is not None for r in results)

    def spread(r: Mapping[str, Any], name: str) -> str:
        mean, deviation = r[name], r[f"{name}_deviation"]
        if metric == "log_loss" and name in ("val", "test"):
            return significant(mean) if deviation is None else f"{significant(mean)} ± {significant(deviation, 2)}"
        return percent(mean) if deviation is None else f"{percent(mean)} ± {100 * deviation:.1f}"

    on = "Test" if tested else "Val"
    columns = {"val": "Val (chose C)", **({"test": "Test"} if tested else {})}
    columns |= {} if metric == "accuracy" else {"accuracy": f"{on} accuracy"}
    columns["centroid"] = f"Cosine centroid, {on.lower()} accuracy"
    rows = [
        [str(r["shots"]), str(r["draws"]), *(spread(r, name) for name in columns), setting(float(f"{r['C']:.3g}"))]
        for r in results
    ]
    title = f"{metric_name(metric)}, mean and deviation of {many(settings.draws, 'draw')}"
    caption = ["each draw's C is the best of its path on val: val is optimistic"]
    ends = [f"{many(r['shots'], 'shot')}: {r['C']:.3g}" for r in results if at_the_end(settings.penalties, r["C"])]
    if ends:
        caption.append(f"the median C is the end of the path ({', '.join(ends)}): a better one may lie beyond")
    return Table(figures("Shots", "Draws", *columns.values(), "Median C"), rows, title, "\n".join(caption))


def taken_whole(shots: int, fewer: int, classes: int) -> str:
    """Said of a number of shots which ``fewer`` of the classes do not have."""
    have = "has" if fewer == 1 else "have"
    return (
        f"{many(shots, 'shot')}: {count(fewer)} of {many(classes, 'class')} {have} fewer train images; all of them are "
        "taken"
    )


# -- the learning curve -----------------------------------------------------------------------------------------------


def as_good_as_all(beyond: Sequence[int], largest: int) -> str:
    """Said of numbers of shots that take every image of the ``largest`` class, and so of each."""
    asked = ", ".join(count(k) for k in beyond)
    return f"shots {asked}: no class has more than {many(largest, 'train image')}, so that is {ALL}"


def rare_in_val(classes: int, of: int) -> str:
    """Said where classes have fewer than two val images, one for each half."""
    have = "has" if classes == 1 else "have"
    return (
        f"{count(classes)} of {many(of, 'class')} {have} fewer than 2 val images: no head is both chosen and scored "
        "on images of such a class"
    )


def figure_of(settings: SearchSettings) -> str:
    """The figure of a learning curve, by name: what is chosen by, or the accuracy where that is no share."""
    return "accuracy" if settings.metric == "log_loss" else settings.metric


def curve(result: Mapping[str, Any], settings: SearchSettings) -> Table:
    """A learning curve, a row for each number of shots; ``result`` as ``few_shot.FewShotResult`` has it in JSON."""
    results, law, name = result["results"], result["law"], metric_name(figure_of(settings))
    rows = [
        [
            str(r["shots"]),
            count(r["images"]),
            str(r["draws"]),
            percent(r["val"]),
            f"{100 * r['low']:.1f} to {100 * r['high']:.1f}",
            setting(float(f"{r['C']:.3g}")),
        ]
        for r in results
    ]
    by = "" if figure_of(settings) == settings.metric else f" by {metric_name(settings.metric)}"
    caption = [
        f"each draw's C is chosen on one half of val{by} and scored on the other: val is not optimistic",
        "95 %: over draws and val images"
        if settings.draws > 1
        else "95 %: over val images; one draw says nothing of others",
    ]
    ends = [f"{r['shots']}: {r['C']:.3g}" for r in results if at_the_end(settings.penalties, r["C"])]
    if ends:
        caption.append(f"the median C is the end of the path (shots {', '.join(ends)}): a better one may lie beyond")
    if law is not None and law["b"]:
        caption.append(f"law: error = {law['a']:.3g} + {law['b']:.3g} n^-{law['c']:.2g} of n images")
    columns = figures("Shots", "Images", "Draws", f"Val {name}", "95 %", "Median C")
    return Table(columns, rows, f"learning curve: {name} on val by labelled train images", "\n".join(caption))


def outlook(result: Mapping[str, Any], figure: str) -> str:
    """What a learning curve says of more labels; ``result`` as ``few_shot.FewShotResult`` has it in JSON."""
    name = metric_name(figure)
    if result["law"] is None:
        return (
            f"no law: {many(len(result['results']), 'number')} of images, and {FEWEST_SIZES} are needed to say what "
            f"more labels would bring; give {option('shots')} more numbers"
        )
    twice = result["ahead"][0]
    then = f"{percent(twice['val'])} ({100 * twice['low']:.1f} to {100 * twice['high']:.1f})"
    return f"{_more_labels(result['more'], name)}; with twice as many, {count(twice['images'])}, {then}"


def _more_labels(more: Mapping[str, Any], name: str) -> str:
    gain = f"+1 point of {name}"
    if more["error"] < POINT:
        return f"what {gain} takes cannot be told: by the law the error is {percent(more['error'])} already"
    never = f"in {100 * more['never']:.0f} % of resamples no number of them does" if more["never"] >= RARELY else ""
    if more["never"] >= NEVER:
        return f"{gain} is not to be had by more labels of this kind: {never}, the curve levels off before"
    beyond = f"more than {FARTHEST} times as many"
    low, high = (beyond if more[end] is None else _about(more[end]) for end in ("low", "high"))
    if more["more"] is None:
        found = f"{beyond} labels for {gain}" + ("" if more["low"] is None else f" (at least {low} more)")
    else:
        found = f"about {_about(more['more'])} ({low} to {high}) more labels for {gain}"
    return f"{found}; {never}" if never else found


def _about(number: int) -> str:
    """A number to two digits."""
    return count(int(float(f"{number:.2g}")))


def curve_picture(results: Sequence[Mapping[str, Any]], figure: str, law: Sequence[Place] | None) -> Curve:
    """The learning curve with its intervals; under it the law, where there is one."""
    name, lines = metric_name(figure), dict[str, dict[float, Sequence[float]]]()
    if law is not None:
        lines["power law"] = {n: rest for n, *rest in law}
    lines["val"] = {r["images"]: (r["val"], r["low"], r["high"]) for r in results}
    x = sorted({n for line in lines.values() for n in line})
    missing = (math.nan,) * 3
    values = {series: list(zip(*(at.get(n, missing) for n in x), strict=True)) for series, at in lines.items()}
    best = results[-1]
    return Curve(
        {series: value for series, (value, _, _) in values.items()},
        x=x,
        x_label="labelled train images",
        y_label=f"val {name}",
        title=f"{name} by labelled images: {percent(best['val'])} from {count(best['images'])}",
        shares=True,
        log_x=True,
        bands={series: (low, high) for series, (_, low, high) in values.items()},
        dots=("val",),
    )
