"""Labels that look wrong: the confident joint and its share against cleanlab and a plain double loop."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.base.errors import HeadError
from pipeline.heads.scores.intervals import binomial_interval
from pipeline.heads.scores.label_noise import label_noise
from pipeline.heads.scores.metrics import softmax

cleanlab_count = pytest.importorskip("cleanlab.count")
cleanlab_rank = pytest.importorskip("cleanlab.rank")


def noisy(n: int = 600, classes: int = 4, share: float = 0.1, seed: int = 0, spread: float = 3.0):
    """Logits (n, C) that know most true classes, labels (n,) of which ``share`` are flipped, and which (n,) bool."""
    rng = np.random.default_rng(seed)
    true = np.arange(n) % classes
    logits = rng.normal(size=(n, classes)) + spread * np.eye(classes)[true]
    flipped = np.zeros(n, bool)
    flipped[rng.permutation(n)[: round(share * n)]] = True
    y = np.where(flipped, (true + rng.integers(1, classes, n)) % classes, true)
    return logits.astype(np.float32), y.astype(np.int64), flipped


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [1.0, 3.0, 6.0])
def test_the_confident_joint_is_cleanlabs(seed: int, spread: float) -> None:
    logits, y, _ = noisy(seed=seed, spread=spread)
    p, found = softmax(logits), label_noise(logits, y)
    # Of several classes over their thresholds the paper takes the likeliest of these, cleanlab the likeliest of all.
    reached = p >= cleanlab_count.get_confident_thresholds(y, p) - 1e-6
    several = reached.sum(axis=1) > 1
    assert (reached[several, p[several].argmax(axis=1)]).all(), "the two rules would differ here"
    theirs = cleanlab_count.compute_confident_joint(y, p, calibrate=False)
    np.testing.assert_array_equal(found.joint.table(), theirs)


@pytest.mark.parametrize("seed", range(5))
def test_the_share_is_what_cleanlabs_joint_has_off_its_diagonal(seed: int) -> None:
    logits, y, _ = noisy(seed=seed)
    found, p = label_noise(logits, y), softmax(logits)
    counted = cleanlab_count.compute_confident_joint(y, p, calibrate=False)
    joint = (counted.T / counted.sum(axis=1) * np.bincount(y) / len(y)).T
    assert found.share == pytest.approx(1 - np.trace(joint), rel=1e-9)
    table = np.zeros((4, 4))
    for label, other, _, estimated in found.pairs():
        table[label, other] = estimated / len(y)
    np.testing.assert_allclose(table, joint - np.diag(np.diag(joint)), atol=1e-12)
    theirs = cleanlab_count.estimate_joint(y, p)  # it rounds to whole rows
    np.testing.assert_allclose(theirs - np.diag(np.diag(theirs)), table, atol=1 / len(y))


def test_self_confidence_and_margin_are_cleanlabs() -> None:
    logits, y, _ = noisy()
    p, found = softmax(logits / 2.0), label_noise(logits, y, 2.0)
    np.testing.assert_allclose(found.self_confidence, cleanlab_rank.get_self_confidence_for_each_label(y, p))
    theirs = cleanlab_rank.get_normalized_margin_for_each_label(y, p)  # (margin + 1) / 2
    np.testing.assert_allclose(found.margin, 2 * theirs - 1, atol=1e-12)


def test_thresholds_are_held_by_a_plain_loop() -> None:
    logits, y, _ = noisy(n=80, seed=3, spread=1.5)
    p, counts = softmax(logits), np.zeros((4, 4), int)
    thresholds = [np.mean([p[i, c] for i in range(80) if y[i] == c]) for c in range(4)]
    for i in range(80):
        over = [c for c in range(4) if p[i, c] >= thresholds[c]]
        if over:
            counts[y[i], max(over, key=lambda c: p[i, c])] += 1
    np.testing.assert_array_equal(label_noise(logits, y).joint.table(), counts)


def test_flipped_labels_are_found_and_counted() -> None:
    logits, y, flipped = noisy(n=4000, share=0.08, spread=8.0)
    found = label_noise(logits, y)
    assert found.interval[0] < 0.08 < found.interval[1]
    assert len(found.order) == round(found.share * len(y))
    assert flipped[found.order].mean() > 0.97
    first = found.self_confidence[found.order]
    assert (np.diff(first) >= 0).all()
    assert (found.predicted[found.order] != y[found.order]).all()


def test_the_interval_covers_the_share_of_another_draw() -> None:
    """The share of all rows lies within the interval of a quarter of them about as often as it says."""
    hits = 0
    logits, y, _ = noisy(n=20_000, spread=3.0, seed=11)
    whole = label_noise(logits, y).share
    for seed in range(40):
        rows = np.random.default_rng(seed).permutation(len(y))[:1500]
        low, high = label_noise(logits[rows], y[rows]).interval
        hits += low <= whole <= high
    assert hits >= 34  # of 40 at 95 %: fewer than 34 in one of 500


def test_the_interval_of_few_wrong_labels_covers_their_share() -> None:
    """2 % of labels wrong and heads that know all: of 100 rows each, where often none or one is wrong."""
    hits = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        true = np.arange(100) % 2
        y = np.where(rng.random(100) < 0.02, 1 - true, true)
        low, high = label_noise((20.0 * np.eye(2)[true]).astype(np.float32), y).interval
        hits += low <= 0.02 <= high
    assert hits >= 276  # of 300 at 95 %: fewer in one of 60


def test_the_same_rows_and_seed_give_the_same_bits() -> None:
    logits, y, _ = noisy()
    one, two, other = (label_noise(logits, y, seed=seed) for seed in (1, 1, 2))
    assert one.interval == two.interval != other.interval
    assert one.share == other.share


def test_a_class_without_rows_and_labels_that_are_all_right_are_no_trouble() -> None:
    logits = np.full((30, 3), -20, np.float32)
    y = np.arange(30) % 2
    logits[np.arange(30), y] = 20
    found = label_noise(logits, y)
    assert (found.share, len(found.order), found.pairs()) == (0.0, 0, [])
    assert found.interval == binomial_interval(0, 30)  # that none of 30 is suspected says little of 30,000


def test_rows_that_cannot_be_judged_are_refused() -> None:
    logits, y, _ = noisy(n=12)
    for bad in (logits[:0], np.full_like(logits, np.nan)):
        with pytest.raises(HeadError):
            label_noise(bad, y[: len(bad)])
