"""What training changes, and how far it is: all that decides the next step, kept and restored to the last bit.

Knows the network's tensors by their names, their average and the optimiser's memory; nothing of images and scores.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, TypedDict

import torch
from torch import nn

from pipeline.base.schema import Count, Figure, Malformed, NotNegative, Rule, Size, made
from pipeline.base.watch import TraceRow
from pipeline.stages.finetune.checkpoint import Checkpoint
from pipeline.stages.finetune.groups import learnt_tensors, make_optimizer, parameter_groups
from pipeline.stages.finetune.settings import FinetuneSettings
from pipeline.trunk.families.family import Anatomy

Tensors = dict[str, torch.Tensor]


class Best(TypedDict):
    """The best epoch on val."""

    epoch: Count
    val: Figure
    loss: Figure


@dataclasses.dataclass
class Progress:
    """How far a training is; ``hits`` and ``loss_sum`` are of the epoch in work so far.

    As ``dataclasses.asdict`` it is plain JSON values, kept in ``state.json``. ``rows`` are the trace, its first row
    the start's.
    """

    epoch: Size = 1
    done: Count = 0  # steps of the epoch in work
    step: Count = 0  # steps in all
    loss_sum: Figure = 0.0
    hits: NotNegative = 0.0
    seen: NotNegative = 0.0
    seconds: NotNegative = 0.0
    ended: bool = False
    best: Best | None = None
    rows: Annotated[list[TraceRow], Rule("a list of one row or more", len)] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Progress:
        """Again from plain JSON values.

        Raises:
            Malformed: they are not those of a progress.
        """
        for field in dataclasses.fields(cls):
            if field.name not in kept:
                raise Malformed(f"it has no {field.name}")
        found = made({**kept}, cls)
        if (found.seen > 0) != (found.done > 0):
            raise Malformed(f"seen is {found.seen:g}: after {found.done} steps of an epoch that cannot be")
        return found

    def count(self, loss: float, hits: float, seen: float) -> None:
        """One more step is done, with these sums over its rows."""
        self.loss_sum, self.hits, self.seen = self.loss_sum + loss, self.hits + hits, self.seen + seen
        self.done, self.step = self.done + 1, self.step + 1

    def next_epoch(self) -> None:
        """The epoch in work is done."""
        self.epoch, self.done, self.loss_sum, self.hits, self.seen = self.epoch + 1, 0, 0.0, 0.0, 0.0


class Clock:
    """Seconds of work: those of before, and those since it was made."""

    def __init__(self, before: float = 0.0) -> None:
        self._before, self._began = before, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Up to now."""
        return self._before + time.perf_counter() - self._began


class Average:
    """The exponential moving average of tensors over the steps; counters (integers) are the newest."""

    def __init__(self, live: Tensors, decay: float) -> None:
        self._live, self._decay = live, decay
        self.tensors = copied(live)

    def step(self) -> None:
        """Take the tensors as they are now into the average."""
        for name, tensor in self._live.items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, 1 - self._decay)
            else:
                self.tensors[name].copy_(tensor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The live tensors are the average; afterwards they are what they were, to the last bit."""
        now = copied(self._live)
        load(self._live, self.tensors)
        try:
            yield
        finally:
            load(self._live, now)


class State:
    """What training changes of a network, with all that goes on from step to step.

    Attributes:
        groups: the parameter groups; everything else is frozen.
        learnt: what training may change, by name: live views of the network.
        start: the same as it was before the first step.
        average: its average over the steps, with ``--ema``.
        best: the same as it scored best on val after an epoch (averaged, with ``--ema``); None before the first.
        optimizer: with its memory.
        progress: how far the training is.
    """

    def __init__(self, network: nn.Module, anatomy: Anatomy, settings: FinetuneSettings) -> None:
        network.to(memory_format=torch.channels_last)
        self.groups = parameter_groups(network, anatomy, settings)
        self.learnt: Tensors = learnt_tensors(network, anatomy, settings)
        self.start = copied(self.learnt)
        self.average = None if settings.ema is None else Average(self.learnt, settings.ema)
        self.best: Tensors | None = None
        self.optimizer = make_optimizer(self.groups, settings)
        self.progress = Progress()

    def begin_here(self) -> None:
        """Take the network as it is now for the start."""
        load(self.start, self.learnt)
        if self.average is not None:
            load(self.average.tensors, self.learnt)

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Make ``tensors`` (by name) what the network is, in place."""
        load(self.learnt, tensors)

    def keep_as_best(self) -> None:
        """Remember the network as it is now."""
        self.best = copied(self.learnt)

    def tensors(self) -> Tensors:
        """Everything that decides the next step, by name: what learns, its average, the optimiser's memory."""
        tensors = {f"now/{name}": tensor for name, tensor in self.learnt.items()}
        if self.average is not None:
            tensors |= {f"average/{name}": tensor for name, tensor in self.average.tensors.items()}
        for name, parameter in self._parameters().items():
            for what, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer/{what}/{name}"] = value
        return tensors

    def digest(self) -> str:
        """SHA-256 of all of it, and of how far the training is."""
        found = hashlib.sha256(f"{self.progress.step} {self.progress.done}".encode())
        for name, tensor in sorted(self.tensors().items()):
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    def keep(self, checkpoint: Checkpoint, *, best: bool) -> None:
        """Write the state; the ``best`` tensors, too, where they are new.

        Raises:
            HeadError: it cannot be written; the state before is still there.
        """
        checkpoint.write(dataclasses.asdict(self.progress), self.tensors(), self.best if best else None)

    def resume(self, checkpoint: Checkpoint) -> bool:
        """Go to the state that is kept, if one is; whether there was one.

        Raises:
            HeadError: it is damaged.
        """
        found = checkpoint.read()
        if found is None:
            return False
        try:
            self.progress = Progress.of(found)
            self._take(checkpoint)
        except (Malformed, KeyError, RuntimeError) as error:  # of another network: a tensor's name, or its shape
            raise checkpoint.damaged(error) from error
        return True

    def _take(self, checkpoint: Checkpoint) -> None:
        """Make the tensors those that are kept."""
        tensors = checkpoint.tensors("last")
        load(self.learnt, tensors, "now/")
        if self.average is not None:
            load(self.average.tensors, tensors, "average/")
        self._take_memory({k: v for k, v in tensors.items() if k.startswith("optimizer/")})
        if self.progress.best is not None:
            saved = checkpoint.tensors("best")
            self.best = {n: torch.empty_like(t).copy_(saved[n]) for n, t in self.learnt.items()}

    def _take_memory(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The optimiser's memory, each tensor where it wants it: a fused one has its step beside the parameter."""
        parameters = self._parameters()
        numbers = {name: number for number, name in enumerate(parameters)}  # as the optimiser counts them
        memory: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            _, what, name = key.split("/", 2)
            like = parameters[name]
            # In the parameter's own memory layout, so that the next step does what it would have done.
            kept = torch.empty_like(value if value.shape != like.shape else like, device=value.device)
            memory.setdefault(numbers[name], {})[what] = kept.copy_(value)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": memory})

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {n: p for group in self.groups for n, p in zip(group.names, group.parameters, strict=True)}


def copied(tensors: Tensors) -> Tensors:
    """The same numbers in memory of their own."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def load(into: Tensors, tensors: Mapping[str, torch.Tensor], prefix: str = "") -> None:
    """Copy ``tensors``, named ``prefix`` and the name, into those of ``into``, in place."""
    for name, tensor in into.items():
        tensor.copy_(tensors[prefix + name])
