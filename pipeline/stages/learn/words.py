"""What learning says: a head in a line, a ranking, the path of penalties, few-shot figures.

Pure functions of what the stage has found, to lines and plain values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.base.interrupt import GOES_ON, NO_HALF_RUN
from pipeline.base.spelling import option
from pipeline.base.values import Column, Curve, Part, Table, figures
from pipeline.base.words import ABSENT, chosen_of, count, many, percent, seconds, setting, significant
from pipeline.heads.choice import at_the_end
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.show.tables import metric_name, penalty_path
from pipeline.stages.learn.kept import Fit, TrainResult
from pipeline.stages.learn.settings import EXACT, SearchSettings
from pipeline.stages.learn.trials import Trial

SEARCH_ROWS = 10


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


def path(trials: Sequence[Trial], metric: str, chosen: float) -> Curve:
    """A metric on train and val against the penalty, and the C that was chosen; the trials in the order of their C."""
    series = {split: [getattr(t, split)[metric] for t in trials] for split in ("train", "val")}
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
