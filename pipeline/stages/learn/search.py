"""Stage two: the best of many heads, chosen on val or by cross-validation, refitted on train + val, then tested once.

The functions that fit and choose are handed train and val rows and nothing else: the test split is read by
``pipeline.stages.score`` alone, once, when the head is fixed.
"""

from __future__ import annotations

import time
from contextlib import nullcontext

from pipeline.base.errors import HeadError
from pipeline.base.interrupt import on_interrupt
from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace
from pipeline.heads.choice import at_the_end
from pipeline.heads.left_out import left_out_logits
from pipeline.runs.folder import Run, kept_from, result_of
from pipeline.show.pictures import svg
from pipeline.stages.learn import words
from pipeline.stages.learn.brackets import minibatch_search, state_of
from pipeline.stages.learn.curve import learning_curve
from pipeline.stages.learn.few_shot import FewShotResult, few_shot
from pipeline.stages.learn.held_out import fold_numbers, of_folds, refit_folds
from pipeline.stages.learn.kept import SEARCH, Choice, TrainResult, exact_fit, keep
from pipeline.stages.learn.settings import ALL, EXACT, SearchSettings
from pipeline.stages.learn.state import SearchState
from pipeline.stages.learn.task import Task, task_of
from pipeline.stages.learn.trials import Ranking, cross_validated, exact_trials
from pipeline.stages.score.evaluate import score
from pipeline.stages.score.sealed import has_test

PATH_PICTURE = "path.svg"


def search(settings: SearchSettings, desk: Workspace) -> TrainResult | FewShotResult:
    """Search with settings made."""
    task = task_of(settings, desk)
    if settings.shots:
        return learning_curve(task) if ALL in settings.shots else few_shot(task)
    if not len(task.val) and not settings.cv:
        raise HeadError(
            f"{task.cache.path.name} has no val rows to choose on: extract with {option('val_fraction')} above 0, or "
            f"give {option('cv', 5)}"
        )
    state = state_of(task)
    with on_interrupt(words.kept_of(settings)), nullcontext() if state is None else state.held():
        digest = None if state is None else state.digest()
        if (run := kept_from(digest, desk)) is None:
            run, result = _searched(task, state)
        else:  # it was killed before it could tidy up
            desk.watch.result(words.kept_before(run.folder))
            result = result_of(run, TrainResult)
        if settings.evaluate and has_test(task.cache):
            score(run, desk, device=settings.device)
        if state is not None and state.digest() is not None:
            state.forget()
    return result


def _searched(task: Task[SearchSettings], state: SearchState | None) -> tuple[Run, TrainResult]:
    """The search itself, and its run."""
    settings, desk = task.settings, task.desk
    began = time.perf_counter()
    found = _exact_search(task) if settings.space == EXACT else minibatch_search(task)
    seconds = time.perf_counter() - began
    desk.watch.result(words.ranking(found.trials, settings))
    choice = Choice(
        found.fit,
        found.learned,
        seconds,
        learned_from=("train", "val") if len(found.learned) > len(task.train) else ("train",),
        val=found.trials[0].val["accuracy"],
        chosen_by=f"{settings.cv} folds of train and val" if settings.cv else "val",
        chosen_from=len(found.trials),
        trials=[t.line() for t in found.trials],
        files=found.files,
        held_out=found.held_out,
        state_sha256=None if state is None else state.digest(),
    )
    run, result = keep(task, SEARCH, choice)
    desk.watch.result(words.head(result, found.fit))
    if settings.space == EXACT and (end := at_the_end(settings.penalties, found.trials[0].settings["C"])):
        desk.watch.warn(words.end_of_path(settings, end))
    return run, result


def _exact_search(task: Task[SearchSettings]) -> Ranking:
    """The path of penalties, ranked, the chosen head, what it is held out from, and the picture of the path."""
    settings, folds = task.settings, None
    if settings.cv:
        folds, rows = fold_numbers(task, settings.cv), task.both
        fits = task.exact(rows, settings.penalties, folds=folds)
        trials = cross_validated(fits, rows, folds)
    else:
        rows = task.train
        fits = task.exact(rows, settings.penalties)
        trials = exact_trials(task, fits, rows)
    ranked = sorted(trials, key=lambda t: t.order(settings.metric))
    C = ranked[0].settings["C"]
    if settings.refit and not settings.cv:  # with cross-validation it has learned from both already
        rows, folds = task.both, refit_folds(task)
        fits = task.exact(rows, [C], folds=folds)
    whole = next(fit for fit in fits if fit.C == C and fit.fold < 0)
    held_out = None if folds is None else of_folds(task, left_out_logits(fits, C, rows.X, folds), folds)
    files = {PATH_PICTURE: svg(words.path(trials, settings.metric, C, "left out" if settings.cv else "val"))}
    return Ranking(ranked, exact_fit(whole), rows, files, held_out)
