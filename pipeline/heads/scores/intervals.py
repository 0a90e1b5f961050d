"""How far a test figure can be trusted: 95 % intervals of accuracy, top-5, balanced accuracy and macro-F1.

Knows counts only. An interval says how much another draw of test rows would change a figure; not what other train rows
or another seed would. All of them are a share's interval, of as many rows as the figure is worth. What each covers is
measured in ``tests/heads/scores/test_coverage.py``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import betainc

from pipeline.heads.scores.confusion import Confusion

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

LEVEL = 0.95
FEWEST_OF_A_CLASS = 5  # rows of the median class: of fewer, none that was tried covers where rare classes are worse
XTOL = 1e-12  # of an end


def above(p: float, hits: float, n: float) -> float:
    """P(X > hits) + P(X = hits) / 2 for X binomial (n, p); by the incomplete beta function, so for fractions, too."""
    from_here = betainc(hits, n - hits + 1, p) if hits > 0 else 1.0
    beyond = betainc(hits + 1, n - hits, p) if hits < n else 0.0
    return float(from_here + beyond) / 2


def binomial_interval(hits: float, n: float) -> Interval:
    """The mid-p interval of a share seen in ``hits`` of ``n`` rows (Berry and Armitage 1995, The Statistician 44, 417).

    All shares under which neither tail, with half of what was seen, is below 2.5 %: what McNemar's mid-p test does not
    refuse either. Of 50 rows that are right with probability 0.99 it covers .986, Wilson's score interval .911.
    """
    tail = (1 - LEVEL) / 2
    low = brentq(lambda p: above(p, hits, n) - tail, 0.0, 1.0, xtol=XTOL) if hits > 0 else 0.0
    high = brentq(lambda p: above(p, hits, n) - (1 - tail), 0.0, 1.0, xtol=XTOL) if hits < n else 1.0
    return float(low), float(high)


def score_intervals(confusion: Confusion, top5: float | None = None) -> dict[str, Interval | None]:
    """The interval of each figure of a confusion, and of a ``top5`` share of its rows.

    None for ``balanced_accuracy`` and ``macro_f1`` where the median class, of those that occur, has fewer than
    FEWEST_OF_A_CLASS rows. The figures are those of :class:`pipeline.heads.scores.metrics.Scores`.
    """
    n, support = confusion.rows, confusion.support
    enough = np.median(support[support > 0]) >= FEWEST_OF_A_CLASS
    found = {
        "accuracy": binomial_interval(int(confusion.right.sum()), n),
        "balanced_accuracy": balanced_accuracy_interval(confusion) if enough else None,
        "macro_f1": macro_f1_interval(confusion) if enough else None,
    }
    if top5 is not None:
        found["top5"] = binomial_interval(round(top5 * n), n)
    return found


def balanced_accuracy_interval(confusion: Confusion) -> Interval:
    """The interval of the mean recall over the classes that occur in a confusion.

    The variance is that of a mean of independent shares, each class's estimated without bias: recall (1 - recall) /
    (rows - 1).
    """
    support = confusion.support
    there = support > 0
    recall = confusion.right[there] / support[there]
    variance = float((recall * (1 - recall) / np.maximum(support[there] - 1, 1)).mean() / there.sum())
    return _of_a_mean(confusion, float(recall.mean()), variance)


def macro_f1_interval(confusion: Confusion) -> Interval:
    """The interval of the mean F1 over the classes that occur in a confusion.

    Variance and bias (of few rows F1 comes out too low) are the jackknife's (Efron and Tibshirani 1993, chapter 11):
    from what the figure would be without one of the rows. The interval is of the figure less its bias, and widened
    to hold the figure itself.
    """
    support = confusion.support
    right, total = confusion.right.astype(np.float64), (support + confusion.guesses).astype(np.float64)
    seen = support > 0
    value = float((2 * right[seen] / total[seen]).mean())
    n, change = float(confusion.rows), _without_a_row(confusion, right, total)
    mean = float((confusion.count * change).sum() / n)
    variance = float((confusion.count * (change - mean) ** 2).sum() * (n - 1) / n)
    low, high = _of_a_mean(confusion, min(1.0, max(0.0, value - (n - 1) * mean)), variance)
    return min(low, value), max(high, value)


def _of_a_mean(confusion: Confusion, value: float, variance: float) -> Interval:
    """The interval of a mean over classes: a share's, of as many rows as give a share this variance.

    The effective sample size of surveys (Korn and Graubard 1998, Survey Methodology 24, 193-201). A class of which all
    rows are right seems to have no variance, so that it is taken to be no less than if all classes were alike:
    accuracy (1 - accuracy) / rows in each.
    """
    support = confusion.support
    support = support[support > 0]
    accuracy = float(confusion.right.sum() / support.sum())
    rows = len(support) / float((1 / support).mean())  # so many are as good as these, if classes are alike
    variance = max(variance, accuracy * (1 - accuracy) / rows)
    if variance > 0 and 0 < value < 1:
        rows = value * (1 - value) / variance
    return binomial_interval(value * rows, rows)


def _without_a_row(confusion: Confusion, right: Floats, total: Floats) -> Floats:
    """What one row less in each cell (k,) changes of macro-F1; a class whose last row it is keeps its F1.

    F1 = 2 right / (rows + guesses): a row counts in the F1 of its class and of its guess, which is 0 with and without
    it where the guess is a class that has no rows.
    """
    f1 = 2 * right / np.maximum(total, 1)
    wrong = np.where(total > 1, 2 * right / np.maximum(total - 1, 1) - f1, 0.0)
    hit = np.where(total > 2, 2 * (right - 1) / np.maximum(total - 2, 1) - f1, 0.0)
    true, predicted = confusion.true, confusion.predicted
    change: Floats = np.where(true == predicted, hit[true], wrong[true] + wrong[predicted])
    return change / np.count_nonzero(confusion.support)
