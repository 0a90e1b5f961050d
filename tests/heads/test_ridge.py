"""The ridge path against scikit-learn's, one penalty and one left-out row at a time."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeClassifier, RidgeClassifierCV
from sklearn.preprocessing import StandardScaler

from pipeline.base.errors import ConfigError, HeadError
from pipeline.heads.problem import Problem
from pipeline.heads.ridge import ridge_path

TALL, WIDE = (80, 12), (30, 50)


def rows_of(shape, c=4, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    y = np.arange(shape[0]) % c
    X = 2 * rng.standard_normal((c, shape[1]))[y] + 3 * rng.standard_normal(shape) + 5
    return X.astype(dtype), y


def plus_minus(y, c=4):
    return 2.0 * np.eye(c)[y] - 1


def left_out(X, y, lam, weights=None, c=4):
    """Leave-one-out predictions of scikit-learn's Ridge, fitted once for each row."""
    weights, found = np.ones(len(y)) if weights is None else weights, np.empty((len(y), c))
    for i in range(len(y)):
        rows = np.arange(len(y)) != i
        model = Ridge(alpha=lam, solver="svd").fit(X[rows], plus_minus(y)[rows], sample_weight=weights[rows])
        found[i] = model.predict(X[i : i + 1])[0]
    return found


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_every_penalty_is_scikit_learns_ridge_classifier(shape):
    X, y = rows_of(shape)
    lambdas = (1e-3, 1.0, 30.0, 1e4)
    scaler = StandardScaler().fit(X)
    for fit, lam in zip(ridge_path(Problem(X, y, 4), lambdas).fits, lambdas, strict=True):
        model = RidgeClassifier(alpha=lam, solver="cholesky").fit(scaler.transform(X), y)
        np.testing.assert_allclose(X @ fit.weight.T + fit.bias, model.decision_function(scaler.transform(X)), atol=1e-5)
        np.testing.assert_allclose(fit.weight, model.coef_ / scaler.scale_, atol=1e-6)
        assert fit.lam == lam


