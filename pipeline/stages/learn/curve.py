"""The learning curve: heads from ever more images of each class, and how many more labels would bring what.

Val is cut in two halves, stratified by class, copies of an image in one of them. Of each draw the path of penalties is
fitted once; the penalty that is best on one half is scored on the other. So each val row is scored by a head that it
did not choose, all of them are used, and no figure is optimistic. Test rows are not read.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import HeadError
from pipeline.base.spelling import option
from pipeline.base.words import csv_text, many
from pipeline.heads.choice import order
from pipeline.heads.folds import halves
from pipeline.heads.left_out import linear_logits
from pipeline.heads.scores.intervals import binomial_interval
from pipeline.heads.scores.metrics import answers_of
from pipeline.heads.scores.power_law import FARTHEST, FEWEST_SIZES, PowerLaws, more_labels, resampled_laws
from pipeline.heads.scores.resampled import Resampled, resampled, weighted_figures
from pipeline.heads.scores.tally import linear_figures
from pipeline.runs import folder as runs
from pipeline.runs.folder import cache_record
from pipeline.show.pictures import svg
from pipeline.stages.learn import words
from pipeline.stages.learn.few_shot import STAGE, FewShotResult, drawn, require_val, say_what_is_taken_whole
from pipeline.stages.learn.settings import ALL, SearchSettings
from pipeline.stages.learn.task import Task
from pipeline.store.rows import Rows

CURVE_PICTURE, CURVE_TABLE = "curve.svg", "curve.csv"
COLUMNS = ("shots", "images", "draws", "val", "low", "high", "C")
CHOSEN_BY = "the other half of val"
DEALING, RESAMPLING, BEGINNING = (
    1 << 30,
    (1 << 30) + 1,
    (1 << 30) + 2,
)  # beyond the numbers of draws: what is random has streams of its own
PLACES = 61  # of the law's line
AHEAD = (2, 5, FARTHEST)  # times as many images as there are


@dataclass(frozen=True, eq=False)
class Scored:
    """One draw: what of it goes into draws.jsonl, and the class (n,) that its heads take each val row for."""

    line: dict[str, Any]
    predicted: NDArray[np.int64]


def learning_curve(task: Task[SearchSettings]) -> FewShotResult:
    """Draw, fit, choose on one half of val and score on the other; then the law, and what it says of more images.

    Raises:
        HeadError: no val rows, or those of one image.
    """
    settings, cache, desk = task.settings, task.cache, task.desk
    require_val(task)
    images, half = _halves_of_val(task)
    sizes = _sizes(task)
    began = time.perf_counter()
    parts = [(half == h, Rows(task.val.X[half == h], task.val.y[half == h])) for h in (0, 1)]
    plan = [(k, draw) for k in sizes for draw in range(1 if k == ALL else settings.draws)]
    scored: list[Scored] = []
    with desk.watch.track("learning curve", len(plan), unit="draws") as tracker:
        for k, draw in plan:
            rows = task.train if k == ALL else drawn(task.train, int(k), seed=(settings.seed, draw))
            scored.append(_scored(task, rows, parts, {"shots": k, "draw": draw, "images": len(rows)}))
            tracker.advance()
    figure = words.figure_of(settings)
    groups = [[s for s in scored if s.line["shots"] == k] for k in sizes]
    predicted = [np.stack([s.predicted for s in group]) for group in groups]
    found = resampled(figure, task.val.y, predicted, images, seed=(settings.seed, RESAMPLING))
    results = [_summary(group, i, found) for i, group in enumerate(groups)]
    laws = _laws(results, found, settings.seed)
    said = {} if laws is None else _said(laws, len(task.train), found.rows)
    picture = svg(words.curve_picture(results, figure, None if laws is None else _line(laws, results, found.rows)))
    seconds = time.perf_counter() - began
    name, about = cache.path.name.removesuffix(".h5"), cache_record(cache)
    with runs.new_run(desk, stage=STAGE, name=name, settings=settings, about=about) as (draft, folder):
        result = FewShotResult(folder, results, seconds, chosen_by=CHOSEN_BY, **said)
        draft.write_lines("draws.jsonl", [s.line for s in scored])
        draft.write_text(CURVE_TABLE, csv_text([COLUMNS, *([r[name] for name in COLUMNS] for r in results)]))
        draft.write_text(CURVE_PICTURE, picture)
        told = result.to_json()
        draft.write_json("metrics.json", {n: v for n, v in told.items() if n != "run"})
    desk.watch.result(words.curve(told, settings))
    desk.watch.result(words.outlook(told, figure))
    desk.watch.result(f"{many(len(plan), 'draw')} -> {folder}")
    return result


def _halves_of_val(task: Task[SearchSettings]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The number (n,) of each val row's image, from 0 without gaps, and the half (n,) that it is in."""
    images = np.unique(task.images[len(task.train) :], return_inverse=True)[1].astype(np.int64)
    if images.max() == 0:
        raise HeadError(
            f"{task.cache.path.name} has val rows of one image: a learning curve needs two, one to choose on and one "
            f"to score; extract with a larger {option('val_fraction')}"
        )
    y, classes = task.val.y, len(task.cache.classes)
    own = np.unique(np.stack([y, images]), axis=1)[0]
    single = int((np.bincount(own, minlength=classes) < 2).sum())
    if single:
        task.desk.watch.say(words.rare_in_val(single, classes))
    return images, halves(y, images, (task.settings.seed, DEALING))


