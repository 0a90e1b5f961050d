"""The eigenbasis of the rows' weighted covariance, against numpy's in float64."""

import numpy as np
import pytest
import torch

from pipeline.base.errors import HeadError
from pipeline.heads.exact.spectrum import ASIDE, FEWEST, SAMPLED, decompose, sample
from pipeline.heads.rows import StandardRows

CPU = torch.device("cpu")


def rows_of(n, d, dtype=torch.float64):
    """Rows (n, d) of unequal columns off the origin, weights (n,) that sum to 1, and the rows as solvers read them."""
    rng = np.random.default_rng(n * d)
    X = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + 3
    w = rng.random(n)
    w /= w.sum()
    return X, w, StandardRows(X, None, CPU, resident=False, dtype=dtype)


def covariance(X, w):
    centred = X - w @ X
    return (centred.T * w) @ centred


@pytest.mark.parametrize(("n", "d", "rank"), [(90, 12, 12), (12, 12, 11), (10, 40, 9)])
def test_eigenvalues_and_vectors_are_those_of_the_weighted_covariance(n, d, rank):
    X, w, rows = rows_of(n, d)
    spectrum = decompose(rows, torch.from_numpy(w))
    gram = covariance(X, w)
    values, vectors = spectrum.values.numpy(), spectrum.vectors.numpy()
    expected = np.linalg.eigvalsh(gram)
    assert len(values) == (rank if n < d else d)  # (centred rows span one direction less than there are rows)
    np.testing.assert_allclose(values, expected[-len(values) :].clip(0), atol=1e-10 * expected[-1])
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(values)), atol=1e-8)
    np.testing.assert_allclose((vectors * values) @ vectors.T, gram, atol=1e-9 * expected[-1])
    np.testing.assert_allclose(spectrum.mean, w @ X, rtol=1e-12)


@pytest.mark.parametrize(("n", "d"), [(90, 12), (10, 40)])
def test_rotated_rows_are_uncorrelated_with_the_eigenvalues_as_variances(n, d):
    X, w, rows = rows_of(n, d)
    spectrum = decompose(rows, torch.from_numpy(w))
    turned = spectrum.rotate(rows).numpy()
    np.testing.assert_allclose(turned, (X - w @ X) @ spectrum.vectors.numpy(), atol=1e-9)
    np.testing.assert_allclose(w @ turned, 0, atol=1e-10)
    scale = spectrum.values.max().item()
    np.testing.assert_allclose((turned.T * w) @ turned, np.diag(spectrum.values), atol=1e-10 * scale)


@pytest.mark.parametrize(("n", "d"), [(90, 12), (10, 40)])
def test_a_head_taken_back_to_the_features_gives_the_same_logits_and_penalty(n, d):
    X, w, rows = rows_of(n, d)
    spectrum = decompose(rows, torch.from_numpy(w))
    theta = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, len(spectrum.values))))
    intercept = torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.0, 3.0]], dtype=torch.float64)
    weight, bias = spectrum.to_features(theta, intercept)
    turned = spectrum.rotate(rows)
    torch.testing.assert_close(
        torch.from_numpy(X) @ weight.mT + bias[:, None], turned @ theta.mT + intercept[:, None], rtol=1e-9, atol=1e-8
    )
    torch.testing.assert_close(weight.square().sum(), theta.square().sum())


