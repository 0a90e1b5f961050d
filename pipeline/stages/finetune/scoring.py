"""What the network says of rows as it is now, and how good that is.

Changes nothing: each layer is left in the mode that it was in.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.base.arithmetic import arithmetic
from pipeline.base.machine import kind_of_device
from pipeline.heads.choice import order
from pipeline.heads.scores.metrics import log_softmax
from pipeline.runs.network import within_memory
from pipeline.stages.finetune.feeds import Inputs, Maps, chunks
from pipeline.stages.finetune.tally import STEPS
from pipeline.stages.finetune.task import Task
from pipeline.trunk.engines.check import NOISE

EVAL_BATCH = 64


class Score(NamedTuple):
    """Mean cross-entropy, and the share of right answers."""

    loss: float
    accuracy: float

    @property
    def order(self) -> tuple[float, float, float]:
        """What sorts networks, the best first: by accuracy, of equals by loss."""
        return order({"accuracy": self.accuracy, "log_loss": self.loss}, "accuracy")


@contextmanager
def in_mode(modules: Iterable[nn.Module], *, training: bool) -> Iterator[None]:
    """These modules (not what is in them) in training mode or out of it; afterwards each as it was."""
    changed = [module for module in modules if module.training is not training]
    for module in changed:
        module.training = training
    try:
        yield
    finally:
        for module in changed:
            module.training = not training


def logits(task: Task, rows: NDArray[np.int64], what: str, inputs: Inputs | None = None) -> NDArray[np.float32]:
    """Logits (n, C) float32 of cache rows by the network as it is, in eval mode; each process does its share.

    Through what training goes by, or through other ``inputs``. ``what`` is shown while it lasts.

    Raises:
        DataError: an image is gone or has changed.
        ConfigError: a GPU has too little memory.
    """
    inputs, ranks = inputs or task.inputs, task.ranks
    found = np.zeros((len(rows), len(task.attached.cache.classes)), np.float32)
    places = np.arange(len(rows))[ranks.rank :: ranks.world]
    batches, every = chunks(rows[places].tolist(), EVAL_BATCH), STEPS[kind_of_device(task.attached.device)]
    at, answers = 0, []
    with (
        in_mode(inputs.module.modules(), training=False),
        torch.inference_mode(),
        arithmetic(),
        within_memory(task.attached.device),
        task.desk.watch.track(what, len(places)) as tracker,
    ):
        for number, (part, x) in enumerate(inputs.batches(batches, None), start=1):
            answers.append(inputs.module(x).float())
            tracker.advance(len(part))
            if number % every == 0 or number == len(batches):  # a GPU is not waited for after each batch
                given = torch.cat(answers).cpu().numpy()
                found[places[at : at + len(given)]] = given
                at += len(given)
                answers.clear()
    return ranks.added(found).astype(np.float32)


class _Exact(nn.Module):
    """A copy of a network that computes in float64."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.network(x.double())
        return found


def rounding(task: Task, rows: NDArray[np.int64], found: NDArray[np.float32], inputs: Inputs) -> float:
    """What rounding alone may make of a logit of these rows, measured; ``found`` (n, C) are their logits.

    Through maps: twice what half a unit in the last place of every number of a map makes. Through images: as many times
    as an engine is allowed to be off (NOISE), and once for the network itself, what float32 makes beside float64.
    """
    other: Inputs
    if isinstance(inputs, Maps):
        factor, other = 2, dataclasses.replace(inputs, nudge=True)
    else:
        factor, other = NOISE + 1, copy.copy(inputs)
        other.module = _Exact(inputs.module)
    return factor * float(np.abs(logits(task, rows, "check of the logits", other) - found).max())


def score(task: Task, rows: NDArray[np.int64], logits: NDArray[np.float32]) -> Score:
    """The score of logits (n, C) of cache rows (n,)."""
    y = task.attached.cache.labels[rows]
    loss = -float(log_softmax(logits)[np.arange(len(y)), y].mean())
    return Score(loss, float((logits.argmax(axis=1) == y).mean()))
