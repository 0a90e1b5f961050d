"""Stage two: store + heads -> run. Trains one head on cached features.

The functions here that fit are never handed a test row; the test split is read by ``pipeline.stages.score`` alone.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from pipeline.base.errors import HeadError
from pipeline.base.watch import TraceRow
from pipeline.base.workspace import Workspace
from pipeline.heads.exact.path import Step, fit_exact
from pipeline.heads.minibatch.fit import fit_minibatch
from pipeline.heads.minibatch.passes import Epoch
from pipeline.show.trace import observe
from pipeline.stages.learn import words
from pipeline.stages.learn.kept import (
    Fitted,
    TrainResult,
    exact_head,
    learning_rows,
    linear_logits,
    loss_and_accuracy,
    minibatch_head,
    observed,
    save,
    trace_row,
)
from pipeline.stages.learn.settings import EXACT, TrainSettings
from pipeline.store import Cache
from pipeline.store.find import find_cache
from pipeline.store.rows import Rows

SHOWN_STEPS = 20  # of an exact head's iterations; all of them are kept


def train(settings: TrainSettings, desk: Workspace) -> TrainResult:
    """Train one head with settings made."""
    cache = find_cache(settings.cache, desk)
    fitted, chosen = learning_rows(cache, settings, desk)
    began = time.perf_counter()
    fit = _exact if settings.solver == EXACT else _minibatch
    head = fit(cache, fitted, chosen, settings, desk)
    seconds = time.perf_counter() - began
    desk.watch.end_trace()
    if head.converged is False:
        desk.watch.warn(f"not converged: gradient {head.record['grad_norm']:.1e}; a lower --C converges sooner")
    result = save(cache, "train", settings, head, fitted, chosen, seconds, desk)
    desk.watch.say(words.head(result, head))
    return result


def _exact(cache: Cache, fitted: Rows, chosen: Rows, settings: TrainSettings, desk: Workspace) -> Fitted:
    rows: list[TraceRow] = []

    def tell(step: Step) -> None:
        val_loss, val_accuracy = None, None
        if len(chosen):
            weight, bias = step.head()
            val_loss, val_accuracy = loss_and_accuracy(linear_logits(chosen.X, weight, bias), chosen.y)
        rows.append(
            TraceRow(step.n_iter, step.objective, step.accuracy, val_accuracy, observation="", val_loss=val_loss)
        )

    fit = fit_exact(
        fitted.X,
        fitted.y,
        n_classes=len(cache.classes),
        Cs=[settings.C],
        class_weight=settings.weighting,
        class_names=cache.classes,
        device=settings.device,
        on_step=tell,
    )[0]
    rows = observed(rows, len(cache.classes), "iteration")
    for row in thinned(rows):
        desk.watch.trace(row, step="Iteration")
    return exact_head(fit, rows)


def thinned(rows: Sequence[TraceRow]) -> list[TraceRow]:
    """At most SHOWN_STEPS of the rows, evenly spaced, the first and the last among them."""
    if len(rows) <= SHOWN_STEPS:
        return list(rows)
    places = sorted({round(i * (len(rows) - 1) / (SHOWN_STEPS - 1)) for i in range(SHOWN_STEPS)})
    return [rows[i] for i in places]


def _minibatch(cache: Cache, fitted: Rows, chosen: Rows, settings: TrainSettings, desk: Workspace) -> Fitted:
    rows: list[TraceRow] = []

    def tell(_: int, epoch: Epoch) -> None:
        row = trace_row(epoch)
        rows.append(dataclasses.replace(row, observation=observe([*rows, row], len(cache.classes))))
        desk.watch.trace(rows[-1])

    fit = fit_minibatch(
        fitted.X,
        fitted.y,
        n_classes=len(cache.classes),
        configs=[settings.config()],
        X_val=chosen.X if len(chosen) else None,
        y_val=chosen.y if len(chosen) else None,
        class_weight=settings.weighting,
        class_names=cache.classes,
        device=settings.device,
        on_epoch=tell,
    )[0]
    if fit.diverged:
        desk.watch.end_trace()
        raise HeadError(
            f"training diverged after {fit.n_iter} steps: --lr {settings.lr:g} is too high; try {settings.lr / 10:g}"
        )
    return minibatch_head(fit, rows)
