"""Few-shot: heads from k images of each class, drawn several times; mean and deviation.

Each draw's penalty is chosen on val, so its figure there is optimistic. Test rows are read when all heads are fixed,
through ``pipeline.stages.score``, and decide nothing.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.base.errors import HeadError
from pipeline.base.spelling import option
from pipeline.base.words import many
from pipeline.heads.baselines import cosine_centroids, nearest_by_cosine
from pipeline.heads.exact.path import ExactFit
from pipeline.heads.scores.tally import linear_figures
from pipeline.runs import folder as runs
from pipeline.runs.folder import cache_record
from pipeline.stages.learn import words
from pipeline.stages.learn.settings import SearchSettings
from pipeline.stages.learn.task import Task
from pipeline.stages.learn.trials import exact_trials
from pipeline.stages.score.ledger import Scorer
from pipeline.stages.score.sealed import has_test, open_test
from pipeline.store.rows import Rows

STAGE = "fewshot"  # of the run, a learning curve's, too


@dataclass(frozen=True)
class FewShotResult:
    """The run's folder and, for each number of shots, figures of the draws.

    Few-shot: mean and deviation over them. ``val`` and ``test`` are the metric's, ``accuracy`` the head's accuracy and
    ``centroid`` that of the nearest class mean by cosine on the same images, both on test where it is scored, otherwise
    on val. ``scored_before``: how many other runs had been scored on these test rows; None where these were not.

    A learning curve (``all`` among the shots): how many train ``images`` there were, the mean ``val`` figure (the
    metric's; accuracy where that is the log-loss) of rows that did not choose the head, and its 95 % interval, ``low``
    to ``high``, over draws and val images. ``law`` has a, b and c of 1 - val = a + b images^-c, ``more`` what takes a
    point off the error (see :class:`pipeline.heads.scores.power_law.MoreLabels`), ``ahead`` the law's val figure, with
    an interval, at 2, 5 and 10 times as many images; None where there are too few numbers of shots for a law.

    ``C`` is the median of the draws' penalties, ``chosen_by`` what each was chosen on.
    """

    run: Path
    results: list[dict[str, Any]]
    seconds: float
    scored_before: int | None = None
    chosen_by: str = "val"
    law: dict[str, float] | None = None
    more: dict[str, Any] | None = None
    ahead: list[dict[str, Any]] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "run": str(self.run)}


def few_shot(task: Task[SearchSettings]) -> FewShotResult:
    """Draw, fit, choose on val; then score on test.

    Raises:
        HeadError: no val rows to choose on.
    """
    settings, cache, desk = task.settings, task.cache, task.desk
    require_val(task)
    shots = sorted({k for k in settings.shots or () if isinstance(k, int)})
    say_what_is_taken_whole(task, shots)
    began = time.perf_counter()
    plan = [(k, draw) for k in shots for draw in range(settings.draws)]
    heads: list[tuple[int, int, ExactFit, Mapping[str, float], torch.Tensor]] = []
    with desk.watch.track("few-shot", len(plan), unit="draws") as tracker:
        for k, draw in plan:
            rows = drawn(task.train, k, seed=(settings.seed, draw))
            centroids = cosine_centroids(rows.X, rows.y, len(cache.classes))
            heads.append((k, draw, *_choose(task, rows), centroids))
            tracker.advance()
    seconds = time.perf_counter() - began
    name, about = cache.path.name.removesuffix(".h5"), cache_record(cache)
    with runs.new_run(desk, stage=STAGE, name=name, settings=settings, about=about) as (
        draft,
        folder,
    ):
        scorer = Scorer(folder.name, draft.folder.name)
        test = open_test(cache, scorer, desk) if settings.evaluate and has_test(cache) else None
        draws, shown = [], task.val if test is None else test.rows
        scored: list[Mapping[str, float]] = [val for *_, val, _ in heads]
        if test is not None:
            scored = [*linear_figures([(fit.weight, fit.bias) for _, _, fit, *_ in heads], shown.X, shown.y)]
        for (k, draw, fit, val, centroids), own in zip(heads, scored, strict=True):
            draws.append(
                {
                    "shots": k,
                    "draw": draw,
                    "C": fit.C,
                    "val": val[settings.metric],
                    "test": None if test is None else own[settings.metric],
                    "accuracy": own["accuracy"],
                    "centroid": float((nearest_by_cosine(centroids, shown.X) == shown.y).mean()),
                }
            )
        results = [_summary(k, [d for d in draws if d["shots"] == k]) for k in shots]
        found = FewShotResult(folder, results, seconds, test.scored_before if test else None)
        draft.write_lines("draws.jsonl", draws)
        draft.write_json("metrics.json", {n: v for n, v in found.to_json().items() if n != "run"})
    desk.watch.result(words.few_shot(results, settings))
    desk.watch.result(f"{many(len(plan), 'draw')} -> {folder}")
    return found


def require_val(task: Task[SearchSettings]) -> None:
    """Raises HeadError where there are no val rows."""
    if not len(task.val):
        raise HeadError(
            f"{task.cache.path.name} has no val rows to choose on: extract with {option('val_fraction')} above 0"
        )


def say_what_is_taken_whole(task: Task[SearchSettings], shots: Sequence[int]) -> None:
    """Say of each number of shots how many classes have fewer train images."""
    images = np.bincount(task.train.y)
    for k in shots:
        if fewer := int(((images > 0) & (images < k)).sum()):
            task.desk.watch.say(words.taken_whole(k, fewer, len(task.cache.classes)))


def drawn(rows: Rows, k: int, *, seed: tuple[int, int]) -> Rows:
    """k rows of each class, drawn without replacement; all of a class that has fewer.

    Of one seed the rows for a smaller k are among those for a larger one.
    """
    rng = np.random.default_rng(seed)
    by_class = np.argsort(rows.y, kind="stable")
    members = np.split(by_class, np.flatnonzero(np.diff(rows.y[by_class])) + 1)
    picked = [rng.permutation(of_one)[:k] for of_one in members]
    places: NDArray[np.int64] = np.sort(np.concatenate(picked))
    return Rows(rows.X[places], rows.y[places])


def _choose(task: Task[SearchSettings], rows: Rows) -> tuple[ExactFit, Mapping[str, float]]:
    """The best head on val of the path on the drawn rows, and its figures there."""
    metric = task.settings.metric
    fits = task.exact(rows, task.settings.penalties)
    trials = exact_trials(task, fits, rows)
    best = min(range(len(fits)), key=lambda i: trials[i].order(metric))
    return fits[best], trials[best].val


def _summary(k: int, draws: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def spread(name: str) -> tuple[float | None, float | None]:
        values = [d[name] for d in draws if d[name] is not None]
        if not values:
            return None, None
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None

    means: dict[str, float | None] = {}
    for name in ("val", "test", "accuracy", "centroid"):
        means[name], means[f"{name}_deviation"] = spread(name)
    return {"shots": k, "draws": len(draws), **means, "C": statistics.median(d["C"] for d in draws)}
