"""A search's candidates: their figures, and their order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.exact.path import ExactFit
from pipeline.heads.minibatch.passes import FitResult
from pipeline.heads.scores.metrics import classification_report
from pipeline.stages.learn.kept import (
    linear_logits,
    make_head,
    minibatch_head,
)
from pipeline.stages.learn.settings import METRICS
from pipeline.store import Cache
from pipeline.store.rows import Rows


@dataclass(frozen=True, eq=False)
class Trial:
    """One candidate: its settings, its figures on train and on what it is chosen by, and what else is recorded."""

    settings: Mapping[str, Any]
    val: Mapping[str, float]  # by metric
    train: Mapping[str, float]
    note: str = ""
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def rank(self, metric: str) -> tuple[float, float]:
        """Lower is better; equal figures go to the lower log-loss."""
        value = self.val[metric]
        return (value if metric == "log_loss" else -value), self.val["log_loss"]

    def line(self) -> dict[str, Any]:
        """One line of trials.jsonl."""
        return {**self.settings, "val": self.val, "train": self.train, "note": self.note, **self.record}


def exact_trial(fit: ExactFit, fitted: Rows, chosen: Rows, cache: Cache) -> Trial:
    """An exact head with its figures on train and val."""
    val, train = (figures(linear_logits(r.X, fit.weight, fit.bias), r.y, cache.classes) for r in (chosen, fitted))
    note = "" if fit.converged else "not converged"
    return Trial({"C": fit.C}, val, train, note, {"n_iter": fit.n_iter, "grad_norm": fit.grad_norm})


def figures(logits: NDArray[np.float32], y: NDArray[np.int64], classes: Sequence[str]) -> dict[str, float]:
    """The metrics that can be chosen by."""
    scores = classification_report(y, logits, classes)
    return {name: getattr(scores, name) for name in METRICS}


def both(fitted: Rows, chosen: Rows) -> Rows:
    """Train and val rows together."""
    if not len(chosen):
        return fitted
    return Rows(np.concatenate([fitted.X, chosen.X]), np.concatenate([fitted.y, chosen.y]))


def line_of(cache: Cache, fitted: Rows, chosen: Rows, fit: FitResult) -> dict[str, Any]:
    """A fit as one line: its configuration, its figures on val and train, and the epochs it got."""

    head = make_head(cache, minibatch_head(fit, ()))
    val, train = (figures(head.logits(rows.X), rows.y, cache.classes) for rows in (chosen, fitted))
    config = dataclasses.asdict(fit.config)
    note = "diverged" if fit.diverged else ""
    return {"config": config, "val": val, "train": train, "note": note, "epochs": len(fit.trace)}


def trial_of(line: Mapping[str, Any], space: Mapping[str, Any]) -> Trial:
    """A line as a trial that shows what the space varies."""

    varied = {n: line["config"][n] for n, choice in space.items() if not (isinstance(choice, list) and len(choice) < 2)}
    record = {"config": line["config"], "epochs": line["epochs"]}
    return Trial({**varied, "epochs": line["epochs"]}, line["val"], line["train"], line["note"], record)
