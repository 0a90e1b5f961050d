"""Stage two: the best of many heads, chosen on val or by cross-validation, refitted on train + val, then tested once.

The functions that fit and choose are handed train and val rows and nothing else: the test split is read by
``pipeline.stages.score`` alone, once, when the head is fixed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from pipeline.base.errors import HeadError
from pipeline.base.workspace import Workspace
from pipeline.heads.exact.path import ExactFit, fit_exact
from pipeline.show.pictures import svg
from pipeline.stages.learn import words
from pipeline.stages.learn.brackets import minibatch_search
from pipeline.stages.learn.few_shot import FewShotResult, few_shot
from pipeline.stages.learn.kept import Choice, TrainResult, exact_fit, keep, linear_logits
from pipeline.stages.learn.settings import EXACT, SearchSettings
from pipeline.stages.learn.task import Task, task_of
from pipeline.stages.learn.trials import Ranking, Trial, exact_trial, figures
from pipeline.stages.score.evaluate import score
from pipeline.stages.score.sealed import has_test
from pipeline.store.rows import Rows

PATH_PICTURE = "path.svg"


def search(settings: SearchSettings, desk: Workspace) -> TrainResult | FewShotResult:
    """Search with settings made."""
    task = task_of(settings, desk)
    if settings.shots:
        return few_shot(task)
    if not len(task.val) and not settings.cv:
        raise HeadError(
            f"{task.cache.path.name} has no val rows to choose on: extract with --val-fraction above 0, or give --cv 5"
        )
    began = time.perf_counter()
    found = _exact_search(task) if settings.space == EXACT else minibatch_search(task)
    seconds = time.perf_counter() - began
    desk.watch.show(words.ranking(found.trials, settings))
    choice = Choice(
        found.fit,
        found.learned,
        seconds,
        learned_from=("train", "val") if len(found.learned) > len(task.train) else ("train",),
        val=found.trials[0].val["accuracy"],
        trials=[t.line() for t in found.trials],
        files=found.files,
    )
    run, result = keep(task, "search", choice)
    desk.watch.say(words.head(result, found.fit))
    if settings.evaluate and has_test(task.cache):
        score(run, desk)
    return result


def _exact_search(task: Task[SearchSettings]) -> Ranking:
    """The path of penalties, ranked, the chosen head, and the picture of the path."""
    settings = task.settings
    if settings.cv:
        rows = task.both
        folds = fold_numbers(rows.y, settings.cv, settings.seed)
        fits = fit_exact(task.problem(rows, folds=folds), settings.penalties)
        trials = [_cross_validated(C, fits, rows, folds) for C in settings.penalties]
    else:
        rows = task.train
        fits = fit_exact(task.problem(rows), settings.penalties)
        trials = [exact_trial(task, fit, rows) for fit in fits]
    # Equal figures go to the stronger penalty: the simpler head.
    ranked = sorted(trials, key=lambda t: (*t.rank(settings.metric), t.settings["C"]))
    C = ranked[0].settings["C"]
    best = next(fit for fit in fits if fit.fold < 0 and fit.C == C)
    if settings.refit and not settings.cv:  # with cross-validation it has learned from both already
        rows = task.both
        best = fit_exact(task.problem(rows), [C])[0]
    return Ranking(ranked, exact_fit(best), rows, {PATH_PICTURE: svg(words.path(trials, settings.metric, C))})


def _cross_validated(C: float, fits: Sequence[ExactFit], rows: Rows, folds: NDArray[np.int64]) -> Trial:
    """Figures of each row by the head that was fitted without its fold."""
    used = [fit for fit in fits if fit.C == C]
    whole = next(fit for fit in used if fit.fold < 0)
    held_out = np.empty((len(rows), len(whole.bias)), np.float32)
    for fit in used:
        if fit.fold >= 0:
            out = folds == fit.fold
            held_out[out] = linear_logits(rows.X[out], fit.weight, fit.bias)
    train = figures(linear_logits(rows.X, whole.weight, whole.bias), rows.y)
    note = "" if all(fit.converged for fit in used) else "not converged"
    record = {"n_iter": sum(fit.n_iter for fit in used), "grad_norm": max(fit.grad_norm for fit in used)}
    return Trial({"C": C}, figures(held_out, rows.y), train, note, record)


def fold_numbers(y: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold (n,) that each row is left out in, stratified by class.

    Raises:
        HeadError: a class has fewer rows than there are folds.
    """
    fewest = int(np.bincount(y)[np.unique(y)].min())
    if fewest < folds:
        raise HeadError(f"--cv {folds}: the smallest class has {fewest} rows; give at most {fewest} folds")
    numbers = np.empty(len(y), np.int64)
    split = StratifiedKFold(folds, shuffle=True, random_state=seed).split(np.zeros((len(y), 1)), y)
    for number, (_, out) in enumerate(split):
        numbers[out] = number
    return numbers
