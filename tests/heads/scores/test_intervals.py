"""Intervals of figures against sums of the binomial and rows left out one by one; what they cover: test_coverage.py."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics

from pipeline.heads.scores.confusion import Confusion
from pipeline.heads.scores.intervals import (
    balanced_accuracy_interval,
    binomial_interval,
    macro_f1_interval,
    score_intervals,
)


def answers(n=200, c=5, right=0.7, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.choice(c, n, p=np.arange(1, c + 1) / sum(range(1, c + 1)))
    return y, np.where(rng.random(n) < right, y, rng.integers(0, c, n))


def confusion(y, guess, c=5):
    return Confusion.of_table(metrics.confusion_matrix(y, guess, labels=range(c)))


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (1, 7), (5, 20), (48, 50), (268, 269), (1990, 2000)])
def test_each_end_is_where_the_tail_with_half_of_what_was_seen_is_a_fortieth(hits, n):
    low, high = binomial_interval(hits, n)
    for p, tail in ((low, scipy.stats.binom.sf(hits, n, low)), (high, scipy.stats.binom.cdf(hits - 1, n, high))):
        if 0 < p < 1:
            assert tail + 0.5 * scipy.stats.binom.pmf(hits, n, p) == pytest.approx(0.025)
    assert (low == 0) == (hits == 0)


def test_the_interval_is_the_published_one():
    """5 of 20, as the R package stests prints it."""
    assert binomial_interval(5, 20) == pytest.approx((0.09786008, 0.47022380), abs=1e-7)


def test_all_right_is_not_known_to_be_all_right():
    low, high = score_intervals(Confusion.of_table([[269]]))["accuracy"]
    assert (low, high) == (pytest.approx(0.05 ** (1 / 269)), 1.0)
    table = Confusion.of_table(np.diag([90, 90, 89]))
    for low, high in score_intervals(table).values():
        assert 0.98 < low < 0.99 and high == 1.0


def test_none_right_is_not_known_to_be_none_right():
    table = Confusion.of_table([[0, 20], [20, 0]])
    for low, high in score_intervals(table).values():
        assert low == 0.0 and 0.05 < high < 0.1


def test_one_class_alone_has_the_binomials_interval():
    """Recall and accuracy are then the same figure, of as many rows."""
    found = score_intervals(Confusion.of_table([[36, 4], [0, 0]]))
    n = 40 * 39 / 40  # the variance without bias is p (1 - p) / (n - 1)
    assert found["balanced_accuracy"] == pytest.approx(binomial_interval(0.9 * n, n))
    assert found["accuracy"] == binomial_interval(36, 40)


def test_the_interval_of_balanced_accuracy_is_that_of_as_many_rows_as_have_its_variance():
    y, guess = answers()
    recall, rows = metrics.recall_score(y, guess, average=None), np.bincount(y)
    variance = sum(r * (1 - r) / (n - 1) for r, n in zip(recall, rows, strict=True)) / 25
    alike = np.mean(y == guess) * np.mean(y != guess) * sum(1 / rows) / 25
    n = recall.mean() * (1 - recall.mean()) / max(variance, alike)
    assert balanced_accuracy_interval(confusion(y, guess)) == pytest.approx(binomial_interval(recall.mean() * n, n))


def test_the_interval_of_macro_f1_is_that_of_rows_left_out_one_by_one():
    y, guess = answers(seed=3)
    every = np.arange(len(y))
    left = np.array([metrics.f1_score(y[every != i], guess[every != i], average="macro") for i in every])
    value, n = metrics.f1_score(y, guess, average="macro"), len(y)
    variance = (n - 1) / n * ((left - left.mean()) ** 2).sum()
    alike = np.mean(y == guess) * np.mean(y != guess) * sum(1 / np.bincount(y)) / 25
    corrected = value - (n - 1) * (left.mean() - value)
    n = corrected * (1 - corrected) / max(variance, alike)
    assert macro_f1_interval(confusion(y, guess)) == pytest.approx(binomial_interval(corrected * n, n))


def test_of_a_class_that_was_only_predicted_macro_f1_has_no_part():
    """Its guesses are wrong answers for the classes that there are."""
    y, guess = answers(seed=3)
    guess = np.where((y % 5 == 0) & (np.arange(len(y)) % 3 == 0), 25, guess)
    there, every = np.unique(y), np.arange(len(y))

    def f1(rows):
        return metrics.f1_score(y[rows], guess[rows], labels=there, average="macro")

    left = np.array([f1(every != i) for i in every])
    value, n = f1(every >= 0), len(y)
    variance = (n - 1) / n * ((left - left.mean()) ** 2).sum()
    alike = np.mean(y == guess) * np.mean(y != guess) * sum(1 / np.bincount(y)) / 25
    corrected = value - (n - 1) * (left.mean() - value)
    n = corrected * (1 - corrected) / max(variance, alike)
    assert macro_f1_interval(confusion(y, guess, 26)) == pytest.approx(binomial_interval(corrected * n, n))


def test_an_interval_holds_its_figure():
    """Of few rows a class F1 comes out so far too low that the interval less the bias lies above it."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(400), 5)
    guess = np.where(rng.random(2000) < 0.7, y, rng.integers(0, 400, 2000))
    low, high = macro_f1_interval(confusion(y, guess, 400))
    assert low <= metrics.f1_score(y, guess, average="macro") <= high


def test_classes_without_rows_change_nothing():
    y, guess = answers()
    found, plain = score_intervals(confusion(y, guess, 9)), score_intervals(confusion(y, guess))
    for name, interval in plain.items():
        assert found[name] == pytest.approx(interval)


@pytest.mark.parametrize(("rows", "there"), [([4, 4, 40], False), ([5, 5, 40], True), ([1, 5, 40, 0], True)])
def test_means_over_classes_of_few_rows_have_none(rows, there):
    """The median of the classes that occur has to have five."""
    found = score_intervals(Confusion.of_table(np.diag(rows)))
    assert [found[name] is not None for name in ("accuracy", "balanced_accuracy", "macro_f1")] == [True, there, there]


def test_top5_has_the_interval_of_a_share_where_there_is_one():
    table = Confusion.of_table(np.full((10, 10), 2))
    assert score_intervals(table, 0.985)["top5"] == binomial_interval(197, 200)
    assert "top5" not in score_intervals(table)
