"""Which parameters learn, how fast, and by which optimiser: every trainable parameter in exactly one group.

Knows a torchvision ResNet by the names of its stages. Nothing here scales a learning rate but ``--layer-decay``, and
that is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.stages.finetune.settings import LEARNING_RATES, PARTS, STAGES, FinetuneSettings


@dataclass(frozen=True, eq=False)
class ParameterGroup:
    """One group as the optimiser gets it; ``names`` are the network's own, ``lr`` is the highest learning rate."""

    name: str
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    lr: float
    weight_decay: float

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return sum(p.numel() for p in self.parameters)

    def options(self) -> dict[str, Any]:
        """What ``torch.optim`` is given for it; ``peak`` is ours: the rate that the schedule takes a share of."""
        return {"params": list(self.parameters), "lr": self.lr, "peak": self.lr, "weight_decay": self.weight_decay}


def parameter_groups(network: nn.Module, settings: FinetuneSettings) -> list[ParameterGroup]:
    """The groups of what ``--train`` names, from the head down; every other parameter is frozen.

    A stage is split in two: its weights, which decay, and its biases and BatchNorm's scales, which do not: decay would
    pull them from what they mean.
    """
    found = []
    network.requires_grad_(False)
    for depth, stage in enumerate(trained_stages(settings.train)):
        members = list(_members(network, stage))
        for decays, ending in ((True, "weights"), (False, "biases" if stage == "head" else "biases and BatchNorm")):
            chosen = [(n, p) for n, p in members if (p.ndim > 1) == decays]
            for _, parameter in chosen:
                parameter.requires_grad_()
            group = ParameterGroup(
                name=f"{stage} {ending}",
                names=tuple(n for n, _ in chosen),
                parameters=tuple(p for _, p in chosen),
                lr=learning_rate(settings, depth),
                weight_decay=settings.weight_decay if decays else 0.0,
            )
            found.append(group)
    return found


def make_optimizer(groups: Sequence[ParameterGroup], settings: FinetuneSettings) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum, in PyTorch's fused form."""
    options = [group.options() for group in groups]
    if settings.solver == "adamw":
        return torch.optim.AdamW(options, fused=True)
    return torch.optim.SGD(options, momentum=settings.momentum, fused=True)


def trained_stages(train: str) -> tuple[str, ...]:
    """The stages that learn, from the head down."""
    return tuple(STAGES)[: PARTS[train]]


def learning_rate(settings: FinetuneSettings, depth: int) -> float:
    """The highest learning rate of the stage so many below the head (0 is the head)."""
    trunk, head = LEARNING_RATES[settings.solver]
    top = head if settings.lr_head is None else settings.lr_head
    if depth == 0:
        return top
    if settings.layer_decay is not None:
        return float(top * settings.layer_decay**depth)
    return trunk if settings.lr_trunk is None else settings.lr_trunk


def frozen_counts(network: nn.Module) -> dict[str, int]:
    """Frozen parameters by stage, from the head down."""
    counts = {s: sum(p.numel() for _, p in _members(network, s) if not p.requires_grad) for s in STAGES}
    return {stage: number for stage, number in counts.items() if number}


def batch_norms(network: nn.Module, train: str) -> Iterator[tuple[str, nn.Module]]:
    """The BatchNorm layers of the stages that learn, with their names."""
    tops = {top for stage in trained_stages(train) for top in STAGES[stage]}
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d) and name.split(".")[0] in tops:
            yield name, module


def learnt_tensors(network: nn.Module, settings: FinetuneSettings) -> dict[str, torch.Tensor]:
    """Everything that training may change, by the network's own names: what a checkpoint holds.

    Parameters that learn and, with ``--bn train``, the statistics of BatchNorm in the stages that learn.
    """
    found = {name: p.data for name, p in network.named_parameters() if p.requires_grad}
    if settings.bn == "train":
        for name, module in batch_norms(network, settings.train):
            found |= {f"{name}.{n}": buffer for n, buffer in module.named_buffers()}
    return found


def _members(network: nn.Module, stage: str) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in network.named_parameters():
        if name.split(".")[0] in STAGES[stage]:
            yield name, parameter
