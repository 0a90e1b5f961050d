"""Linear heads, logits W x + b: tensors weight (C, D) and bias (C,), as ``torch.nn.Linear`` has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.heads.kinds.batched import Parameters, tall, tall_gradient
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.noise import Mix, Noise
from pipeline.heads.standardize import Standardization, fold

Array = npt.NDArray[np.float32]

SPACE = None


def hidden(config: MinibatchConfig) -> tuple[int, ...]:
    """None."""
    return ()


def heads(configs: Sequence[MinibatchConfig], dim: int, n_classes: int, device: torch.device) -> LinearHeads:
    """They start at zero: their problem is convex, so there is nothing for a random start to break."""
    k = len(configs)
    weight, bias = torch.zeros(k, n_classes, dim, device=device), torch.zeros(k, n_classes, device=device)
    return LinearHeads({"weight": weight, "bias": bias})


class LinearHeads:
    """weight (K, C, D), bias (K, C)."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def forward(self, x: torch.Tensor, mix: Mix | None = None, noise: Noise | None = None) -> torch.Tensor:
        """Logits W x + b."""
        self._x, self._mix = x, mix
        logits = tall(self.parameters["weight"], x, self.parameters["bias"])
        return logits if mix is None else mix.forward(logits)

    def backward(self, gradient: torch.Tensor) -> Parameters:
        """Of the weights and biases."""
        bias = gradient.sum(dim=2)
        unmixed = gradient if self._mix is None else self._mix.backward(gradient)
        return {"weight": tall_gradient(unmixed, self._x), "bias": bias}


def folded(tensors: Mapping[str, Array], s: Standardization) -> dict[str, Array]:
    """The layer on raw features."""
    weight, bias = fold(tensors["weight"], tensors["bias"], s, tensors["weight"].dtype.type)
    return {"weight": weight, "bias": bias}


def shapes(found: Mapping[str, tuple[int, ...]], dim: int, n_classes: int) -> dict[str, tuple[int, ...]]:
    """Nothing is left free."""
    return {"weight": (n_classes, dim), "bias": (n_classes,)}


def logits(tensors: Mapping[str, Array], x: Array) -> Array:
    """(n, C) of rows x (n, D)."""
    return x @ tensors["weight"].T + tensors["bias"]


def module(tensors: Mapping[str, Array]) -> nn.Linear:
    """``torch.nn.Linear``."""
    outputs, inputs = tensors["weight"].shape
    return nn.Linear(inputs, outputs)


def layer(tensors: Mapping[str, Array]) -> tuple[Array, Array]:
    """The head itself."""
    return tensors["weight"], tensors["bias"]
