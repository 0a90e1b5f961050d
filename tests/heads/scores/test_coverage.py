"""How often a 95 % interval holds the true figure: exactly for a share, by drawing for the means over classes.

``pytest --slow -s tests/heads/scores/test_coverage.py`` prints the tables, with what else there is beside ours:
Wilson's interval, the bootstrap's (percentile, and basic: reversed about the figure), and MOVER (Zou and Donner 2008,
doi 10.1002/sim.3095), which puts Wilson's intervals of the classes together.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, norm

from pipeline.heads.scores.confusion import Confusion
from pipeline.heads.scores.intervals import balanced_accuracy_interval, binomial_interval, macro_f1_interval

Z = norm.ppf(0.975)
DRAWS, RESAMPLES = 500, 300
ROUNDING = 1e-12


def wilson(p, n):
    centre, half = p + Z**2 / (2 * n), Z * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return (centre - half) / (1 + Z**2 / n), (centre + half) / (1 + Z**2 / n)


def exact_coverage(interval, p, n):
    """The sum of the binomial over all counts whose interval holds p."""
    seen = np.flatnonzero(binom.pmf(np.arange(n + 1), n, p) > 1e-9)
    ends = [interval(k) for k in seen.tolist()]
    return sum(binom.pmf(k, n, p) for k, (low, high) in zip(seen, ends, strict=True) if low <= p <= high)


@pytest.mark.parametrize("n", [50, 269, 2000])
def test_the_interval_of_a_share_covers_near_1_too(n):
    for p in (0.6, 0.8, 0.9, 0.95, 0.99, 0.995):
        ours = exact_coverage(lambda k: binomial_interval(k, n), p, n)
        theirs = exact_coverage(lambda k: wilson(k / n, n), p, n)
        percentile = exact_coverage(lambda k: binom.ppf([0.025, 0.975], n, k / n) / n, p, n)
        print(
            f"\n{n:5d} rows, true {p:5.3f}: ours {ours:.3f}, Wilson {theirs:.3f}, percentile {percentile:.3f}", end=""
        )
        assert ours >= 0.93


def truth(classes, accuracy, balanced, worse):
    """Probabilities of all cells (C, C), the rarest class's a tenth of the commonest's if not ``balanced``.

    ``worse``: the rarer a class, the more of it is mistaken.
    """
    prior = np.ones(classes) if balanced else 10.0 ** -np.linspace(0, 1, classes)
    wrong = np.full(classes, 1 - accuracy)
    if worse:
        wrong *= np.arange(1, classes + 1) / np.arange(1, classes + 1).mean()
    cells = np.tile((wrong / (classes - 1))[:, None], (1, classes))
    np.fill_diagonal(cells, 1 - wrong)
    return cells * (prior / prior.sum())[:, None]


def figures(tables):
    """Balanced accuracy and macro-F1 of confusion matrices (..., C, C)."""
    right, rows = np.einsum("...ii->...i", tables), tables.sum(axis=-1)
    both = rows + tables.sum(axis=-2)
    recall = (right / np.maximum(rows, ROUNDING)).sum(axis=-1) / (rows > 0).sum(axis=-1)
    return recall, (2 * right / np.maximum(both, ROUNDING)).sum(axis=-1) / (rows > 0).sum(axis=-1)


def bootstrap(table, rng):
    """Percentile and basic interval, (low, high) each, of balanced accuracy and of macro-F1."""
    cells = np.flatnonzero(table)
    drawn = rng.multinomial(table.sum(), table.flat[cells] / table.sum(), size=RESAMPLES)
    a, b, c = cells // len(table), cells % len(table), len(table)
    of_class, of_guess = np.eye(c)[a], np.eye(c)[b]
    right, rows, guesses = drawn @ (of_class * (a == b)[:, None]), drawn @ of_class, drawn @ of_guess
    recall = (right / np.maximum(rows, 1)).sum(axis=1) / (rows > 0).sum(axis=1)
    f1 = (2 * right / np.maximum(rows + guesses, 1)).sum(axis=1) / (rows > 0).sum(axis=1)
    for values, value in zip((recall, f1), figures(table), strict=True):
        low, high = np.quantile(values, [0.025, 0.975])
        yield (low, high), (2 * value - high, min(1, 2 * value - low))


def mover(table):
    rows, right = table.sum(axis=1), np.diag(table)
    recall, rows = right[rows > 0] / rows[rows > 0], rows[rows > 0]
    low, high = wilson(recall, rows)
    mean, c = recall.mean(), len(rows)
    return mean - np.sqrt(((recall - low) ** 2).sum()) / c, mean + np.sqrt(((high - recall) ** 2).sum()) / c


@pytest.mark.slow
@pytest.mark.parametrize("worse", [False, True], ids=["alike", "rare worse"])
@pytest.mark.parametrize("balanced", [True, False], ids=["balanced", "10 to 1"])
@pytest.mark.parametrize(("classes", "n"), [(2, 269), (2, 2000), (10, 269), (10, 2000), (100, 269), (100, 2000)])
def test_intervals_of_means_over_classes_cover_where_the_median_class_has_five_rows(classes, n, balanced, worse):
    """100 classes of 269 rows have no interval: the table says why."""
    rng = np.random.default_rng(0)
    for accuracy in (0.8, 0.95, 0.99):
        cells = truth(classes, accuracy, balanced, worse)
        true = figures(cells)
        held = []
        for table in rng.multinomial(n, cells.ravel(), size=DRAWS).reshape(-1, classes, classes):
            recall, f1 = bootstrap(table, rng)
            seen = Confusion.of_table(table)
            intervals = [(balanced_accuracy_interval(seen), mover(table), *recall), (macro_f1_interval(seen), *f1)]
            held.append(
                [
                    low <= t + ROUNDING and t <= high + ROUNDING
                    for t, of in zip(true, intervals, strict=True)
                    for low, high in of
                ]
            )
        means = np.mean(held, axis=0)
        names = ("ours", "MOVER", "percentile", "basic", "ours", "percentile", "basic")
        said = [f"{name} {mean:.3f}" for name, mean in zip(names, means, strict=True)]
        what = f"{classes:3d} classes, {n:5d} rows, {'balanced' if balanced else '10 to 1 '}, recall {accuracy:.2f}"
        what += ", rare worse" if worse else ", alike     "
        print(f"\n{what}: recall {', '.join(said[:4])}; F1 {', '.join(said[4:])}", end="")
        if n >= 5 * classes:
            assert means[0] >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / DRAWS)
            assert means[4] >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / DRAWS)
