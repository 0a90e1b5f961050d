"""Mean figures of several heads on the same rows, and their intervals, against scikit-learn, formulas and draws."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from pipeline.heads.scores.intervals import binomial_interval
from pipeline.heads.scores.resampled import resampled, weighted_figures

THEIRS = {
    "accuracy": metrics.accuracy_score,
    "balanced_accuracy": metrics.balanced_accuracy_score,
    "macro_f1": lambda y, guess, sample_weight: metrics.f1_score(
        y, guess, sample_weight=sample_weight, average="macro", labels=np.unique(y)
    ),
}


def recalls(y, guess, sample_weight):
    """The same as balanced accuracy, which warns of a guess that is no row's class."""
    return metrics.recall_score(y, guess, average="macro", labels=np.unique(y), sample_weight=sample_weight)


def answers(heads=4, n=300, classes=5, right=0.7, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.choice(classes, n, p=np.arange(1, classes + 1) / sum(range(1, classes + 1)))
    return y, np.where(rng.random((heads, n)) < right, y, rng.integers(0, classes, (heads, n)))


@pytest.mark.parametrize("name", THEIRS)
def test_figures_of_weighted_rows_are_scikit_learns(name):
    y, guess = answers()
    weight = np.random.default_rng(1).integers(1, 4, len(y)).astype(float)
    found = weighted_figures(name, y, guess, weight, 5)
    assert found == pytest.approx([THEIRS[name](y, one, sample_weight=weight) for one in guess])


@pytest.mark.parametrize("name", THEIRS)
def test_a_class_that_no_row_counts_for_has_no_part_in_a_mean(name):
    y, guess = answers()
    weight = (y != 2).astype(float)
    left = weight > 0
    theirs = THEIRS[name] if name != "balanced_accuracy" else recalls
    expected = [theirs(y[left], one[left], sample_weight=None) for one in guess]
    assert weighted_figures(name, y, guess, weight, 5) == pytest.approx(expected)


@pytest.mark.parametrize("name", THEIRS)
def test_the_value_is_the_mean_over_the_heads_of_each_group(name):
    y, guess = answers(heads=5)
    found = resampled(name, y, [guess[:4], guess[4:]], np.arange(len(y)), seed=0, times=20)
    each = [THEIRS[name](y, one, sample_weight=None) for one in guess]
    assert found.value == pytest.approx([np.mean(each[:4]), each[4]])
    assert found.resamples.shape == (20, 2)
    for value, (low, high) in zip(found.value, found.intervals, strict=True):
        assert low < value < high


def test_one_heads_interval_is_the_binomials():
    """Its variance is accuracy (1 - accuracy) / n, which the resamples find but for chance; never narrower."""
    y, guess = answers(heads=1, n=1000)
    found = resampled("accuracy", y, [guess], np.arange(1000), seed=0)
    expected = binomial_interval(int((guess[0] == y).sum()), 1000)
    assert found.intervals[0] == pytest.approx(expected, abs=0.003)
    assert found.variance[0] == pytest.approx(found.value[0] * (1 - found.value[0]) / 1000, rel=0.15)


def test_the_variance_is_that_of_heads_and_rows_together():
    rng = np.random.default_rng(0)
    shares = rng.normal(0.7, 0.1, (8, 1)).clip(0, 1)
    y = np.zeros(2000, np.int64)
    guess = (rng.random((8, 2000)) > shares).astype(np.int64)
    found = resampled("accuracy", y, [guess], np.arange(2000), seed=0)
    of_heads = (guess == 0).mean(axis=1).var(ddof=1) / 8
    of_rows = (guess == 0).mean(axis=0).var(ddof=1) / 2000
    assert found.variance[0] == pytest.approx(of_heads + of_rows, rel=0.2)


def test_copies_count_as_one_image():
    y, guess = answers(heads=1, n=200)
    once = resampled("accuracy", y, [guess], np.arange(200), seed=0)
    four = resampled("accuracy", np.tile(y, 4), [np.tile(guess, 4)], np.tile(np.arange(200), 4), seed=0)
    assert four.variance == pytest.approx(once.variance) and four.intervals[0] == pytest.approx(once.intervals[0])


def test_all_right_is_not_known_to_be_all_right():
    y = np.arange(50) % 2
    found = resampled("accuracy", y, [np.stack([y, y])], np.arange(50), seed=0)
    assert found.value[0] == 1 and found.variance[0] > 0
    assert found.intervals[0] == binomial_interval(50, 50)


def test_draws_of_groups_of_as_many_heads_stay_together():
    """Two groups that are the same have the same resamples, whatever heads are drawn."""
    y, guess = answers(heads=6)
    found = resampled("accuracy", y, [guess, guess, guess[:1]], np.arange(len(y)), seed=0, times=50)
    np.testing.assert_array_equal(found.resamples[:, 0], found.resamples[:, 1])
    assert not np.array_equal(found.resamples[:, 0], found.resamples[:, 2])


def test_the_same_seed_gives_the_same_bits_and_another_others():
    y, guess = answers()
    first, again, other = (resampled("macro_f1", y, [guess], np.arange(len(y)), seed=s, times=20) for s in (1, 1, 2))
    assert first.resamples.tobytes() == again.resamples.tobytes() != other.resamples.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize(("spread", "rows"), [(0.02, 300), (0.08, 300), (0.08, 3000)])
def test_the_interval_holds_the_true_mean(spread, rows, capsys):
    """Five draws of heads that differ, rows that are easier and harder: nominal .95."""
    rng, held, trials = np.random.default_rng(0), 0, 150
    y = np.zeros(rows, np.int64)
    for _ in range(trials):
        ease, skill = rng.normal(0.75, 0.2, rows), rng.normal(0, spread, (5, 1))
        guess = (rng.random((5, rows)) > (ease + skill).clip(0, 1)).astype(np.int64)
        (low, high), *_ = resampled("accuracy", y, [guess], np.arange(rows), seed=0, times=200).intervals
        held += low <= true_mean(spread) <= high
    with capsys.disabled():
        print(f"\nspread {spread}, {rows} rows: {held / trials:.3f}")
    assert held / trials >= 0.9


def true_mean(spread):
    rng = np.random.default_rng(7)
    return float((rng.normal(0.75, 0.2, 10**6) + rng.normal(0, spread, 10**6)).clip(0, 1).mean())
