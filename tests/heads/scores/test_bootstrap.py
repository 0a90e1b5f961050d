"""Intervals against resampled rows scored by scikit-learn; McNemar against scipy."""

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics

from pipeline.base.errors import ConfigError, HeadError
from pipeline.heads.scores.bootstrap import Resampling, bootstrap_intervals, mcnemar, paired_bootstrap


def answers(n=200, c=5, right=0.7, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.choice(c, n, p=np.arange(1, c + 1) / sum(range(1, c + 1)))
    return y, np.where(rng.random(n) < right, y, rng.integers(0, c, n))


def plain(y, guess, n=2000):
    """The same intervals the plain way: rows drawn one by one, each resample scored by scikit-learn."""
    rng, found = np.random.default_rng(5), []
    for _ in range(n):
        rows = rng.integers(0, len(y), len(y))
        f1 = metrics.f1_score(y[rows], guess[rows], average="macro", zero_division=0)
        recall = np.diag(metrics.confusion_matrix(y[rows], guess[rows], normalize="true"))
        present = np.isin(np.union1d(y[rows], guess[rows]), y[rows])
        found.append([metrics.accuracy_score(y[rows], guess[rows]), recall[present].mean(), f1])
    return np.quantile(found, [0.025, 0.975], axis=0).T


def test_intervals_are_those_of_resampled_rows():
    y, guess = answers()
    found = bootstrap_intervals(y, guess, n_classes=5, resampling=Resampling(n=4000))
    # Two bootstraps of hundreds of resamples differ by chance: about a tenth of a half-width of 0.06.
    np.testing.assert_allclose(list(found.values()), plain(y, guess, n=400), atol=0.015)


def test_interval_of_the_accuracy_is_the_binomials():
    """Against the exact distribution of a resample's accuracy."""
    y, guess = answers(n=400)
    share = (y == guess).mean()
    expected = scipy.stats.binom.ppf([0.025, 0.975], 400, share) / 400
    found = bootstrap_intervals(y, guess, n_classes=5, resampling=Resampling(20000), metrics=["accuracy"])
    np.testing.assert_allclose(found["accuracy"], expected, atol=1.5 / 400)


def test_a_higher_level_gives_a_wider_interval():
    y, guess = answers()
    narrow, wide = (
        bootstrap_intervals(y, guess, n_classes=5, resampling=Resampling(level=level))["macro_f1"]
        for level in (0.5, 0.99)
    )
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_same_seed_gives_the_same_intervals_and_another_seed_others():
    y, guess = answers()
    first, again, other = (
        bootstrap_intervals(y, guess, n_classes=5, resampling=Resampling(seed=seed)) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_resamples_drawn_in_parts_are_those_drawn_at_once(monkeypatch):
    y, guess = answers()
    whole = bootstrap_intervals(y, guess, n_classes=5, resampling=Resampling(n=100))
    monkeypatch.setattr("pipeline.heads.scores.bootstrap.DRAWN_AT_ONCE", 7 * 25)
    assert bootstrap_intervals(y, guess, n_classes=5, resampling=Resampling(n=100)) == whole


def test_classes_without_rows_change_nothing():
    """A class that has no rows is left out of the means."""
    y, guess = answers()
    assert bootstrap_intervals(y, guess, n_classes=9) == bootstrap_intervals(y, guess, n_classes=5)


def test_a_perfect_score_has_no_spread():
    y, _ = answers()
    assert set(bootstrap_intervals(y, y, n_classes=5).values()) == {(1.0, 1.0)}


def test_difference_of_two_heads_is_that_of_resampled_pairs():
    y, a = answers()
    b = np.where(np.random.default_rng(3).random(200) < 0.3, y, a)
    found = paired_bootstrap(a == y, b == y, resampling=Resampling(20000))
    rows = np.random.default_rng(4).integers(0, 200, (20000, 200))
    differences = ((b == y).astype(int) - (a == y))[rows].mean(axis=1)
    assert found.value == pytest.approx((b == y).mean() - (a == y).mean())
    np.testing.assert_allclose((found.low, found.high), np.quantile(differences, [0.025, 0.975]), atol=0.005)


def test_pairs_are_tighter_than_two_intervals_side_by_side():
    y, a = answers()
    b = a.copy()
    b[:4] = y[:4]
    pair = paired_bootstrap(a == y, b == y)
    alone = bootstrap_intervals(y, a, n_classes=5)["accuracy"]
    assert pair.high - pair.low < (alone[1] - alone[0]) / 2


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 5), (9, 2), (2, 9), (30, 14)])
def test_mcnemar_is_the_exact_binomial_test(b, c):
    first = np.array([True] * b + [False] * c + [True] * 20 + [False] * 10)
    second = np.array([False] * b + [True] * c + [True] * 20 + [False] * 10)
    found = mcnemar(first, second)
    assert (found.b, found.c) == (b, c)
    assert found.p == pytest.approx(scipy.stats.binomtest(b, b + c).pvalue if b + c else 1.0)


def test_rows_that_cannot_be_paired_are_refused():
    with pytest.raises(HeadError, match="3 and 4 rows"):
        mcnemar(np.ones(3, bool), np.ones(4, bool))
    with pytest.raises(HeadError, match="at least one"):
        paired_bootstrap(np.ones(0, bool), np.ones(0, bool))


def test_wrong_options_name_the_legal_ones():
    y, guess = answers()
    with pytest.raises(ConfigError, match="'auroc': choose from accuracy, balanced_accuracy, macro_f1"):
        bootstrap_intervals(y, guess, n_classes=5, metrics=["auroc"])
    with pytest.raises(ConfigError, match="level is 95"):
        bootstrap_intervals(y, guess, n_classes=5, resampling=Resampling(level=95))
    with pytest.raises(ConfigError, match="0 resamples"):
        bootstrap_intervals(y, guess, n_classes=5, resampling=Resampling(n=0))
