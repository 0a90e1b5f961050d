"""A search's candidates: their figures, and their order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.base.schema import Count, Malformed, Rule, made
from pipeline.heads.choice import METRICS, order
from pipeline.heads.exact.path import ExactFit
from pipeline.heads.left_out import left_out_figures
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.passes import FitResult
from pipeline.heads.scores.tally import head_figures, linear_figures
from pipeline.runs.held_out import HeldOut
from pipeline.stages.learn.kept import Fit, make_head, minibatch_fit
from pipeline.stages.learn.task import Task
from pipeline.store.rows import Rows


@dataclass(frozen=True, eq=False)
class Trial:
    """One candidate: its settings, its figures on train and on what it is chosen by, and what else is recorded."""

    settings: Mapping[str, Any]
    val: Mapping[str, float]  # by metric
    train: Mapping[str, float]
    note: str = ""
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def order(self, metric: str) -> tuple[float, float, float]:
        """What sorts trials, the best first."""
        return order(self.val, metric, self.settings.get("C", 0.0))

    def line(self) -> dict[str, Any]:
        """One line of trials.jsonl."""
        return {**self.settings, "val": self.val, "train": self.train, "note": self.note, **self.record}


@dataclass(frozen=True, eq=False)
class Ranking:
    """What a search came to: the trials, best first; the best one's head, fitted once more on all it is to learn from.

    ``learned`` are those rows; ``files`` more files of the run, name -> text; ``held_out`` what such a head says of
    rows that it did not learn from, where there are any.
    """

    trials: Sequence[Trial]
    fit: Fit
    learned: Rows
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    held_out: HeldOut | None = None


def exact_trials(task: Task[Any], fits: Sequence[ExactFit], train: Rows) -> list[Trial]:
    """Exact heads with their figures on val and on the rows ``train`` that they have learned from."""
    heads = [(fit.weight, fit.bias) for fit in fits]
    val, own = (linear_figures(heads, rows.X, rows.y) for rows in (task.val, train))
    return [
        Trial(
            {"C": fit.C},
            of_val,
            of_train,
            "" if fit.converged else "not converged",
            {"n_iter": fit.n_iter, "grad_norm": fit.grad_norm},
        )
        for fit, of_val, of_train in zip(fits, val, own, strict=True)
    ]


def cross_validated(fits: Sequence[ExactFit], rows: Rows, folds: NDArray[np.int64]) -> list[Trial]:
    """The heads of each penalty, with figures of each row by the one that was fitted without its fold.

    In the order in which ``fits`` has the penalties.
    """
    whole = [fit for fit in fits if fit.fold < 0]
    left_out = left_out_figures(fits, rows.X, rows.y, folds)
    train = linear_figures([(fit.weight, fit.bias) for fit in whole], rows.X, rows.y)
    trials = []
    for C, own in zip((fit.C for fit in whole), train, strict=True):
        used = [fit for fit in fits if fit.C == C]
        note = "" if all(fit.converged for fit in used) else "not converged"
        record = {"n_iter": sum(fit.n_iter for fit in used), "grad_norm": max(fit.grad_norm for fit in used)}
        trials.append(Trial({"C": C}, left_out[C], own, note, record))
    return trials


def _is_config(told: Any) -> bool:
    try:
        made(told, MinibatchConfig)
    except Malformed:
        return False
    return True


_ByMetric = Annotated[
    dict[str, float], Rule(f"an object of {', '.join(METRICS)}", lambda figures: figures.keys() >= set(METRICS))
]


class Line(TypedDict):
    """A fit of a search in plain JSON values: its configuration, its figures on val and train, and its epochs."""

    config: Annotated[dict[str, Any], Rule("a head's configuration", _is_config)]
    val: _ByMetric
    train: _ByMetric
    note: str
    epochs: Count


def line_of(task: Task[Any], fit: FitResult) -> Line:
    """A fit as one line."""
    head = make_head(task.cache, minibatch_fit(fit, ()))
    val, train = (head_figures(head, rows.X, rows.y) for rows in (task.val, task.train))
    config = dataclasses.asdict(fit.config)
    note = "diverged" if fit.diverged else ""
    return {"config": config, "val": val, "train": train, "note": note, "epochs": len(fit.trace)}


def trial_of(line: Line, space: Mapping[str, Any]) -> Trial:
    """A line as a trial that shows what the space varies."""
    config = dataclasses.asdict(made(line["config"], MinibatchConfig))
    varied = {n: config[n] for n, choice in space.items() if not (isinstance(choice, list) and len(choice) < 2)}
    record = {"config": config, "epochs": line["epochs"]}
    return Trial({**varied, "epochs": line["epochs"]}, line["val"], line["train"], line["note"], record)
