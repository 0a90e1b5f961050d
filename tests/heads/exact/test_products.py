"""Products with rotated rows, held or streamed, against numpy in float64."""

import numpy as np
import pytest
import torch

from pipeline.heads.exact.products import PIECE, Held, Streamed
from pipeline.heads.exact.spectrum import decompose
from pipeline.heads.rows import StandardRows
from pipeline.heads.standardize import CHUNK_ROWS, fit_standardization

MANY = CHUNK_ROWS + 500  # rows are read in two pieces, and squared in three
assert PIECE < CHUNK_ROWS


def products(n, d, dtype=torch.float64):
    """Held and streamed products of the same rows, and the rotated rows (n, r) by numpy."""
    rng = np.random.default_rng(n + d)
    X = rng.standard_normal((n, d)) * np.geomspace(0.1, 3, d) + 2
    scaling = fit_standardization(X)
    rows = StandardRows(X, scaling, torch.device("cpu"), resident=False, dtype=dtype)
    spectrum = decompose(rows, torch.full((n,), 1 / n, dtype=dtype))
    turned = ((X - scaling.mean) / scaling.scale - spectrum.mean.double().numpy()) @ spectrum.vectors.double().numpy()
    return Held(spectrum.rotate(rows)), Streamed(rows, spectrum), turned


@pytest.mark.parametrize("which", [0, 1], ids=["held", "streamed"])
@pytest.mark.parametrize(("n", "d"), [(MANY, 4), (50, 20), (20, 50)])
def test_products_are_those_with_the_rotated_rows(which, n, d):
    *both, turned = products(n, d)
    rng = np.random.default_rng(1)
    theta, residual = rng.standard_normal((6, turned.shape[1])), rng.standard_normal((6, n))
    weight = rng.random(n) / n
    product = both[which]
    np.testing.assert_allclose(product.forward(torch.from_numpy(theta)), theta @ turned.T, atol=1e-9)
    np.testing.assert_allclose(product.backward(torch.from_numpy(residual)), residual @ turned, atol=1e-9)
    np.testing.assert_allclose(product.variance(torch.from_numpy(weight)), weight @ turned**2, rtol=1e-9)


@pytest.mark.parametrize(("n", "d"), [(300, 20), (20, 50)])
def test_in_float32_held_and_streamed_rows_agree_to_its_rounding(n, d):
    held, streamed, turned = products(n, d, torch.float32)
    theta = torch.from_numpy(np.random.default_rng(2).standard_normal((3, turned.shape[1]))).float()
    assert held.forward(theta).dtype == streamed.forward(theta).dtype == torch.float32
    torch.testing.assert_close(held.forward(theta), streamed.forward(theta), rtol=1e-4, atol=1e-4)
    residual = torch.from_numpy(np.random.default_rng(3).standard_normal((3, n))).float()
    torch.testing.assert_close(held.backward(residual), streamed.backward(residual), rtol=1e-4, atol=1e-3)
