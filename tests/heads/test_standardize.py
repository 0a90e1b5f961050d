"""Standardisation against scikit-learn and float64."""

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from pipeline.heads import standardize
from pipeline.heads.standardize import fit_standardization, fold


def test_mean_and_scale_are_scikit_learns():
    X = np.random.default_rng(0).gamma(0.5, 3.0, (300, 7)).astype(np.float32)
    ours, theirs = fit_standardization(X), StandardScaler().fit(X.astype(np.float64))
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-12)
    np.testing.assert_allclose(ours.scale, theirs.scale_, rtol=1e-12)


def test_float16_sums_do_not_overflow():
    """The sum of float16 rows passes 65,504 long before the rows end."""
    X = np.full((4000, 2), 60.0, dtype=np.float16)
    X[::2, 1] = 64.0
    s = fit_standardization(X)
    np.testing.assert_allclose(s.mean, [60.0, 62.0])
    np.testing.assert_allclose(s.scale, [1.0, 2.0])


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -3.7e-5])
def test_constant_column_gets_scale_one(value):
    X = np.random.default_rng(0).standard_normal((999, 2)).astype(np.float32)
    X[:, 1] = value
    assert fit_standardization(X).scale[1] == 1.0


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
    folded, shifted = fold(weight, bias, fit_standardization(X))
    expected = StandardScaler().fit_transform(X.astype(np.float64)) @ weight.T + bias
    assert folded.dtype == shifted.dtype == np.float32
    np.testing.assert_allclose(
        X.astype(np.float64) @ folded.T.astype(np.float64) + shifted, expected, rtol=0, atol=2e-4
    )
