"""Stage two: the best of many heads, chosen on val or by cross-validation, refitted on train + val, then tested once.

The functions that fit and choose are handed train and val rows and nothing else: the test split is read by
``pipeline.stages.score.evaluate`` alone, once, when the head is fixed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from pipeline.base.errors import HeadError
from pipeline.base.workspace import Workspace
from pipeline.heads.exact.path import ExactFit, fit_exact
from pipeline.show.pictures import svg
from pipeline.stages.learn import words
from pipeline.stages.learn.brackets import minibatch_search
from pipeline.stages.learn.few_shot import FewShotResult, run_few_shot
from pipeline.stages.learn.kept import Fitted, TrainResult, exact_head, learning_rows, linear_logits, save
from pipeline.stages.learn.settings import EXACT, SearchSettings
from pipeline.stages.learn.trials import Trial, both, exact_trial, figures
from pipeline.stages.score.evaluate import evaluate
from pipeline.stages.score.settings import EvaluateSettings
from pipeline.store import Cache
from pipeline.store.find import find_cache
from pipeline.store.rows import Rows

PATH_PICTURE = "path.svg"


def search(settings: SearchSettings, desk: Workspace) -> TrainResult | FewShotResult:
    """Search with settings made."""
    cache = find_cache(settings.cache, desk)
    if settings.shots:
        return run_few_shot(cache, settings, desk)
    fitted, chosen = learning_rows(cache, settings, desk)
    if not len(chosen) and not settings.cv:
        raise HeadError(
            f"{cache.path.name} has no val rows to choose on: extract with --val-fraction above 0, or give --cv 5"
        )
    began = time.perf_counter()
    if settings.space == EXACT:
        trials, best, files = _exact_search(cache, fitted, chosen, settings)
    else:
        trials, best, files = minibatch_search(cache, fitted, chosen, settings, desk)
    seconds = time.perf_counter() - began
    desk.watch.show(words.ranking(trials, settings))
    learned = both(fitted, chosen) if settings.refit or settings.cv else fitted
    result = save(
        cache,
        "search",
        settings,
        best,
        learned,
        chosen,
        seconds,
        desk,
        trials=[t.line() for t in trials],
        val=trials[0].val["accuracy"],
        learned_from=("train", "val") if len(learned) > len(fitted) else ("train",),
        files=files,
    )
    desk.watch.say(words.head(result, best))
    if settings.evaluate and len(cache.rows("test")):
        evaluate(EvaluateSettings(run=str(result.run)), desk)
    return result


def _exact_search(
    cache: Cache, fitted: Rows, chosen: Rows, settings: SearchSettings
) -> tuple[list[Trial], Fitted, dict[str, str]]:
    """The path of penalties, ranked, the chosen head, and the picture of the path."""
    options: dict[str, Any] = {
        "n_classes": len(cache.classes),
        "class_weight": settings.weighting,
        "class_names": cache.classes,
        "device": settings.device,
    }
    if settings.cv:
        rows = both(fitted, chosen)
        folds = fold_numbers(rows.y, settings.cv, settings.seed)
        fits = fit_exact(rows.X, rows.y, Cs=settings.penalties, folds=folds, **options)
        trials = [_cross_validated(C, fits, rows, folds, cache) for C in settings.penalties]
    else:
        rows = fitted
        fits = fit_exact(fitted.X, fitted.y, Cs=settings.penalties, **options)
        trials = [exact_trial(fit, fitted, chosen, cache) for fit in fits]
    # Equal figures go to the stronger penalty: the simpler head.
    ranked = sorted(trials, key=lambda t: (*t.rank(settings.metric), t.settings["C"]))
    best_C = ranked[0].settings["C"]
    best = next(fit for fit in fits if fit.fold < 0 and best_C == fit.C)
    if settings.refit and not settings.cv:  # with cross-validation it has learned from both already
        rows = both(fitted, chosen)
        best = fit_exact(rows.X, rows.y, Cs=[best_C], **options)[0]
    return ranked, exact_head(best), {PATH_PICTURE: svg(words.path(trials, settings.metric, best_C))}


def _cross_validated(C: float, fits: Sequence[ExactFit], rows: Rows, folds: NDArray[np.int64], cache: Cache) -> Trial:
    """Figures of each row by the head that was fitted without its fold."""
    held_out = np.empty((len(rows), len(cache.classes)), np.float32)
    used = [fit for fit in fits if fit.C == C]
    for fit in used:
        if fit.fold >= 0:
            out = folds == fit.fold
            held_out[out] = linear_logits(rows.X[out], fit.weight, fit.bias)
    whole = next(fit for fit in used if fit.fold < 0)
    train = figures(linear_logits(rows.X, whole.weight, whole.bias), rows.y, cache.classes)
    note = "" if all(fit.converged for fit in used) else "not converged"
    record = {"n_iter": sum(fit.n_iter for fit in used), "grad_norm": max(fit.grad_norm for fit in used)}
    return Trial({"C": C}, figures(held_out, rows.y, cache.classes), train, note, record)


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
