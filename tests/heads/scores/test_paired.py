"""One rule for 'better': McNemar's mid-p against sums of the binomial, and the interval that agrees with it."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from pipeline.base.errors import HeadError
from pipeline.heads.scores.paired import paired_difference


def pair(b: int, c: int, same: int = 30):
    """Which rows two classifiers have right: b the first alone, c the second alone; half of the others both."""
    both = [i % 2 == 0 for i in range(same)]
    return np.array([True] * b + [False] * c + both), np.array([False] * b + [True] * c + both)


@pytest.mark.parametrize(("b", "c"), [(1, 0), (0, 4), (5, 5), (9, 2), (2, 9), (30, 14)])
def test_p_is_the_exact_one_less_half_of_what_was_seen_on_either_side(b, c):
    """Fagerland et al. 2013: the exact conditional p, less the probability of what was seen."""
    found = paired_difference(*pair(b, c))
    assert (found.b, found.c, found.n) == (b, c, b + c + 30)
    exact = 2 * scipy.stats.binom.cdf(min(b, c), b + c, 0.5) - scipy.stats.binom.pmf(b, b + c, 0.5)
    assert found.p == pytest.approx(exact)


def test_the_value_is_the_difference_of_the_accuracies():
    first, second = pair(3, 8)
    found = paired_difference(first, second)
    assert found.value == pytest.approx(second.mean() - first.mean())
    assert found.low < found.value < found.high


@pytest.mark.slow
def test_p_and_interval_say_the_same_for_all_small_counts():
    """p < .05 exactly where the interval leaves out 0; the word is the interval's."""
    for b in range(61):
        for c in range(61):
            found = paired_difference(*pair(b, c, 2))
            assert (found.p < 0.05) == (found.low > 0 or found.high < 0) == (found.word != "not told"), (b, c)
            assert found.word == "not told" or found.word == ("better" if c > b else "worse"), (b, c)


def test_each_end_is_where_the_tails_with_half_of_what_was_seen_are_a_fortieth():
    """Of the share of the 17 changed rows that are the second's, and of the share of rows that change."""
    found = paired_difference(*pair(4, 13, 83))

    def end(k, n, side):
        def tail(p):
            beyond = scipy.stats.binom.sf(k, n, p) if side < 0 else scipy.stats.binom.cdf(k - 1, n, p)
            return beyond + scipy.stats.binom.pmf(k, n, p) / 2 - 0.025

        return scipy.optimize.brentq(tail, 1e-9, 1 - 1e-9)

    low, high = (2 * end(13, 17, side) - 1 for side in (-1, 1))
    assert low > 0  # so that the smaller share of changed rows makes the interval wider
    assert (found.low, found.high) == pytest.approx((low * end(17, 100, -1), high * end(17, 100, 1)), rel=1e-6)


def test_the_first_beside_the_second_is_the_same_turned_round():
    found, turned = paired_difference(*pair(2, 11)), paired_difference(*pair(11, 2))
    assert (turned.low, turned.high, turned.value) == pytest.approx((-found.high, -found.low, -found.value))
    assert (found.word, turned.word, turned.p) == ("better", "worse", found.p)


def test_four_mended_and_none_broken_prove_nothing():
    found = paired_difference(*pair(0, 4, 265))
    assert found.word == "not told"
    assert found.p == pytest.approx(0.0625)


def test_right_on_the_same_rows_is_no_difference():
    found = paired_difference(*pair(0, 0, 269))
    assert (found.value, found.p, found.word) == (0.0, 1.0, "not told")
    assert -found.low == found.high == pytest.approx(1 - 0.05 ** (1 / 269), rel=0.1)  # nor are 269 rows all rows


def test_rows_that_cannot_be_paired_are_refused():
    with pytest.raises(HeadError, match="3 and 4 rows"):
        paired_difference(np.ones(3, bool), np.ones(4, bool))
    with pytest.raises(HeadError, match="at least one"):
        paired_difference(np.ones(0, bool), np.ones(0, bool))


@pytest.mark.slow
def test_the_interval_holds_the_true_difference():
    rng = np.random.default_rng(0)
    print()
    for broken, mended in ((0, 0.01), (0.005, 0.015), (0, 0.05), (0.02, 0.05), (0.05, 0.05), (0.05, 0.1)):
        for n in (50, 269, 2000):
            drawn = rng.multinomial(n, [broken, mended, 1 - broken - mended], size=2000)
            counts, times = np.unique(drawn[:, :2], axis=0, return_counts=True)
            found = [paired_difference(*pair(int(b), int(c), int(n - b - c))) for b, c in counts]
            share = sum(t for f, t in zip(found, times, strict=True) if f.low <= mended - broken <= f.high) / 2000
            print(f"{n:5d} rows, {broken:.1%} broken, {mended:.1%} mended: {share:.3f}")
            assert share > 0.935  # 0.95 less three standard errors of 2,000 draws
