"""Many heads of one kind side by side: what they can do, and the products that the kinds have in common.

Knows tensors only; parameters are (K, ...) by name, K heads. All heads see the same rows x (n, D), so the weights that
meet x are one tall matrix (K·M, D): one wide product gives what K narrow ones would leave the cores waiting for. What
follows a hidden layer is batched products. Rows lie last, (K, M, n): softmax runs along memory. Mixup and dropout are
``minibatch.noise``'s.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

import torch

from pipeline.heads.minibatch.noise import Mix, Noise

Parameters: TypeAlias = dict[str, torch.Tensor]


class Heads(Protocol):
    """K heads; ``parameters`` may be replaced by others of the same names, for as many heads as there are then."""

    parameters: Parameters

    def forward(self, x: torch.Tensor, mix: Mix | None = None, noise: Noise | None = None) -> torch.Tensor:
        """Logits (K, C, n) of rows x (n, D); mixed, and with dropout from ``noise``, where given."""

    def backward(self, gradient: torch.Tensor) -> Parameters:
        """The parameters' gradients after :meth:`forward`, given that in its logits (K, C, n)."""


def decays(name: str) -> bool:
    """Whether weight decay falls on a parameter: on weights, not on biases and scales."""
    return name.endswith("weight")


def tall(weight: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(K, M, n) of weights (K, M, D) on shared rows (n, D), in one product."""
    k, m, d = weight.shape
    wide = weight.view(k * m, d)
    out = wide @ x.T if bias is None else torch.addmm(bias.view(-1, 1), wide, x.T)
    return out.view(k, m, len(x))


def tall_gradient(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(K, M, D): the gradient in the weights of :func:`tall`, given that in its result."""
    k, m, n = gradient.shape
    return (gradient.reshape(k * m, n) @ x).view(k, m, x.shape[1])
