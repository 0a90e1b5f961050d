"""A fitted head on its way into a run: what a solver gives, what is recorded of it, what is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base import settings as st
from pipeline.base.errors import HeadError
from pipeline.base.watch import TraceRow
from pipeline.base.workspace import Workspace
from pipeline.heads.artifact import Head, save_head
from pipeline.heads.minibatch.passes import Epoch
from pipeline.heads.scores.metrics import log_softmax
from pipeline.runs import folder as runs
from pipeline.runs.folder import cache_record
from pipeline.show.trace import observe
from pipeline.stages.learn.settings import EXACT, HeadSettings
from pipeline.store import Cache
from pipeline.store.rows import Rows, load_rows, with_views


@dataclass(frozen=True)
class TrainResult:
    """A trained head: its run's folder, accuracies on val (None without val rows) and train, and seconds of fitting.

    ``steps`` are the iterations of an exact head, the epoch that was kept of a minibatch one; ``converged`` is None
    for a minibatch head.
    """

    run: Path
    solver: str
    val: float | None
    train: float
    seconds: float
    steps: int
    converged: bool | None
    trials: int = 1

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "run": str(self.run)}


@dataclass(frozen=True, eq=False)
class Fitted:
    """A head as a solver gives it: tensors on raw features, the trace, and what the run's record says of it."""

    kind: str
    tensors: Mapping[str, NDArray[np.float32]]
    trace: Sequence[TraceRow]
    steps: int
    converged: bool | None
    record: Mapping[str, Any]


def learning_rows(cache: Cache, settings: HeadSettings, desk: Workspace) -> tuple[Rows, Rows]:
    """The train and val rows, checked before long work.

    Raises:
        HeadError: no train rows, or a folder that cannot be written.
    """
    runs.require_writable(desk)
    fitted, chosen = load_rows(cache, "train"), load_rows(cache, "val")
    if settings.views:
        fitted = with_views(cache, fitted, settings.views)
    if not len(fitted):
        raise HeadError(
            f"{cache.path.name} has no labelled train rows: name another cache, or extract a source with train images"
        )
    desk.watch.say(
        f"{cache.path.name}: {len(fitted):,} train rows, {len(chosen):,} val rows, {cache.dim:,} features, "
        f"{len(cache.classes)} classes"
    )
    return fitted, chosen


def exact_head(fit: Any, trace: Sequence[TraceRow] = ()) -> Fitted:
    """An exact fit as what a run keeps."""
    names = ("C", "objective", "loss", "grad_norm", "n_iter", "n_evals", "converged")
    record = {"solver": EXACT, **{name: getattr(fit, name) for name in names}}
    return Fitted("linear", {"weight": fit.weight, "bias": fit.bias}, trace, fit.n_iter, fit.converged, record)


def observed(rows: Sequence[TraceRow], n_classes: int, step: str = "epoch") -> list[TraceRow]:
    """The rows with what their numbers say, each judged by those before it."""
    return [dataclasses.replace(row, observation=observe(rows[: i + 1], n_classes, step)) for i, row in enumerate(rows)]


def minibatch_head(fit: Any, trace: Sequence[TraceRow]) -> Fitted:
    """A minibatch fit as what a run keeps."""
    return Fitted(fit.config.kind, fit.tensors, trace, fit.best_epoch, None, dataclasses.asdict(fit.config))


def trace_row(epoch: Epoch) -> TraceRow:
    """A minibatch epoch as a row of the training trace."""
    return TraceRow(
        epoch=epoch.epoch,
        loss=epoch.loss,
        accuracy=epoch.accuracy,
        val_accuracy=epoch.val_accuracy,
        lr=epoch.lr,
        val_loss=epoch.val_loss,
    )


def linear_logits(X: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any]) -> NDArray[np.float32]:
    """Logits (n, C) float32 of rows (n, D) by a linear head on raw features."""
    return np.asarray(X, np.float32) @ weight.T.astype(np.float32) + bias.astype(np.float32)


def loss_and_accuracy(logits: NDArray[np.float32], y: NDArray[np.int64]) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of logits (n, C)."""
    loss = -log_softmax(logits)[np.arange(len(y)), y].mean()
    return float(loss), float((logits.argmax(axis=1) == y).mean())


def make_head(cache: Cache, fitted: Fitted) -> Head:
    """The artifact of a fitted head."""
    return Head(
        kind=fitted.kind,  # type: ignore[arg-type]  # the kinds are the same
        tensors={name: np.asarray(tensor, np.float32) for name, tensor in fitted.tensors.items()},
        classes=cache.classes,
        key=cache.key,
        dim=cache.dim,
        meta={"solver": fitted.record["solver"], "pretrained": cache.about["pretrained"]},
    )


def save(
    cache: Cache,
    stage: str,
    settings: HeadSettings,
    fitted: Fitted,
    learned: Rows,
    chosen: Rows,
    seconds: float,
    desk: Workspace,
    *,
    trials: Sequence[Mapping[str, Any]] = (),
    val: float | None = None,
    learned_from: Sequence[str] = ("train",),
    files: Mapping[str, str] | None = None,
) -> TrainResult:
    """Keep a head as a run; ``val`` is what it was chosen by, where it may have learned from val, too."""
    head = make_head(cache, fitted)
    if val is None and len(chosen):
        val = loss_and_accuracy(head.logits(chosen.X), chosen.y)[1]
    name = cache.path.name.removesuffix(".h5")
    about = {**cache_record(cache), "learned_from": list(learned_from)}
    with runs.new_run(desk, stage=stage, name=name, settings=st.record(settings), about=about) as (
        draft,
        folder,
    ):
        result = TrainResult(
            run=folder,
            solver=str(fitted.record["solver"]),
            val=val,
            train=loss_and_accuracy(head.logits(learned.X), learned.y)[1],
            seconds=seconds,
            steps=fitted.steps,
            converged=fitted.converged,
            trials=max(1, len(trials)),
        )
        save_head(draft.folder, head)
        draft.write_lines("trace.jsonl", [dataclasses.asdict(row) for row in fitted.trace])
        if trials:
            draft.write_lines("trials.jsonl", trials)
        for file, text in (files or {}).items():
            (draft.folder / file).write_text(text, encoding="utf-8")
        draft.write_json("metrics.json", {**result.to_json(), "config": dict(fitted.record)})
    return result