def test_columns_and_penalties_taken_in_parts_come_to_the_same(monkeypatch):
    X, y = rows_of(TALL)
    whole = ridge_path(Problem(X, y, 4)).fits
    monkeypatch.setattr("pipeline.heads.ridge.GRAM_COLUMNS", 5)  # 5, 5 and 2 of 12
    monkeypatch.setattr("pipeline.heads.ridge.FITTED_COLUMNS", 8)  # two penalties
    for fit, other in zip(ridge_path(Problem(X, y, 4)).fits, whole, strict=True):
        np.testing.assert_allclose(fit.weight, other.weight, rtol=1e-5, atol=1e-7)
        assert fit.loo_accuracy == other.loo_accuracy
        assert fit.loo_squared_error == pytest.approx(other.loo_squared_error, rel=1e-9)


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_class_and_sample_weights_are_scikit_learns(shape):
    X, y = rows_of(shape)
    y[: shape[0] // 3] = 1
    weights = np.random.default_rng(1).uniform(0, 3, len(y))
    weighed = Problem(X, y, 4, standardize=False, class_weight="balanced", sample_weight=weights)
    (fit,) = ridge_path(weighed, [2.0]).fits
    model = RidgeClassifier(alpha=2.0, class_weight="balanced", solver="cholesky").fit(X, y, sample_weight=weights)
    np.testing.assert_allclose(fit.weight, model.coef_, atol=1e-6)
    np.testing.assert_allclose(fit.bias, model.intercept_, atol=1e-5)


@pytest.mark.parametrize("shape", [TALL, WIDE])
@pytest.mark.parametrize("lam", [1e-2, 5.0, 300.0])
def test_left_out_figures_are_those_of_a_fit_without_each_row(shape, lam):
    X, y = rows_of(shape)
    (fit,) = ridge_path(Problem(X, y, 4, standardize=False), [lam]).fits
    predicted = left_out(X, y, lam)
    assert fit.loo_accuracy == pytest.approx((predicted.argmax(axis=1) == y).mean())
    assert fit.loo_squared_error == pytest.approx(((predicted - plus_minus(y)) ** 2).mean(), rel=1e-6)


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_left_out_figures_with_weights_are_those_of_a_fit_without_each_row(shape):
    X, y = rows_of(shape)
    weights = np.random.default_rng(1).uniform(0.1, 3, len(y))
    (fit,) = ridge_path(Problem(X, y, 4, standardize=False, sample_weight=weights), [5.0]).fits
    predicted = left_out(X, y, 5.0, weights)
    hits, errors = predicted.argmax(axis=1) == y, ((predicted - plus_minus(y)) ** 2).mean(axis=1)
    assert fit.loo_accuracy == pytest.approx(np.average(hits, weights=weights))
    assert fit.loo_squared_error == pytest.approx(np.average(errors, weights=weights), rel=1e-6)


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_a_row_of_weight_nothing_might_as_well_not_be_there(shape):
    X, y = rows_of(shape)
    weights = np.ones(len(y))
    weights[3::5] = 0
    kept = weights > 0
    (fit,) = ridge_path(Problem(X, y, 4, standardize=False, sample_weight=weights), [5.0]).fits
    (without,) = ridge_path(Problem(X[kept], y[kept], 4, standardize=False), [5.0]).fits
    np.testing.assert_allclose(fit.weight, without.weight, atol=1e-7)
    assert fit.loo_squared_error == pytest.approx(without.loo_squared_error, rel=1e-9)
    assert fit.loo_accuracy == without.loo_accuracy


@pytest.mark.slow
@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_the_best_penalty_has_the_lowest_left_out_error_of_the_most_accurate(shape):
    X, y = rows_of(shape)
    lambdas = np.logspace(-2, 4, 4)
    path = ridge_path(Problem(X, y, 4, standardize=False), lambdas)
    errors = {lam: ((left_out(X, y, lam) - plus_minus(y)) ** 2).mean() for lam in lambdas}
    accuracies = {lam: (left_out(X, y, lam).argmax(axis=1) == y).mean() for lam in lambdas}
    top = [lam for lam in lambdas if accuracies[lam] == max(accuracies.values())]
    assert path.best.lam == min(top, key=errors.__getitem__)
    by_error = RidgeClassifierCV(alphas=lambdas).fit(X, y)  # scikit-learn chooses by the error alone
    assert min(path.fits, key=lambda fit: fit.loo_squared_error).lam == by_error.alpha_


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_lambda_0_is_the_smallest_least_squares_solution(shape):
    X, y = rows_of(shape)
    X = np.column_stack([X, X[:, 0]])  # no rank for it
    (fit,) = ridge_path(Problem(X, y, 4, standardize=False), [0.0]).fits
    centred, targets = X - X.mean(axis=0), plus_minus(y) - plus_minus(y).mean(axis=0)
    np.testing.assert_allclose(fit.weight, np.linalg.lstsq(centred, targets, rcond=1e-9)[0].T, atol=1e-6)


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_left_out_figures_of_least_squares_are_those_of_a_fit_without_each_row(shape):
    X, y = rows_of(shape)
    (fit,) = ridge_path(Problem(X, y, 4, standardize=False), [0.0]).fits
    predicted = np.empty((len(y), 4))
    for i in range(len(y)):
        rows = np.arange(len(y)) != i
        mean, level = X[rows].mean(axis=0), plus_minus(y)[rows].mean(axis=0)
        layer = np.linalg.lstsq(X[rows] - mean, plus_minus(y)[rows] - level, rcond=1e-9)[0]
        predicted[i] = (X[i] - mean) @ layer + level
    assert fit.loo_squared_error == pytest.approx(((predicted - plus_minus(y)) ** 2).mean(), rel=1e-6)
    assert fit.loo_accuracy == pytest.approx((predicted.argmax(axis=1) == y).mean())


def test_a_row_that_decides_its_own_fit_counts_as_wrong_at_lambda_0():
    X, y = rows_of(TALL)
    X = np.column_stack([X, np.arange(len(y)) == 7])  # the column knows row 7 alone
    (fit,) = ridge_path(Problem(X, y, 4), [0.0]).fits
    assert fit.loo_squared_error == np.inf
    assert np.isfinite(fit.weight).all()
    assert 0 < fit.loo_accuracy < 1


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_constant_columns_get_no_weight_and_duplicates_share_theirs(shape):
    X, y = rows_of(shape)
    wide = np.column_stack([X, np.full(len(y), 7.0), X[:, 0]])
    (fit,) = ridge_path(Problem(wide, y, 4), [1.0]).fits
    scaler = StandardScaler().fit(wide)
    model = RidgeClassifier(alpha=1.0, solver="cholesky").fit(scaler.transform(wide), y)
    np.testing.assert_allclose(fit.weight, model.coef_ / scaler.scale_, atol=1e-6)
    np.testing.assert_array_equal(fit.weight[:, -2], 0)
    np.testing.assert_allclose(fit.weight[:, -1], fit.weight[:, 0], atol=1e-7)


def test_two_classes_are_opposite():
    X, y = rows_of(TALL, c=2)
    (fit,) = ridge_path(Problem(X, y, 2), [1.0]).fits
    scaler = StandardScaler().fit(X)
    model = RidgeClassifier(alpha=1.0, solver="cholesky").fit(scaler.transform(X), y)
    np.testing.assert_allclose(fit.weight[1], np.ravel(model.coef_) / scaler.scale_, atol=1e-6)
    np.testing.assert_allclose(fit.weight[0], -fit.weight[1], atol=1e-7)


def test_a_float16_memory_map_gives_the_bits_of_its_rows(tmp_path):
    X, y = rows_of(TALL, dtype=np.float16)
    (tmp_path / "rows").write_bytes(X.tobytes())
    mapped = np.memmap(tmp_path / "rows", np.float16, mode="r", shape=X.shape)
    fits = [ridge_path(Problem(rows, y, 4), [1.0]).best for rows in (X, mapped, X.astype(np.float64))]
    assert len({fit.weight.tobytes() for fit in fits}) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_a_gpu_gives_the_figures_of_the_cpu(shape):
    X, y = rows_of(shape)
    here, there = (ridge_path(Problem(X, y, 4, device=device), [0.0, 5.0]) for device in ("cpu", "cuda"))
    for a, b in zip(here.fits, there.fits, strict=True):
        np.testing.assert_allclose(a.weight, b.weight, atol=1e-6)
        assert a.loo_squared_error == pytest.approx(b.loo_squared_error, rel=1e-6)


@pytest.mark.parametrize("lambdas", [(), (1.0, -1.0), (float("nan"),), (float("inf"),)])
def test_penalties_that_mean_nothing_are_refused(lambdas):
    X, y = rows_of(TALL)
    with pytest.raises(ConfigError, match="finite ones of at least 0"):
        ridge_path(Problem(X, y, 4), lambdas)


def test_sample_weights_that_mean_nothing_are_refused():
    X, y = rows_of(TALL)
    for weights in (np.ones(3), -np.ones(80), np.zeros(80), np.full(80, np.nan)):
        with pytest.raises(HeadError, match="sample weight"):
            ridge_path(Problem(X, y, 4, sample_weight=weights))
