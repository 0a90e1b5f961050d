"""Many heads of one kind side by side: logits and gradients by hand, for linear, MLP and cosine heads.

Knows tensors only; parameters are (K, ...) by name, K heads. All heads see the same rows x (n, D), so the weights that
meet x are one tall matrix (K·M, D): one wide product gives what K narrow ones would leave the cores waiting for. What
follows a hidden layer is batched products. Rows lie last, (K, M, n): softmax runs along memory. Mixup and dropout are
``noise``'s.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import torch

from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.noise import EPS, Mix, Noise, uniform

Parameters: TypeAlias = dict[str, torch.Tensor]


class Network(Protocol):
    """K heads; ``parameters`` may be replaced by others of the same names, for as many heads as there are then."""

    parameters: Parameters

    def forward(self, x: torch.Tensor, mix: Mix | None = None, noise: Noise | None = None) -> torch.Tensor:
        """Logits (K, C, n) of rows x (n, D); mixed, and with dropout from ``noise``, where given."""

    def backward(self, gradient: torch.Tensor) -> Parameters:
        """The parameters' gradients after :meth:`forward`, given that in its logits (K, C, n)."""


def make_network(configs: Sequence[MinibatchConfig], dim: int, n_classes: int, device: torch.device) -> Network:
    """The heads of these configs, which agree in kind, width and depth, as they begin.

    Linear heads start at zero: their problem is convex, so there is nothing for a random start to break.
    """
    k, first = len(configs), configs[0]
    if first.kind == "linear":
        return LinearHeads(
            {"weight": torch.zeros(k, n_classes, dim, device=device), "bias": torch.zeros(k, n_classes, device=device)}
        )
    if first.kind == "cosine":
        drawn = uniform(configs, {"weight": (n_classes, dim)}, {"weight": dim})
        drawn["scale"] = torch.tensor([[c.scale] for c in configs])
        return CosineHeads({name: tensor.to(device) for name, tensor in drawn.items()})
    sizes = [dim, *[first.width] * first.depth, n_classes]
    shapes: dict[str, tuple[int, ...]] = {}
    fans: dict[str, int] = {}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        shapes |= {f"{2 * layer}.weight": (outputs, inputs), f"{2 * layer}.bias": (outputs,)}
        fans |= {f"{2 * layer}.weight": inputs, f"{2 * layer}.bias": inputs}
    return MlpHeads({name: tensor.to(device) for name, tensor in uniform(configs, shapes, fans).items()})


def decays(name: str) -> bool:
    """Whether weight decay falls on a parameter: on weights, not on biases and scales."""
    return name.endswith("weight")


def _tall(weight: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(K, M, n) of weights (K, M, D) on shared rows (n, D), in one product."""
    k, m, d = weight.shape
    wide = weight.view(k * m, d)
    out = wide @ x.T if bias is None else torch.addmm(bias.view(-1, 1), wide, x.T)
    return out.view(k, m, len(x))


def _tall_gradient(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(K, M, D): the gradient in the weights of :func:`_tall`, given that in its result."""
    k, m, n = gradient.shape
    return (gradient.reshape(k * m, n) @ x).view(k, m, x.shape[1])


class LinearHeads:
    """weight (K, C, D), bias (K, C)."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def forward(self, x: torch.Tensor, mix: Mix | None = None, noise: Noise | None = None) -> torch.Tensor:  # noqa: ARG002
        """Logits W x + b."""
        self._x, self._mix = x, mix
        logits = _tall(self.parameters["weight"], x, self.parameters["bias"])
        return logits if mix is None else mix.forward(logits)

    def backward(self, gradient: torch.Tensor) -> Parameters:
        """Of the weights and biases."""
        bias = gradient.sum(dim=2)
        unmixed = gradient if self._mix is None else self._mix.backward(gradient)
        return {"weight": _tall_gradient(unmixed, self._x), "bias": bias}


class CosineHeads:
    """weight (K, C, D), scale (K, 1): logits scale · cos(x, w) (Gidaris and Komodakis, arXiv 1804.09458)."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def forward(self, x: torch.Tensor, mix: Mix | None = None, noise: Noise | None = None) -> torch.Tensor:  # noqa: ARG002
        """Logits; a mixed row is scaled to length 1 after it was mixed."""
        weight, scale = self.parameters["weight"], self.parameters["scale"]
        self._x, self._mix = x, mix
        products = _tall(weight, x)
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
        towards = _tall_gradient(unmixed, self._x)
        towards.addcmul_(weight, scale * along / self._sizes**2, value=-1)
        return {"weight": towards, "scale": along.sum(dim=1)}


class MlpHeads:
    """Linear layers with ReLU between, named as in ``torch.nn.Sequential``: 0.weight (K, H, D), 0.bias, 2.weight ..."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self._layers = len(parameters) // 2

    def forward(self, x: torch.Tensor, mix: Mix | None = None, noise: Noise | None = None) -> torch.Tensor:
        """Logits; dropout falls on hidden units after their ReLU."""
        p = self.parameters
        self._x, self._mix = x, mix
        self._noise = noise if noise is not None and noise.drops else None
        self._hidden = []
        z = _tall(p["0.weight"], x, p["0.bias"])
        if mix is not None:
            z = mix.forward(z)
        for layer in range(1, self._layers):
            z.relu_()
            if self._noise is not None:
                self._noise.drop_(z)
            self._hidden.append(z)
            z = torch.baddbmm(p[f"{2 * layer}.bias"].unsqueeze(2), p[f"{2 * layer}.weight"], z)
        return z

    def backward(self, gradient: torch.Tensor) -> Parameters:
        """Back through the layers; a unit that ReLU or dropout made zero passes nothing."""
        found: Parameters = {}
        for layer in reversed(range(1, self._layers)):
            units = self._hidden[layer - 1]
            found[f"{2 * layer}.weight"] = gradient @ units.mT
            found[f"{2 * layer}.bias"] = gradient.sum(dim=2)
            gradient = self.parameters[f"{2 * layer}.weight"].mT @ gradient
            gradient.mul_(units > 0)
            if self._noise is not None:
                gradient.mul_(self._noise.kept())
        found["0.bias"] = gradient.sum(dim=2)
        unmixed = gradient if self._mix is None else self._mix.backward(gradient)
        found["0.weight"] = _tall_gradient(unmixed, self._x)
        return found
