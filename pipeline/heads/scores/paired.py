"""Two classifiers on the same rows: is one better, or is it chance? The one rule for 'better'.

Knows which rows each has right, only. Rows that both have right or wrong say nothing of which is better. Of the others
c of b + c are right in the second: a share theta of them, one half where neither is better. McNemar's mid-p test
(Fagerland, Lydersen and Laake 2013, doi 10.1186/1471-2288-13-91) asks for theta = 1/2; the interval has all theta that
the same test does not refuse, as differences of accuracy, (2 theta - 1) s with s the share of rows that change. That is
known only as far as (b + c) / n tells, so of its own interval the end is taken that makes the difference's wider. So p
is below 0.05 exactly where the interval leaves out 0, and the interval holds the true difference in 95 % of cases or
more (with (b + c) / n for s it did in 23 to 94 % where one of the two is better).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import HeadError
from pipeline.heads.scores.intervals import above, binomial_interval

Word = Literal["better", "worse", "not told"]


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of the second minus that of the first on the same ``n`` rows, and its 95 % interval.

    ``b`` rows only the first has right, ``c`` only the second; ``p`` is the two-sided mid-p of McNemar's test.
    """

    value: float
    low: float
    high: float
    b: int
    c: int
    p: float
    n: int

    @property
    def word(self) -> Word:
        """What the second is beside the first."""
        return word(self.low, self.high)


def word(low: float, high: float) -> Word:
    """What an interval of a difference says; 'not told' where chance alone may be the difference."""
    return "better" if low > 0 else "worse" if high < 0 else "not told"


def paired_difference(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> PairedDifference:
    """The difference of two accuracies from which of the same rows (n,) each has right.

    Raises:
        HeadError: no rows, or not the same number of both.
    """
    if first.shape != second.shape or not len(first):
        raise HeadError(f"{len(first)} and {len(second)} rows cannot be paired: the same rows are needed, at least one")
    b, c, n = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
    towards = [2 * theta - 1 for theta in (binomial_interval(c, b + c) if b + c else (0.0, 1.0))]
    fewest, most = binomial_interval(b + c, n)
    # Away from 0 the largest share of changed rows, towards it the smallest: the interval's side is the test's alone.
    low, high = towards[0] * (most if towards[0] < 0 else fewest), towards[1] * (most if towards[1] > 0 else fewest)
    if not b + c:
        return PairedDifference(0.0, low, high, b, c, 1.0, n)
    # A fair coin is symmetric: twice the tail from the larger number on, what is equal to it counted half.
    p = min(1.0, 2 * above(0.5, max(b, c), b + c))
    return PairedDifference((c - b) / n, low, high, b, c, p, n)