def _sizes(task: Task[SearchSettings]) -> list[int | Literal["all"]]:
    """The numbers of shots, ascending, ``ALL`` last; what takes every image of every class is that."""
    assert task.settings.shots is not None
    numbers = sorted({k for k in task.settings.shots if isinstance(k, int)})
    largest = int(np.bincount(task.train.y).max())
    say_what_is_taken_whole(task, [k for k in numbers if k < largest])
    if beyond := [k for k in numbers if k >= largest]:
        task.desk.watch.say(words.as_good_as_all(beyond, largest))
    few: list[int | Literal["all"]] = [k for k in numbers if k < largest]
    return [*few, ALL]


def _scored(
    task: Task[SearchSettings], rows: Rows, parts: Sequence[tuple[NDArray[np.bool_], Rows]], line: dict[str, Any]
) -> Scored:
    """The heads of drawn rows: the one that is best on a half of val says what the rows of the other are.

    ``C`` is that of the one chosen on the first half and of the one chosen on the second.
    """
    metric, classes = task.settings.metric, len(task.cache.classes)
    fits = task.exact(rows, task.settings.penalties)
    heads = [(fit.weight, fit.bias) for fit in fits]
    logits, Cs = np.empty((len(task.val), classes), np.float32), []
    for (_, choosing), (place, other) in zip(parts, parts[::-1], strict=True):
        told = linear_figures(heads, choosing.X, choosing.y)
        best = min(range(len(fits)), key=lambda i: order(told[i], metric, fits[i].C))
        logits[place] = linear_logits(other.X, *heads[best])
        Cs.append(fits[best].C)
    answers = answers_of(logits, task.val.y)
    every = np.ones(len(task.val))
    (val,) = weighted_figures(words.figure_of(task.settings), task.val.y, answers.predicted[None], every, classes)
    return Scored({**line, "C": Cs, "val": float(val), "log_loss": float(-answers.own.mean())}, answers.predicted)


def _summary(group: Sequence[Scored], place: int, found: Resampled) -> dict[str, Any]:
    """What is said of a number of shots."""
    (low, high), line = found.intervals[place], group[0].line
    return {
        "shots": line["shots"],
        "images": line["images"],
        "draws": len(group),
        "val": float(found.value[place]),
        "low": low,
        "high": high,
        "C": statistics.median(C for scored in group for C in scored.line["C"]),
    }


def _laws(results: Sequence[dict[str, Any]], found: Resampled, seed: int) -> PowerLaws | None:
    """The law of what was seen, and those of the resamples; None of too few numbers of images."""
    if len(results) < FEWEST_SIZES:
        return None
    errors = 1 - np.vstack([found.value, found.resamples])
    return resampled_laws([r["images"] for r in results], errors, found.variance, seed=(seed, BEGINNING))


def _said(laws: PowerLaws, now: int, rows: float) -> dict[str, Any]:
    """What of the law stands in the result, in plain values."""
    law = {name: float(getattr(laws, name)[0]) for name in ("a", "b", "c")}
    ahead = [
        {"images": n, "val": value, "low": low, "high": high}
        for n, value, low, high in _prolonged(laws, [times * now for times in AHEAD], rows)
    ]
    return {"law": law, "more": dataclasses.asdict(more_labels(laws, now)), "ahead": ahead}


def _prolonged(laws: PowerLaws, images: Sequence[float], rows: float) -> Iterator[words.Place]:
    """Each number of images with the law's figure there and what 95 % of the resamples' lie between.

    That is never narrower than the interval of a share of ``rows``: where all rows are right, no resample has a wrong
    one.
    """
    figures = np.clip(1 - laws.error(images), 0, 1)  # a law may be above what an error can be, where it began
    ends = np.quantile(figures[1:], (0.025, 0.975), axis=0)
    for n, value, low, high in zip(images, figures[0].tolist(), *ends.tolist(), strict=True):
        least = binomial_interval(value * rows, rows)
        yield n, value, min(low, least[0]), max(high, least[1])


def _line(laws: PowerLaws, results: Sequence[dict[str, Any]], rows: float) -> list[words.Place]:
    """The law from the fewest images to ``FARTHEST`` times the most, at those that were measured, too."""
    measured = [r["images"] for r in results]
    between = np.geomspace(measured[0], FARTHEST * measured[-1], PLACES).tolist()
    return list(_prolonged(laws, sorted({*measured, *between}), rows))
