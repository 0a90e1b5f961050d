"""Error against the number of labelled images as a power law, and what it says of more of them. Knows arrays only.

error(n) = a + b n^-c, where a >= 0 is what no number of labels of this kind takes away, b >= 0 and c > 0 (Cortes et al.
1993, NIPS 6, 327-334; Hestness et al. 2017, arXiv 1712.00409; Rosenfeld et al. 2020, arXiv 1909.12673; what learning
curves look like otherwise: Viering and Loog 2022, arXiv 2103.10948). For a given c the law is linear in a and b, and
their least squares under a, b >= 0 are at one of three places, each in closed form. So a search in c alone finds the
minimum, of a thousand resamples side by side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FEWEST_SIZES = 4  # different numbers of images: one more than the law has parameters
STEEPNESS = (0.01, 3.0)  # c is looked for between these
GRID, ROUNDS = 41, 6  # values of c that are tried, around the best one of those before: to 1e-8 of it
POINT = 0.01  # of a share
FARTHEST = 10  # times as many labels as there are: beyond, nothing is said but that it is beyond


@dataclass(frozen=True, eq=False)
class PowerLaws:
    """Laws with parameters (B,); ``b`` is 0, and ``c`` says nothing, where the error does not fall."""

    a: Floats
    b: Floats
    c: Floats

    def error(self, images: npt.ArrayLike) -> Floats:
        """The error (B, M) that each law gives numbers of images (M,)."""
        n = np.asarray(images, np.float64)
        found: Floats = self.a[:, None] + self.b[:, None] * n ** -self.c[:, None]
        return found

    def images_for(self, error: Floats) -> Floats:
        """The number of images (B,) from which on each law is below its ``error`` (B,); infinite where it never is."""
        over = error - self.a
        never = (over <= 0) | (self.b <= 0)
        with np.errstate(over="ignore"):  # of a flat law the number is beyond what a float holds: infinite as well
            found: Floats = np.where(never, np.inf, (self.b / np.where(never, 1.0, over)) ** (1 / self.c))
        return found


@dataclass(frozen=True)
class MoreLabels:
    """How many more labelled images than ``now`` take a point off the error, with the 95 % interval of the resamples.

    None stands for more than ``FARTHEST`` - 1 times ``now``. ``never`` is the share of the resamples in which no number
    does: their law levels off before. ``error`` is the law's error at ``now``, 0 ... 1.
    """

    now: int
    error: float
    more: int | None
    low: int | None
    high: int | None
    never: float


def resampled_laws(images: npt.ArrayLike, errors: Floats, variance: npt.ArrayLike, *, seed: Any) -> PowerLaws:
    """The laws of errors (B, K) at numbers of images (K,), ascending: the first of what was seen, the others resamples.

    From how many images on errors follow a law is not known, and of the fewest they often do not. So each resample
    leaves out as many of the smallest numbers as it draws, down to FEWEST_SIZES that are left.
    """
    rows, sizes = errors.shape
    first = np.random.default_rng(seed).integers(0, sizes - FEWEST_SIZES + 1, rows)
    first[0] = 0
    return fit_power_laws(images, errors, np.where(np.arange(sizes) >= first[:, None], variance, np.inf))


def fit_power_laws(images: npt.ArrayLike, errors: npt.ArrayLike, variance: npt.ArrayLike) -> PowerLaws:
    """The laws of weighted least squares of errors (B, K) at numbers of images (K,), with variances (K,) or (B, K).

    What has an infinite variance has no part; at least FEWEST_SIZES are to be left, of numbers that differ. The same
    input gives the same bits.
    """
    n, y = np.asarray(images, np.float64), np.asarray(errors, np.float64)
    weight = np.broadcast_to(1 / np.asarray(variance, np.float64), y.shape)
    weight = weight / weight.sum(axis=1, keepdims=True)
    scale = np.exp(weight @ np.log(n))  # n is counted in it, so that x is about 1 for every c
    low, high = (np.full(len(y), math.log(end)) for end in STEEPNESS)
    every = np.arange(len(y))
    for _ in range(ROUNDS):
        tried = np.linspace(low, high, GRID, axis=1)  # (B, G)
        x = (n / scale[:, None])[:, None] ** -np.exp(tried)[..., None]  # (B, G, K)
        a, b = _linear(x, y[:, None], weight[:, None])
        loss = (weight[:, None] * (y[:, None] - a[..., None] - b[..., None] * x) ** 2).sum(axis=2)
        best = loss.argmin(axis=1)
        low, high = tried[every, np.maximum(best - 1, 0)], tried[every, np.minimum(best + 1, GRID - 1)]
    c = np.exp(tried[every, best])
    return PowerLaws(a[every, best], b[every, best] * scale**c, c)


def _linear(x: Floats, y: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """a and b (B, G) of the least squares of y (B, 1, K) = a + b x (B, G, K) with a, b >= 0.

    Weights are (B, 1, K), and sum to 1.
    """
    mean_x, mean_y = (weight * x).sum(axis=2), (weight * y).sum(axis=2)
    off = x - mean_x[..., None]
    b = (weight * off * y).sum(axis=2) / (weight * off**2).sum(axis=2)
    a = mean_y - b * mean_x
    through_zero = (weight * x * y).sum(axis=2) / (weight * x**2).sum(axis=2)
    # Where b would be negative the error does not fall; where a would be, the law goes to 0.
    return np.where(b < 0, mean_y, np.maximum(a, 0)), np.where(b < 0, 0.0, np.where(a < 0, through_zero, b))


def more_labels(laws: PowerLaws, now: int) -> MoreLabels:
    """What a point less than the error at ``now`` takes; the first law is of what was seen, the others of resamples."""
    error = laws.error([now])[:, 0]
    more = np.maximum(laws.images_for(error - POINT) - now, 1.0)
    low, high = np.quantile(more[1:], (0.025, 0.975), method="inverted_cdf")  # which takes no mean with infinity

    def said(value: float) -> int | None:
        return math.ceil(value) if value <= (FARTHEST - 1) * now else None

    ends = said(min(low, more[0])), said(max(high, more[0]))
    return MoreLabels(now, float(error[0]), said(more[0]), *ends, never=float(np.isinf(more[1:]).mean()))