@pytest.mark.parametrize(("n", "d"), [(60, 8), (12, 30)])
def test_rows_of_no_weight_do_not_count(n, d):
    X, w, _ = rows_of(n, d)
    w[: n // 3] = 0
    w /= w.sum()
    every = decompose(StandardRows(X, None, CPU, resident=False, dtype=torch.float64), torch.from_numpy(w))
    left = X[n // 3 :]
    expected = np.linalg.eigvalsh(covariance(left, w[n // 3 :]))
    np.testing.assert_allclose(every.values, expected[-len(every.values) :], atol=1e-10 * expected[-1])


def test_in_float32_few_rows_are_rotated_with_vectors_in_float64():
    X, w, rows = rows_of(10, 40, torch.float32)
    spectrum = decompose(rows, torch.from_numpy(w).float())
    assert spectrum.vectors.dtype == torch.float64
    turned = spectrum.rotate(rows)
    assert turned.dtype == torch.float32
    variance = w @ turned.double().numpy() ** 2
    np.testing.assert_allclose(variance, np.linalg.eigvalsh(covariance(X, w))[-len(variance) :], rtol=1e-4)


@pytest.mark.parametrize("value", [1.0, 2.0, -3.3])
@pytest.mark.parametrize(("n", "d"), [(9, 4), (3, 4), (100, 7), (7, 100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_are_all_the_same_are_refused_though_their_mean_is_rounded(n, d, value, dtype):
    X, weight = np.full((n, d), value), torch.full((n,), 1 / n, dtype=dtype)
    with pytest.raises(HeadError, match="every train row has the same features"):
        decompose(StandardRows(X, None, CPU, resident=False, dtype=dtype), weight)
    X[0], weight[0] = 7.0, 0.0  # a row of no weight tells nothing apart
    with pytest.raises(HeadError, match="every train row has the same features"):
        decompose(StandardRows(X, None, CPU, resident=False, dtype=dtype), weight / weight.sum())


@pytest.mark.parametrize(("n", "d"), [(100, 7), (7, 100)])
def test_rows_that_differ_by_less_than_rounding_of_their_mean_are_kept(n, d):
    X = np.full((n, d), 1.0, np.float32)
    X[0, 0] += 2 * np.finfo(np.float32).eps
    rows = StandardRows(X, None, CPU, resident=False)
    assert decompose(rows, torch.full((n,), 1 / n)).values.max() > 0


def many(n=FEWEST + 5000, d=6):
    """More rows than G is made of: (X, weights that sum to 1, the rows as solvers read them)."""
    X, w, rows = rows_of(n, d)
    return X, torch.from_numpy(w), rows


def test_of_very_many_rows_a_sample_makes_the_vectors_and_all_of_them_mean_and_variances(monkeypatch):
    X, w, rows = many()
    taken = []
    take = rows.take
    monkeypatch.setattr(rows, "take", lambda index: taken.append(index) or take(index))
    spectrum = decompose(rows, w)
    assert sum(map(len, taken)) == FEWEST * SAMPLED // (SAMPLED + ASIDE)
    gram, vectors = covariance(X, w.numpy()), spectrum.vectors.numpy()
    np.testing.assert_allclose(spectrum.mean, w.numpy() @ X, rtol=1e-10)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(6), atol=1e-12)
    made = (vectors * spectrum.values.numpy()) @ vectors.T
    np.testing.assert_allclose(made.diagonal(), gram.diagonal(), rtol=1e-10)
    np.testing.assert_allclose(made, gram, atol=0.05 * gram.max())
    assert np.abs(made - gram).max() > 1e-6 * gram.max()  # (it is a sample)


def test_a_sample_is_of_rows_that_count_in_two_parts_without_a_common_row():
    weight = torch.ones(10 * FEWEST)
    weight[1::2] = 0
    learned, aside = sample(weight, 6)
    assert learned is not None and aside is not None
    assert len(learned) + len(aside) == FEWEST and len(aside) == FEWEST * ASIDE // (SAMPLED + ASIDE)
    assert not set(learned.tolist()) & set(aside.tolist())
    assert bool((weight[learned] > 0).all()) and bool((weight[aside] > 0).all())
    assert learned.min() < 20 and learned.max() > 10 * FEWEST - 20  # spread over all, which may be sorted by class
    weight[:-7] = 0
    few = sample(weight, 6)
    assert sum(len(part) for part in few) == 3  # the rows of a weight, though they are fewer
    assert sample(torch.ones(FEWEST), 6) == (None, None)


def test_a_column_that_is_zero_in_the_sample_keeps_the_variance_of_all_rows():
    X, w, _ = many()
    learned, aside = sample(w, 6)
    X[:, 2] = 0
    unseen = np.setdiff1d(np.arange(len(X)), np.concatenate([learned, aside]))[:50]
    X[unseen, 2] = 5.0
    spectrum = decompose(StandardRows(X, None, CPU, resident=False, dtype=torch.float64), w)
    expected = covariance(X, w.numpy())[2, 2]
    assert expected > 0
    place = spectrum.vectors[2].abs().argmax()
    np.testing.assert_allclose(spectrum.vectors[2, place].abs(), 1, rtol=1e-3)
    np.testing.assert_allclose(spectrum.values[place], expected, rtol=1e-3)
