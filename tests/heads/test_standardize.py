"""Standardisation against scikit-learn and float64."""

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from pipeline.heads import standardize
from pipeline.heads.standardize import copied, fit_standardization, fold


def sparse(n=300, d=40):
    """Columns as a ReLU network's pooled features are: some hardly ever above 0, two always 0."""
    rng = np.random.default_rng(0)
    X = rng.gamma(0.5, 3.0, (n, d)) * np.geomspace(1e-6, 1, d)
    X[:, -2:] = 0
    return X.astype(np.float32)


def test_mean_and_scale_are_scikit_learns_where_columns_vary_alike():
    X = np.random.default_rng(0).gamma(0.5, 3.0, (300, 7)).astype(np.float32)
    ours, theirs = fit_standardization(X), StandardScaler().fit(X.astype(np.float64))
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-12)
    np.testing.assert_allclose(ours.scale, theirs.scale_, rtol=1e-12)


def test_no_scale_is_below_half_the_median_deviation_of_the_columns_that_vary():
    X = sparse()
    deviation = X.astype(np.float64).std(axis=0)
    expected = np.maximum(deviation, 0.5 * np.median(deviation[:-2]))
    np.testing.assert_allclose(fit_standardization(X).scale, expected, rtol=1e-12)


def test_a_column_that_is_active_in_one_train_row_by_a_trace_does_not_rule_a_new_row():
    """The defect that the floor mends: |z| of 1e5 on a new image, whatever else the image shows."""
    train = np.random.default_rng(0).standard_normal((10, 20))
    train[:, 0] = 0
    train[3, 0] = 1e-5
    new = np.ones(20)
    s = fit_standardization(train)
    assert np.abs((new - s.mean) / s.scale).max() < 10


def test_float16_sums_do_not_overflow():
    """The sum of float16 rows passes 65,504 long before the rows end."""
    X = np.full((4000, 2), 60.0, dtype=np.float16)
    X[::2, 1] = 64.0
    s = fit_standardization(X)
    np.testing.assert_allclose(s.mean, [60.0, 62.0])
    np.testing.assert_allclose(s.scale, [1.0, 2.0])


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -3.7e-5])
def test_a_constant_column_counts_as_one_and_gets_the_floor(value):
    X = np.random.default_rng(0).standard_normal((999, 2)).astype(np.float32)
    X[:, 1] = value
    s = fit_standardization(X)
    assert s.scale[1] == 0.5 * s.scale[0]


def test_where_all_columns_are_constant_the_scale_is_one():
    assert (fit_standardization(np.full((9, 3), 0.1, np.float32)).scale == 1).all()


def test_statistics_do_not_depend_on_the_size_of_the_pieces(monkeypatch):
    X = np.random.default_rng(0).standard_normal((1000, 5)).astype(np.float32)
    whole = fit_standardization(X)
    monkeypatch.setattr(standardize, "CHUNK_ROWS", 7)
    pieces = fit_standardization(X)
    np.testing.assert_allclose(pieces.mean, whole.mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(pieces.scale, whole.scale, rtol=1e-12)


def test_folded_layer_on_raw_rows_equals_the_layer_on_standardised_rows():
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((50, 20)) * rng.uniform(0.01, 10, 20) + rng.uniform(-5, 5, 20)).astype(np.float32)
    weight, bias = rng.standard_normal((3, 20)), rng.standard_normal(3)
    s = fit_standardization(X)
    folded, shifted = fold(weight, bias, s)
    expected = (X.astype(np.float64) - s.mean) / s.scale @ weight.T + bias
    assert folded.dtype == shifted.dtype == np.float32
    np.testing.assert_allclose(
        X.astype(np.float64) @ folded.T.astype(np.float64) + shifted, expected, rtol=0, atol=2e-4
    )


def test_rounded_weights_meet_the_mean_no_more():
    """Means far from 0 multiply the rounding of weights: the bias is made of the weights as they are kept."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 400)) + 300
    weight, bias = rng.standard_normal((3, 400)), rng.standard_normal(3)
    s = fit_standardization(X)
    folded, shifted = fold(weight, bias, s)
    expected = (X - s.mean) / s.scale @ weight.T + bias
    error = np.abs(X @ folded.T.astype(np.float64) + shifted - expected).max()
    assert error < 2 * np.spacing(np.abs(shifted).max()) + 1e-5


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_a_copy_has_numpys_numbers_and_is_nobody_elses(dtype, wide, read_only):
    X = (np.random.default_rng(0).standard_normal((50, 7)) * 100).astype(dtype)
    X.flags.writeable = not read_only
    kept = X.copy()
    found = copied(X, wide)
    assert found.dtype == wide
    np.testing.assert_array_equal(found.numpy(), X.astype(found.numpy().dtype))
    found.zero_()
    np.testing.assert_array_equal(X, kept)


def test_float16_becomes_float32_to_the_bits_of_numpy():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(-1, 2)
    finite.setflags(write=False)
    for stored in (finite, finite[::-1], finite[::3], finite.T, finite.astype(">f2")):
        expected = stored.astype(np.float32)
        np.testing.assert_array_equal(copied(stored).numpy().view(np.uint32), expected.view(np.uint32))
