"""Cosine heads, logits scale · cos((x - mean) · inv_scale, w) (Gidaris and Komodakis, arXiv 1804.09458).

Tensors weight (C, D), scale (1,), mean (D,) and inv_scale (D,): the head divides by the standardised row's length, so
that standardisation cannot be folded into the weights. ``scale`` starts at the setting of that name and is learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.heads.kinds.batched import Parameters, tall, tall_gradient
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.noise import EPS, Mix, Noise, uniform
from pipeline.heads.standardize import Standardization

Array = npt.NDArray[np.float32]

SPACE = None


def hidden(config: MinibatchConfig) -> tuple[int, ...]:
    """None."""
    return ()


def heads(configs: Sequence[MinibatchConfig], dim: int, n_classes: int, device: torch.device) -> CosineHeads:
    """Their weights start as those of ``torch.nn.Linear`` do."""
    drawn = uniform(configs, {"weight": (n_classes, dim)}, {"weight": dim})
    drawn["scale"] = torch.tensor([[c.scale] for c in configs])
    return CosineHeads({name: tensor.to(device) for name, tensor in drawn.items()})


class CosineHeads:
    """weight (K, C, D), scale (K, 1): logits scale · cos(x, w) of rows that are standardised already."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def forward(self, x: torch.Tensor, mix: Mix | None = None, noise: Noise | None = None) -> torch.Tensor:
        """Logits; a mixed row is scaled to length 1 after it was mixed."""
        weight, scale = self.parameters["weight"], self.parameters["scale"]
        self._x, self._mix = x, mix
        products = tall(weight, x)
        lengths = torch.linalg.vector_norm(x, dim=1).clamp_min(EPS).view(1, -1)
        if mix is not None:
            products, lengths = mix.forward(products), mix.lengths(x)
        self._lengths = lengths.unsqueeze(1)
        self._sizes = torch.linalg.vector_norm(weight, dim=2, keepdim=True).clamp_min(EPS)
        self._cosines = products.div_(self._sizes).div_(self._lengths)
        return self._cosines * scale.unsqueeze(2)

    def backward(self, gradient: torch.Tensor) -> Parameters:
        """d cos/dw = x / (|x| |w|) - cos · w / |w|²."""
        weight, scale = self.parameters["weight"], self.parameters["scale"].unsqueeze(2)
        along = (gradient * self._cosines).sum(dim=2, keepdim=True)
        inner = gradient * (scale / self._sizes) / self._lengths
        unmixed = inner if self._mix is None else self._mix.backward(inner)
        towards = tall_gradient(unmixed, self._x)
        towards.addcmul_(weight, scale * along / self._sizes**2, value=-1)
        return {"weight": towards, "scale": along.sum(dim=1)}


def folded(tensors: Mapping[str, Array], s: Standardization) -> dict[str, Array]:
    """The standardisation is kept beside the weights."""
    kind = tensors["weight"].dtype
    return {**tensors, "mean": s.mean.astype(kind), "inv_scale": (1 / s.scale).astype(kind)}


def shapes(found: Mapping[str, tuple[int, ...]], dim: int, n_classes: int) -> dict[str, tuple[int, ...]]:
    """Nothing is left free."""
    return {"weight": (n_classes, dim), "scale": (1,), "mean": (dim,), "inv_scale": (dim,)}


def logits(tensors: Mapping[str, Array], x: Array) -> Array:
    """(n, C) of rows x (n, D)."""
    rows = _unit((x - tensors["mean"]) * tensors["inv_scale"])
    found: Array = tensors["scale"] * (rows @ _unit(tensors["weight"]).T)
    return found


def _unit(rows: Array) -> Array:
    lengths: Array = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Array = rows / lengths.clip(min=EPS)
    return unit


def module(tensors: Mapping[str, Array]) -> Cosine:
    """A :class:`Cosine`."""
    n_classes, dim = tensors["weight"].shape
    return Cosine(dim, n_classes)


class Cosine(nn.Module):
    """Logits scale · cos((x - mean) · inv_scale, weight) of rows (n, D); mean and inv_scale are not trained."""

    def __init__(self, dim: int, n_classes: int) -> None:
        """All zeros: its numbers are to be loaded."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_classes, dim))
        self.scale = nn.Parameter(torch.zeros(1))
        self.mean: torch.Tensor
        self.inv_scale: torch.Tensor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("inv_scale", torch.zeros(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, C)."""
        rows = nn.functional.normalize((x - self.mean) * self.inv_scale, dim=1)
        return self.scale * nn.functional.linear(rows, nn.functional.normalize(self.weight, dim=1))


def layer(tensors: Mapping[str, Array]) -> None:
    """None: a row's length is divided by."""
