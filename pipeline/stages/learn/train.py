"""Stage two: store + heads -> run. Trains one head on cached features.

The functions here that fit are never handed a test row; the test split is read by ``pipeline.stages.score`` alone.
"""

from __future__ import annotations

import dataclasses
import time

from pipeline.base.errors import HeadError
from pipeline.base.spelling import option
from pipeline.base.watch import TraceRow
from pipeline.base.workspace import Workspace
from pipeline.heads.exact.path import Step
from pipeline.heads.minibatch.fit import fit_minibatch, rows_bytes
from pipeline.heads.minibatch.passes import Epoch
from pipeline.heads.scores.tally import linear_figures
from pipeline.show.trace import observe
from pipeline.stages.learn import words
from pipeline.stages.learn.kept import (
    Choice,
    Fit,
    TrainResult,
    exact_fit,
    keep,
    minibatch_fit,
    observed,
    trace_row,
)
from pipeline.stages.learn.settings import EXACT, TrainSettings
from pipeline.stages.learn.task import Task, task_of


def train(settings: TrainSettings, desk: Workspace) -> TrainResult:
    """Train one head with settings made."""
    task = task_of(settings, desk)
    began = time.perf_counter()
    fit = _exact(task) if settings.solver == EXACT else _minibatch(task)
    seconds = time.perf_counter() - began
    desk.watch.end_trace()
    if fit.converged is False:
        desk.watch.warn(
            f"not converged: gradient {fit.record['grad_norm']:.1e}; a lower {option('C')} converges sooner"
        )
    choice = Choice(fit, task.train, seconds)
    if settings.solver != EXACT and len(task.val):
        choice = dataclasses.replace(choice, chosen_by="val", chosen_from=len(fit.trace))  # of its epochs
    _, result = keep(task, "train", choice)
    desk.watch.result(words.head(result, fit))
    if result.temperature_from is None:
        desk.watch.say(words.no_temperature())
    return result


def _exact(task: Task[TrainSettings]) -> Fit:
    rows: list[TraceRow] = []

    def tell(step: Step) -> None:
        val_loss, val_accuracy = None, None
        if len(task.val):
            weight, bias = step.head()
            [of_val] = linear_figures([(weight, bias)], task.val.X, task.val.y)
            val_loss, val_accuracy = of_val["log_loss"], of_val["accuracy"]
        rows.append(
            TraceRow(step.n_iter, step.objective, step.accuracy, val_accuracy, observation="", val_loss=val_loss)
        )

    [found] = task.exact(task.train, [task.settings.C], on_step=tell)
    rows = observed(rows, len(task.cache.classes), "iteration")
    for row in rows:
        task.desk.watch.trace(row, of=len(rows), step="Iteration")
    return exact_fit(found, rows)


def _minibatch(task: Task[TrainSettings]) -> Fit:
    rows: list[TraceRow] = []
    settings, watch = task.settings, task.desk.watch

    def tell(_: int, epoch: Epoch) -> None:
        row = trace_row(epoch)
        rows.append(dataclasses.replace(row, observation=observe([*rows, row], len(task.cache.classes))))
        watch.trace(rows[-1], of=settings.epochs)

    problem = task.problem(task.train, val=task.val)
    task.say_if_not_held(rows_bytes(problem))
    [found] = fit_minibatch(problem, [settings.config()], on_epoch=tell)
    if found.diverged:
        watch.end_trace()
        rate = found.config.lr
        assert rate is not None
        raise HeadError(
            f"training diverged after {found.n_iter} steps: {option('lr', rate)} is too high; try {rate / 10:g}"
        )
    return minibatch_fit(found, rows)
