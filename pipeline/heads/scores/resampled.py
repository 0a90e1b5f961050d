"""Figures of several heads on the same rows, and how far another draw of both would change their mean.

Knows predicted classes, labels, and which rows are copies of one image. Rows and heads are drawn with replacement, each
by themselves: the pigeonhole bootstrap (Owen 2007, doi 10.1214/07-AOAS122), whose variance of a mean over both is the
sum of both's, or a little more. Of D heads D - 1 are drawn, which makes their part of the variance unbiased (Rao and Wu
1988, doi 10.1080/01621459.1988.10478591). The interval is then a share's, as all intervals here (``intervals``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

from pipeline.heads.scores.intervals import LEVEL, Interval, binomial_interval
from pipeline.heads.scores.metrics import shares

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

TIMES = 1000


@dataclass(frozen=True, eq=False)
class Resampled:
    """The mean figure of each of K groups of heads: as it is (K,), of the resamples (B, K), and their variance (K,).

    ``rows`` is how many rows the figure of one head is worth: as many as there are images, for a mean over classes as
    many as if all were of one size. ``variance`` is never below that of a share of so many; ``intervals`` are of 95 %.
    """

    value: Floats
    resamples: Floats
    variance: Floats
    intervals: Sequence[Interval]
    rows: float


def weighted_figures(name: str, y: Numbers, predicted: Numbers, weight: Floats, classes: int) -> Floats:
    """The ``accuracy``, ``balanced_accuracy`` or ``macro_f1`` (P,) of predicted classes (P, n) for labels (n,).

    Rows count ``weight`` (n,) times; means over classes are over those that occur.
    """
    hit = predicted == y
    if name == "accuracy":
        return np.asarray(hit @ weight / weight.sum())
    heads = len(predicted)
    weights, place = np.broadcast_to(weight, predicted.shape), classes * np.arange(heads)[:, None]

    def by_class(numbers: Any, of: Any) -> Floats:
        counts: Floats = np.bincount(numbers, of, minlength=heads * classes).astype(np.float64)
        return counts.reshape(heads, classes)

    support = np.bincount(y, weight, minlength=classes)
    right = by_class((place + predicted)[hit], weights[hit])
    there = support > 0
    if name == "balanced_accuracy":
        return np.asarray((right[:, there] / support[there]).mean(axis=1))
    guesses = by_class((place + predicted).ravel(), weights.ravel())
    f1 = [shares(2 * own, support + taken)[there] for own, taken in zip(right, guesses, strict=True)]
    return np.asarray(np.mean(f1, axis=1))


def resampled(
    name: str, y: Numbers, groups: Sequence[Numbers], images: Numbers, *, seed: Any, times: int = TIMES
) -> Resampled:
    """The mean figure ``name`` of groups of heads, each (D, n) predicted classes for the same labels (n,).

    ``images`` (n,) are the numbers, from 0 without gaps, of the rows' images: copies are drawn together. Head d of one
    group is drawn with head d of those that have as many: draws that contain each other stay together.
    """
    classes = 1 + max(int(y.max()), *(int(g.max()) for g in groups))
    predicted = np.concatenate(groups)
    starts = np.cumsum([0, *map(len, groups)])
    rng, n_images = np.random.default_rng(seed), int(images.max()) + 1

    def means(weight: Floats, drawn: dict[int, Any]) -> list[float]:
        figures = weighted_figures(name, y, predicted, weight, classes)
        return [float(figures[s : s + len(g)][drawn[len(g)]].mean()) for s, g in zip(starts, groups, strict=False)]

    sizes = sorted({len(g) for g in groups})
    values = weighted_figures(name, y, predicted, np.ones(len(y)), classes)
    found = np.empty((times, len(groups)))
    for row in found:
        weight = np.bincount(rng.integers(n_images, size=n_images), minlength=n_images)[images].astype(np.float64)
        row[:] = means(weight, {d: rng.integers(d, size=max(1, d - 1)) for d in sizes})
    value = np.array(means(np.ones(len(y)), {d: np.arange(d) for d in sizes}))
    worth = _rows_worth(name, y) * n_images / len(y)
    of_groups = [
        _interval(values[s : s + len(g)], column, worth) for s, g, column in zip(starts, groups, found.T, strict=False)
    ]
    return Resampled(value, found, np.array([v for v, _ in of_groups]), [i for _, i in of_groups], worth)


def _rows_worth(name: str, y: Numbers) -> float:
    """So many rows are as good as these for the figure, if classes are alike (see ``intervals``)."""
    support = np.unique(y, return_counts=True)[1]
    return float(len(y) if name == "accuracy" else len(support) / (1 / support).mean())


def _interval(figures: Floats, resamples: Floats, worth: float) -> tuple[float, Interval]:
    """Variance and interval of the mean of the heads' figures (D,), from its resamples (B,).

    Of few draws the variance is itself uncertain: the interval is as much wider as Student's distribution is, with the
    degrees of freedom of a sum of two variances (Satterthwaite 1946, doi 10.2307/3002019).
    """
    value, variance, draws = float(figures.mean()), float(resamples.var(ddof=1)), len(figures)
    smoothed = (value * worth + 1) / (worth + 2)  # where all rows are right, they seem to have no variance
    least = smoothed * (1 - smoothed) / worth
    wider = 1.0
    if draws > 1 and variance > 0:
        of_draws = min(variance, float(figures.var(ddof=1)) / draws)
        uncertain = of_draws**2 / (draws - 1) + (variance - of_draws) ** 2 / max(1.0, worth - 1)
        tail = (1 + LEVEL) / 2
        wider = float(stdtrit(variance**2 / uncertain, tail) / ndtri(tail)) ** 2
    rows = min(worth, value * (1 - value) / (wider * variance)) if variance > 0 and 0 < value < 1 else worth
    return max(variance, least), binomial_interval(value * rows, rows)
