"""Which parameters learn, how fast, and by which optimiser: every trainable parameter in exactly one group.

The stages are those that the trunk's family names. Nothing here scales a learning rate but ``--layer-decay``, and that
is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.base.errors import ConfigError
from pipeline.base.spelling import option
from pipeline.stages.finetune.settings import LEARNING_RATES, PARTS, FinetuneSettings
from pipeline.trunk.families.family import Anatomy


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


HEAD = "head"


def parameter_groups(network: nn.Module, anatomy: Anatomy, settings: FinetuneSettings) -> list[ParameterGroup]:
    """The groups of what ``--train`` names, from the head down; every other parameter is frozen.

    A stage is split in two: its weights, which decay, and what does not (biases, the scales of norms, embeddings):
    decay would pull them from what they mean.
    """
    found = []
    network.requires_grad_(False)
    named = dict(network.named_parameters())
    for depth, (stage, names) in enumerate(trained_stages(anatomy, settings.train).items()):
        for decays in (True, False):
            chosen = [n for n in names if (named[n].ndim > 1 and n not in anatomy.no_decay) == decays]
            for name in chosen:
                named[name].requires_grad_()
            if not chosen:
                continue
            group = ParameterGroup(
                name=f"{stage} {'weights' if decays else _others(network, stage, chosen)}",
                names=tuple(chosen),
                parameters=tuple(named[n] for n in chosen),
                lr=learning_rate(settings, depth),
                weight_decay=settings.weight_decay if decays else 0.0,
            )
            found.append(group)
    return found


def _others(network: nn.Module, stage: str, names: Sequence[str]) -> str:
    """What a stage has besides weights, in words."""
    if stage == HEAD:
        return "biases"
    owners = [network.get_submodule(n.rpartition(".")[0]) for n in names]
    return "biases and BatchNorm" if any(isinstance(m, nn.BatchNorm2d) for m in owners) else "biases and norms"


def make_optimizer(groups: Sequence[ParameterGroup], settings: FinetuneSettings) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum, in PyTorch's fused form."""
    options = [group.options() for group in groups]
    if settings.solver == "adamw":
        return torch.optim.AdamW(options, fused=True)
    return torch.optim.SGD(options, momentum=settings.momentum, fused=True)


def stages(anatomy: Anatomy) -> dict[str, tuple[str, ...]]:
    """The stages from the head down, each with its parameters' names."""
    head = (f"{anatomy.classifier}.weight", f"{anatomy.classifier}.bias")
    return {HEAD: head, **{stage.name: stage.parameters for stage in reversed(anatomy.stages)}}


def trained_stages(anatomy: Anatomy, train: str) -> dict[str, tuple[str, ...]]:
    """The stages that learn, from the head down, each with its parameters' names.

    Raises:
        ConfigError: ``train`` is a ResNet's word, and this is none.
    """
    every = stages(anatomy)
    if train not in (HEAD, "last", "all") and train.removesuffix("+") not in every:
        raise ConfigError(
            f"{option('train', train)} is a ResNet's word, and this network's stages are {', '.join(every)}: "
            "give all, last or "
            "head"
        )
    return dict(list(every.items())[: PARTS[train]])


def learning_rate(settings: FinetuneSettings, depth: int) -> float:
    """The highest learning rate of the stage so many below the head (0 is the head)."""
    trunk, head = LEARNING_RATES[settings.solver]
    top = head if settings.lr_head is None else settings.lr_head
    if depth == 0:
        return top
    if settings.layer_decay is not None:
        return float(top * settings.layer_decay**depth)
    return trunk if settings.lr_trunk is None else settings.lr_trunk


def frozen_counts(network: nn.Module, anatomy: Anatomy) -> dict[str, int]:
    """Frozen parameters by stage, from the head down."""
    frozen = {n: p.numel() for n, p in network.named_parameters() if not p.requires_grad}
    counts = {stage: sum(frozen.get(n, 0) for n in names) for stage, names in stages(anatomy).items()}
    return {stage: number for stage, number in counts.items() if number}


def batch_norms(network: nn.Module, anatomy: Anatomy, train: str) -> Iterator[tuple[str, nn.Module]]:
    """The BatchNorm layers of the stages that learn, with their names."""
    inside = {n.rpartition(".")[0] for names in trained_stages(anatomy, train).values() for n in names}
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d) and name in inside:
            yield name, module


def learnt_tensors(network: nn.Module, anatomy: Anatomy, settings: FinetuneSettings) -> dict[str, torch.Tensor]:
    """Everything that training may change, by the network's own names: what a checkpoint holds.

    Parameters that learn and, with ``--bn train``, the statistics of BatchNorm in the stages that learn.
    """
    found = {name: p.data for name, p in network.named_parameters() if p.requires_grad}
    if settings.bn == "train":
        for name, module in batch_norms(network, anatomy, settings.train):
            found |= {f"{name}.{n}": buffer for n, buffer in module.named_buffers()}
    return found
