"""What every kind of head can do, and the kind of that name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.heads.kinds import KINDS
from pipeline.heads.kinds.batched import Heads
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.standardize import Standardization

Shape = tuple[int, ...]
Tensors = Mapping[str, npt.NDArray[np.float32]]


class Kind(Protocol):
    """A file of this folder, its functions at module level.

    ``tensors`` are one head's, float32 by name as ``head.safetensors`` holds them, for raw features: D of them, C
    classes.
    """

    SPACE: Mapping[str, Any] | None
    """What a search that is given the kind's name varies (``minibatch.space``); None where it must be told."""

    def hidden(self, config: MinibatchConfig) -> Shape:
        """The units of each hidden layer. Heads that agree in them can lie in the same arrays."""

    def heads(self, configs: Sequence[MinibatchConfig], dim: int, n_classes: int, device: torch.device) -> Heads:
        """The heads of these configs, which agree in :meth:`hidden`, as they begin, to be trained side by side."""

    def folded(self, tensors: Tensors, s: Standardization) -> dict[str, npt.NDArray[np.float32]]:
        """``tensors`` of one trained head (its parameters, for standardised features) for raw ones."""

    def shapes(self, found: Mapping[str, Shape], dim: int, n_classes: int) -> dict[str, Shape]:
        """The shapes that ``tensors`` must have; what the kind leaves free is taken from those found."""

    def logits(self, tensors: Tensors, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(n, C) float32 of raw rows x (n, D)."""

    def module(self, tensors: Tensors) -> nn.Module:
        """A module whose state dict has the tensors' names and shapes; its numbers are to be loaded."""

    def layer(self, tensors: Tensors) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
        """Weight (C, D) and bias (C,) where the head is one linear layer on raw features, otherwise None."""


def kind_of(name: str) -> Kind:
    """The kind of that name, which is one of ``KINDS``: the file of that name here."""
    assert name in KINDS, name
    return cast(Kind, importlib.import_module(f"{__package__}.{name}"))
