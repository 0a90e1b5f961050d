"""A fitted head on its way into a run: what a solver gives, what is recorded of it, what is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.watch import TraceRow
from pipeline.heads.artifact import Head, save_head
from pipeline.heads.exact.path import ExactFit
from pipeline.heads.minibatch.passes import Epoch, FitResult
from pipeline.heads.scores.calibration import fit_temperature
from pipeline.heads.scores.tally import head_figures
from pipeline.runs import folder as runs
from pipeline.runs.folder import cache_record
from pipeline.runs.held_out import FILE, HeldOut
from pipeline.runs.recipe import about_of
from pipeline.show.trace import observe
from pipeline.stages.learn.held_out import of_val
from pipeline.stages.learn.settings import EXACT
from pipeline.stages.learn.task import Task
from pipeline.store import Cache
from pipeline.store.rows import Rows

SEARCH = "search"  # the stage that keeps what it says of rows that it has not learned from


@dataclass(frozen=True)
class TrainResult:
    """A trained head: its run's folder, accuracies on val (None without val rows) and train, and seconds of fitting.

    ``chosen_by`` says what it was chosen by out of ``chosen_from`` candidates (settings or epochs), None where nothing
    was chosen; a figure that chose is optimistic. Logits are divided by ``temperature`` before probabilities are made
    of them; it was fitted on the rows ``temperature_from``, None where there were none (then it is 1).

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
    chosen_by: str | None = None
    chosen_from: int = 1
    temperature: float = 1.0
    temperature_from: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "run": str(self.run)}


@dataclass(frozen=True, eq=False)
class Fit:
    """A head as a solver gives it: tensors on raw features, the trace, and what the run's record says of it."""

    kind: str
    tensors: Mapping[str, NDArray[np.float32]]
    trace: Sequence[TraceRow]
    steps: int
    converged: bool | None
    record: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Choice:
    """A head that is to be kept, and how it came about.

    ``val`` is the accuracy that goes with its choice out of ``chosen_from`` by ``chosen_by``; ``held_out`` what
    heads of its settings say of rows that they did not learn from, of val where it is None and val was not learned.
    ``learned`` are the rows that it has learned from, ``learned_from`` the splits that they are of; ``trials`` the
    lines of a search, best first; ``files`` more files of the run, name -> text.
    """

    fit: Fit
    learned: Rows
    seconds: float
    learned_from: Sequence[str] = ("train",)
    val: float | None = None
    chosen_by: str | None = None
    chosen_from: int = 1
    trials: Sequence[Mapping[str, Any]] = ()
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    held_out: HeldOut | None = None
    state_sha256: str | None = None  # of what the head came of, where that is removed when it is kept


def exact_fit(found: ExactFit, trace: Sequence[TraceRow] = ()) -> Fit:
    """An exact fit as what a run keeps."""
    names = ("C", "objective", "loss", "grad_norm", "n_iter", "n_evals", "converged")
    record = {"solver": EXACT, **{name: getattr(found, name) for name in names}}
    return Fit("linear", {"weight": found.weight, "bias": found.bias}, trace, found.n_iter, found.converged, record)


def observed(rows: Sequence[TraceRow], n_classes: int, step: str = "epoch") -> list[TraceRow]:
    """The rows with what their numbers say, each judged by those before it."""
    return [dataclasses.replace(row, observation=observe(rows[: i + 1], n_classes, step)) for i, row in enumerate(rows)]


def minibatch_fit(found: FitResult, trace: Sequence[TraceRow]) -> Fit:
    """A minibatch fit as what a run keeps."""
    return Fit(found.config.kind, found.tensors, trace, found.best_epoch, None, dataclasses.asdict(found.config))


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


def make_head(cache: Cache, fit: Fit, temperature: float = 1.0) -> Head:
    """The artifact of a head."""
    return Head(
        kind=fit.kind,
        tensors={name: np.asarray(tensor, np.float32) for name, tensor in fit.tensors.items()},
        classes=cache.classes,
        key=cache.key,
        dim=cache.dim,
        temperature=temperature,
        meta={"solver": fit.record["solver"], "pretrained": about_of(cache)["pretrained"]},
    )


def keep(task: Task[Any], stage: str, choice: Choice) -> tuple[runs.Run, TrainResult]:
    """Keep a head as a run.

    Raises:
        HeadError: the run cannot be written.
    """
    cache, fit, val, held_out = task.cache, choice.fit, choice.val, choice.held_out
    temperature, source = 1.0, None
    if "val" not in choice.learned_from and len(task.val):
        logits = make_head(cache, fit).logits(task.val.X)
        val = float((logits.argmax(axis=1) == task.val.y).mean()) if val is None else val
        temperature, source = fit_temperature(logits, task.val.y), "val"
        held_out = of_val(task, logits) if stage == SEARCH and held_out is None else held_out
    elif held_out is not None:
        learned = " and ".join(choice.learned_from)
        temperature, source = fit_temperature(held_out.logits, held_out.y), f"{held_out.folds} folds of {learned}"
    head = make_head(cache, fit, temperature)
    about = {**cache_record(cache), "learned_from": list(choice.learned_from), "state_sha256": choice.state_sha256}
    settings, name = task.settings, cache.path.name.removesuffix(".h5")
    with runs.new_run(task.desk, stage=stage, name=name, settings=settings, about=about) as (draft, folder):
        result = TrainResult(
            run=folder,
            solver=str(fit.record["solver"]),
            val=val,
            train=head_figures(head, choice.learned.X, choice.learned.y)["accuracy"],
            seconds=choice.seconds,
            steps=fit.steps,
            converged=fit.converged,
            trials=max(1, len(choice.trials)),
            chosen_by=choice.chosen_by,
            chosen_from=choice.chosen_from,
            temperature=head.temperature,
            temperature_from=source,
        )
        save_head(draft.folder, head)
        draft.write_lines("trace.jsonl", [dataclasses.asdict(row) for row in fit.trace])
        if choice.trials:
            draft.write_lines("trials.jsonl", choice.trials)
        if held_out is not None:
            draft.write_bytes(FILE, held_out.file())
        for file, text in choice.files.items():
            draft.write_text(file, text)
        draft.write_json("metrics.json", {**result.to_json(), "config": dict(fit.record)})
    return draft.run, result
