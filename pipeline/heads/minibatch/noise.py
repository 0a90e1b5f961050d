"""What is random in a head's training, drawn from each head's own streams: first weights, mixup, dropout.

A head's streams depend on its seed alone, so that it draws the same numbers whoever trains beside it. First weights and
mixup are drawn on the processor, the same for every device; dropout, a number for each unit of each row, by the device
itself: a GPU drops other units than a processor does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.staging import on_device

EPS = 1e-12  # of a length that is divided by, torch.nn.functional.normalize's


@dataclass(frozen=True, eq=False)
class Mix:
    """Mixup (Zhang et al., arXiv 1710.09412) of a batch of n rows, for K heads: row i is share · x_i + rest · x_j.

    Whatever is linear in a row is mixed after the product with it instead of before, so that heads with different
    mixes still share one product.
    """

    share: torch.Tensor  # (K, 1), of the row itself
    partner: torch.Tensor  # (K, n) int64, j for each i
    inverse: torch.Tensor  # (K, n) int64, i for each j

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """(K, M, n), linear in the rows, for the mixed rows."""
        return self._mixed(z, self.partner)

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient in the unmixed (K, M, n), given that in the mixed."""
        return self._mixed(gradient, self.inverse)

    def _mixed(self, z: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        share = self.share.unsqueeze(2)
        return z.gather(2, other.unsqueeze(1).expand_as(z)).mul_(1 - share).addcmul_(z, share)

    def lengths(self, x: torch.Tensor) -> torch.Tensor:
        """Euclidean lengths (K, n) of the mixed rows of x (n, D), from the inner products of the unmixed."""
        gram = x @ x.T
        own = gram.diagonal()
        cross = gram[torch.arange(len(x), device=x.device), self.partner]
        rest = 1 - self.share
        square = self.share**2 * own + rest**2 * own[self.partner] + 2 * self.share * rest * cross
        return square.clamp_min_(EPS**2).sqrt_()


class Noise:
    """The streams of K heads; ``kept`` (K, 1, 1) float32 is what a unit that stayed was multiplied by."""

    kept: torch.Tensor

    def __init__(
        self, configs: Sequence[MinibatchConfig], device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """Each head's streams at their beginning."""
        self._device, self._dtype = device, dtype
        self._rngs = [np.random.default_rng([c.seed, 1]) for c in configs]
        self._generators = [torch.Generator(device).manual_seed(c.seed) for c in configs]
        self._alphas = [c.mixup for c in configs]
        self._rates = [c.dropout for c in configs]
        self._set_kept()

    def keep(self, heads: Sequence[int]) -> None:
        """Forget all heads but those at the places given, in that order."""
        for name in ("_rngs", "_generators", "_alphas", "_rates"):
            setattr(self, name, [getattr(self, name)[j] for j in heads])
        self._set_kept()

    def _set_kept(self) -> None:
        self.kept = on_device(torch.tensor([1 / (1 - rate) for rate in self._rates]), self._device).view(-1, 1, 1)

    def mix(self, n: int) -> Mix | None:
        """How the next batch of n rows is mixed; None where no head mixes. A head that does not takes no draws."""
        if not any(self._alphas):
            return None
        share = np.ones((len(self._alphas), 1), np.float32)
        partner = np.tile(np.arange(n), (len(self._alphas), 1))
        for k, (alpha, rng) in enumerate(zip(self._alphas, self._rngs, strict=True)):
            if alpha:
                share[k] = rng.beta(alpha, alpha)
                partner[k] = rng.permutation(n)
        order = on_device(partner, self._device)
        return Mix(on_device(share, self._device, self._dtype), order, order.argsort(dim=1))

    @property
    def drops(self) -> bool:
        """Whether any head has dropout."""
        return any(self._rates)

    def drop_(self, units: torch.Tensor) -> None:
        """Dropout in place on units (K, H, n): zero with the head's rate, the rest divided by 1 - rate."""
        for head, rate, generator in zip(units, self._rates, self._generators, strict=True):
            if rate:
                head.mul_(torch.empty_like(head).bernoulli_(1 - rate, generator=generator)).div_(1 - rate)


def uniform(
    configs: Sequence[MinibatchConfig], shapes: dict[str, tuple[int, ...]], fans: dict[str, int]
) -> dict[str, torch.Tensor]:
    """First parameters (K, ...) by name, each head's from its seed: uniform in ±1/√fan_in.

    This is torch.nn.Linear's own (Kaiming-uniform with a = √5, arXiv 1502.01852).
    """
    found = {name: torch.empty(len(configs), *shape) for name, shape in shapes.items()}
    for k, config in enumerate(configs):
        rng = np.random.default_rng([config.seed, 0])
        for name, shape in shapes.items():
            drawn = rng.random(math.prod(shape), dtype=np.float32)
            found[name][k] = torch.from_numpy(drawn).view(shape).mul_(2).sub_(1).mul_(1 / math.sqrt(fans[name]))
    return found
