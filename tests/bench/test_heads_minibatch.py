"""The minibatch heads' entries at toy size, and the features that they are measured on."""

import math

import numpy as np
import pytest

from pipeline.base.watch import Watch
from pipeline.bench.features import power_law, power_law_pieces
from pipeline.bench.heads_minibatch import bench_batched, bench_epoch, bench_streamed
from pipeline.bench.measure import Bench


@pytest.fixture
def bench(tmp_path):
    return Bench(1, tmp_path, Watch())


def only(figures):
    (figure,) = figures
    assert all(math.isfinite(v) and v > 0 for v in figure.each)
    return figure


def test_batched_compares_a_pass_with_heads_one_after_another(bench):
    figure = only(bench_batched(bench, rows=300, dim=16, classes=3, side=2, epochs=1))
    assert figure.value > 0 and next(iter(figure.ways)) == "4 heads in one pass"


def test_epoch_compares_cached_features_with_the_trunk(bench, monkeypatch):
    monkeypatch.setattr("pipeline.bench.heads_minibatch.available_engines", lambda device: ["torch"])
    figure = only(bench_epoch(bench, rows=300, dim=16, trunk="resnet18", image_size=32, batch=2))
    assert figure.value > 1


@pytest.mark.slow  # starts whole processes, and times them
def test_streamed_gives_the_peak_of_a_process(bench):
    assert 100 < only(bench_streamed(bench, rows=3000, dim=64, heads=2)).value < 1000


def test_power_law_features_have_the_spectrum_that_is_promised():
    X, y = power_law(20_000, 16, 5, seed=0)
    assert (X.dtype, X.shape, y.dtype, y.shape) == (np.float16, (20_000, 16), np.int64, (20_000,))
    values = np.linalg.eigvalsh(np.cov(X.astype(float).T))[::-1]
    np.testing.assert_allclose(values, 1 / np.arange(1, 17), rtol=0.05)
    assert sorted(set(y.tolist())) == [0, 1, 2, 3, 4]


def test_power_law_features_are_the_same_from_the_same_seed():
    one, two, other = (power_law(50, 8, 3, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])
    assert not np.array_equal(one[0], other[0])


def test_power_law_features_in_pieces_are_of_one_basis_and_one_map():
    pieces = list(power_law_pieces(50_000, 8, 3, 0, piece=20_000))
    assert [len(X) for X, _ in pieces] == [len(y) for _, y in pieces] == [20_000, 20_000, 10_000]
    for mine, whole in zip(pieces[0], power_law(20_000, 8, 3, 0), strict=True):
        np.testing.assert_array_equal(mine, whole)
    first, last = (np.cov(X.astype(float).T) for X, _ in (pieces[0], pieces[2]))
    np.testing.assert_allclose(first, last, atol=0.03)
    means = [np.stack([X[y == c].astype(float).mean(axis=0) for c in range(3)]) for X, y in (pieces[0], pieces[2])]
    np.testing.assert_allclose(*means, atol=0.05)
    assert np.abs(means[0]).max() > 0.2
