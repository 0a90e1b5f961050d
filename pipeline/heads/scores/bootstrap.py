"""How far a test figure can be trusted: bootstrap intervals, and the difference of two heads on the same rows.

Knows labels and predictions only. A resample of N rows with replacement is a multinomial draw of the confusion matrix's
counts (Efron and Tibshirani 1993), so that 2,000 resamples cost 2,000 small draws and no row is touched again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr

from pipeline.base.errors import ConfigError, HeadError
from pipeline.heads.problem import check_labels

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

METRICS = ("accuracy", "balanced_accuracy", "macro_f1")
RESAMPLES = 2000
LEVEL = 0.95
DRAWN_AT_ONCE = 4_000_000  # counts


@dataclass(frozen=True)
class Resampling:
    """How rows are drawn anew: ``n`` times from ``seed``; an interval holds the share ``level`` of the draws' figures.

    Raises:
        ConfigError: n below 1 or a level outside 0 ... 1.
    """

    n: int = RESAMPLES
    seed: int = 0
    level: float = LEVEL

    def __post_init__(self) -> None:
        """Refuse what gives no interval."""
        if self.n < 1:
            raise ConfigError(f"{self.n} resamples: at least 1 is needed")
        if not 0 < self.level < 1:
            raise ConfigError(f"interval level is {self.level}: it must be above 0 and below 1")

    def interval(self, values: Floats) -> tuple[float, float]:
        """The percentile interval of the draws' figures (n,)."""
        low, high = np.quantile(values, [(1 - self.level) / 2, (1 + self.level) / 2])
        return float(low), float(high)


PLAIN = Resampling()


@dataclass(frozen=True)
class Difference:
    """Accuracy of the second minus that of the first, and its percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class McNemar:
    """Rows that only the first has right (b), only the second (c), and the exact two-sided p of b against c."""

    b: int
    c: int
    p: float


def bootstrap_intervals(
    y: npt.NDArray[Any],
    predicted: npt.NDArray[Any],
    *,
    n_classes: int,
    metrics: Sequence[str] = METRICS,
    resampling: Resampling = PLAIN,
) -> dict[str, tuple[float, float]]:
    """The percentile interval (low, high) of each figure of predictions (N,) against labels (N,), both class numbers.

    Every resample is scored by the definitions of :class:`pipeline.heads.scores.metrics.Scores`; a class that it
    happens to miss is left out of its means. Same seed, same intervals.

    Raises:
        ConfigError: an unknown figure.
        HeadError: no rows, or labels or predictions out of range.
    """
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(f"no bootstrap interval for {name!r}: choose from {', '.join(METRICS)}")
    _require_rows(len(y))
    true = check_labels(y, len(y), n_classes, "scored")
    guess = check_labels(predicted, len(y), n_classes, "predicted")
    cells, counts = np.unique(true * n_classes + guess, return_counts=True)
    rng, parts = np.random.default_rng(resampling.seed), []
    step = max(1, DRAWN_AT_ONCE // len(cells))
    for start in range(0, resampling.n, step):
        drawn = rng.multinomial(len(y), counts / len(y), size=min(step, resampling.n - start))
        parts.append(_figures(drawn, cells // n_classes, cells % n_classes, n_classes))
    return {name: resampling.interval(np.concatenate([part[name] for part in parts])) for name in metrics}


def paired_bootstrap(
    correct_a: npt.NDArray[np.bool_], correct_b: npt.NDArray[np.bool_], *, resampling: Resampling = PLAIN
) -> Difference:
    """The difference of two accuracies on the same rows (N,), b - a, rows drawn in pairs; same seed, same interval.

    Raises:
        HeadError: no rows, or not the same number of both.
    """
    _require_rows(len(correct_a))
    only_a, only_b = _disagreements(correct_a, correct_b)
    rows = len(correct_a)
    shares = np.array([only_a, only_b, rows - only_a - only_b]) / rows
    drawn = np.random.default_rng(resampling.seed).multinomial(rows, shares, size=resampling.n)
    low, high = resampling.interval((drawn[:, 1] - drawn[:, 0]) / rows)
    return Difference(value=(only_b - only_a) / rows, low=low, high=high)


def mcnemar(correct_a: npt.NDArray[np.bool_], correct_b: npt.NDArray[np.bool_]) -> McNemar:
    """McNemar's exact test of two classifiers on the same rows (N,): b of b + c disagreements against a fair coin.

    Without a disagreement p is 1.

    Raises:
        HeadError: no rows, or not the same number of both.
    """
    only_a, only_b = _disagreements(correct_a, correct_b)
    # A fair coin is symmetric: both tails are twice the smaller one, at most 1.
    tail = float(bdtr(min(only_a, only_b), only_a + only_b, 0.5))
    return McNemar(only_a, only_b, min(1.0, 2 * tail))


def _require_rows(rows: int) -> None:
    if not rows:
        raise HeadError("no rows to resample: at least one is needed")


def _disagreements(correct_a: npt.NDArray[np.bool_], correct_b: npt.NDArray[np.bool_]) -> tuple[int, int]:
    if correct_a.shape != correct_b.shape or not len(correct_a):
        raise HeadError(f"{len(correct_a)} and {len(correct_b)} rows cannot be paired: the same rows are needed")
    return int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())


def _figures(drawn: Counts, true: Counts, guess: Counts, n_classes: int) -> dict[str, Floats]:
    """Each figure (R,) of R resamples, given as counts (R, K) of K cells (true class, predicted class)."""
    support, guesses = _by_class(drawn, true, n_classes), _by_class(drawn, guess, n_classes)
    diagonal = true == guess
    right = np.zeros_like(support)
    right[:, true[diagonal]] = drawn[:, diagonal]
    # A class without rows adds 0 to the sum and is not counted; the larger of it and 1 only spares a 0 / 0.
    recall = (right / np.maximum(support, 1)).sum(axis=1) / (support > 0).sum(axis=1)
    seen = support + guesses
    f1 = (2 * right / np.maximum(seen, 1)).sum(axis=1) / (seen > 0).sum(axis=1)
    return {"accuracy": right.sum(axis=1) / drawn.sum(axis=1), "balanced_accuracy": recall, "macro_f1": f1}


def _by_class(drawn: Counts, of: Counts, n_classes: int) -> Counts:
    """Sums (R, C) of counts (R, K) over the cells of each class."""
    order = np.argsort(of, kind="stable")
    classes, starts = np.unique(of[order], return_index=True)
    sums = np.zeros((len(drawn), n_classes), dtype=np.int64)
    sums[:, classes] = np.add.reduceat(drawn[:, order], starts, axis=1)
    return sums
