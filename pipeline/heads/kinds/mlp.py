"""Heads with hidden layers: linear layers with ReLU between.

Tensors 0.weight (H, D), 0.bias (H,), 2.weight ... as in ``torch.nn.Sequential(Linear, ReLU, Linear, ...)``; ``depth``
hidden layers of ``width`` units each, ``dropout`` of them while they are trained.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.heads.kinds.batched import Parameters, tall, tall_gradient
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.noise import Mix, Noise, uniform
from pipeline.heads.standardize import Standardization, fold

Array = npt.NDArray[np.float32]

SPACE: dict[str, Any] = {
    "kind": ["mlp"],
    "width": [256, 512, 1024],
    "depth": [1, 2],
    "dropout": {"low": 0.0, "high": 0.6},
    "lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "weight_decay": {"low": 1e-4, "high": 1.0, "log": True},
    "label_smoothing": [0.0, 0.1],
}


def hidden(config: MinibatchConfig) -> tuple[int, ...]:
    """``depth`` layers of ``width`` units."""
    return (config.width,) * config.depth


def _shapes(sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Of the tensors of layers between so many features, units and classes."""
    found: dict[str, tuple[int, ...]] = {}
    for place, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        found |= {f"{2 * place}.weight": (outputs, inputs), f"{2 * place}.bias": (outputs,)}
    return found


def heads(configs: Sequence[MinibatchConfig], dim: int, n_classes: int, device: torch.device) -> MlpHeads:
    """They start as ``torch.nn.Linear`` does."""
    sizes = (dim, *hidden(configs[0]), n_classes)
    names = _shapes(sizes)
    fans = {name: sizes[int(name.split(".")[0]) // 2] for name in names}
    return MlpHeads({name: tensor.to(device) for name, tensor in uniform(configs, names, fans).items()})


class MlpHeads:
    """0.weight (K, H, D), 0.bias (K, H), 2.weight ..."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self._layers = len(parameters) // 2

    def forward(self, x: torch.Tensor, mix: Mix | None = None, noise: Noise | None = None) -> torch.Tensor:
        """Logits; dropout falls on hidden units after their ReLU."""
        p = self.parameters
        self._x, self._mix = x, mix
        self._noise = noise if noise is not None and noise.drops else None
        self._hidden = []
        z = tall(p["0.weight"], x, p["0.bias"])
        if mix is not None:
            z = mix.forward(z)
        for place in range(1, self._layers):
            z.relu_()
            if self._noise is not None:
                self._noise.drop_(z)
            self._hidden.append(z)
            z = torch.baddbmm(p[f"{2 * place}.bias"].unsqueeze(2), p[f"{2 * place}.weight"], z)
        return z

    def backward(self, gradient: torch.Tensor) -> Parameters:
        """Back through the layers; a unit that ReLU or dropout made zero passes nothing."""
        found: Parameters = {}
        for place in reversed(range(1, self._layers)):
            units = self._hidden[place - 1]
            found[f"{2 * place}.weight"] = gradient @ units.mT
            found[f"{2 * place}.bias"] = gradient.sum(dim=2)
            gradient = self.parameters[f"{2 * place}.weight"].mT @ gradient
            gradient.mul_(units > 0)
            if self._noise is not None:
                gradient.mul_(self._noise.kept)
        found["0.bias"] = gradient.sum(dim=2)
        unmixed = gradient if self._mix is None else self._mix.backward(gradient)
        found["0.weight"] = tall_gradient(unmixed, self._x)
        return found


def folded(tensors: Mapping[str, Array], s: Standardization) -> dict[str, Array]:
    """The first layer alone sees the features."""
    weight, bias = fold(tensors["0.weight"], tensors["0.bias"], s, tensors["0.weight"].dtype.type)
    return {**tensors, "0.weight": weight, "0.bias": bias}


def shapes(found: Mapping[str, tuple[int, ...]], dim: int, n_classes: int) -> dict[str, tuple[int, ...]]:
    """The hidden units are as many as the biases found have; one hidden layer at least, without it is ``linear``."""
    biases = [found.get(f"{2 * place}.bias", ()) for place in range(max(2, len(found) // 2) - 1)]
    return _shapes((dim, *(max(1, *shape[:1], 0) for shape in biases), n_classes))


def logits(tensors: Mapping[str, Array], x: Array) -> Array:
    """(n, C) of rows x (n, D)."""
    for place in range(0, len(tensors), 2):
        x = (np.maximum(x, 0) if place else x) @ tensors[f"{place}.weight"].T + tensors[f"{place}.bias"]
    return x


def module(tensors: Mapping[str, Array]) -> nn.Sequential:
    """``torch.nn.Sequential(Linear, ReLU, Linear, ...)``."""
    layers: list[nn.Module] = []
    for place in range(0, len(tensors), 2):
        outputs, inputs = tensors[f"{place}.weight"].shape
        layers += [*([nn.ReLU()] if place else []), nn.Linear(inputs, outputs)]
    return nn.Sequential(*layers)


def layer(tensors: Mapping[str, Array]) -> None:
    """None: there are several."""
