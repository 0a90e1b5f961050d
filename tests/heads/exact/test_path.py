"""The exact solver against scikit-learn's logistic regression, converged far past its defaults, in float64."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pipeline.base.errors import ConfigError, HeadError
from pipeline.heads import standardize
from pipeline.heads.exact import path, spectrum
from pipeline.heads.exact.path import fit_exact, lagrange, waves
from pipeline.heads.exact.room import turned_bytes
from pipeline.heads.problem import Problem
from pipeline.heads.rows import StandardRows
from pipeline.heads.standardize import fit_standardization


def data(n=240, d=30, c=3, seed=0, noise=3.0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).standard_normal((c, d))
    y = np.arange(n) % c
    X = (centres[y] + noise * rng.standard_normal((n, d))) * np.geomspace(5, 9, d) + 5
    return X.astype(np.float32), y


def reference(X, y, C, weight=None, **options):
    """scikit-learn's optimum on standardised rows: the model, its rows, and its objective."""
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    Z[:, X.std(axis=0) == 0] = 0
    model = LogisticRegression(C=C, tol=1e-10, max_iter=50_000, **options).fit(Z, y, sample_weight=weight)
    return model, Z


def test_the_optimum_is_that_on_the_standardised_columns_where_some_hardly_vary():
    """A column of a tiny deviation is not blown up to 1: scikit-learn's reference gets the columns as we scale them."""
    X, y = data(c=3)
    X[:, :10] *= np.geomspace(1e-5, 0.3, 10)
    deviation = X.astype(np.float64).std(axis=0)
    Z = (X - X.astype(np.float64).mean(axis=0)) / np.maximum(deviation, 0.5 * np.median(deviation))
    fit = fit_exact(Problem(X, y, 3, dtype=torch.float64), [0.5])[0]
    model = LogisticRegression(C=0.5, tol=1e-10, max_iter=50_000).fit(Z, y)
    assert fit.objective == pytest.approx(objective(Z, y, 0.5, model.coef_, model.intercept_), rel=1e-9)


def objective(Z, y, C, W, b, w=None):
    """C · Σ w CE + ½‖W‖² of a multinomial head, or with one column of a binary one, in float64."""
    w = np.ones(len(y)) if w is None else w
    scores = Z @ W.T + b
    if W.shape[0] == 1:
        ce = np.logaddexp(0, np.where(y == 1, -scores[:, 0], scores[:, 0]))
    else:
        ce = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(len(y)), y]
    return C * (w * ce).sum() + 0.5 * (W**2).sum()


def predictions(fit, X):
    return (X.astype(np.float64) @ fit.weight.T.astype(np.float64) + fit.bias).argmax(axis=1)


@pytest.mark.parametrize(("n", "d", "c"), [(240, 30, 3), (240, 30, 2), (300, 40, 10), (40, 60, 3), (30, 80, 2)])
@pytest.mark.parametrize("C", [1e-3, 1.0, 100.0])
def test_the_objective_is_scikit_learns_optimum_and_the_predictions_too(n, d, c, C):
    X, y = data(n, d, c)
    fit = fit_exact(Problem(X, y, c), [C])[0]
    model, Z = reference(X, y, C)
    best = objective(Z, y, C, model.coef_, model.intercept_)
    assert fit.converged
    assert fit.objective <= best * (1 + 5e-6)
    assert (predictions(fit, X) == model.predict(Z)).mean() >= 0.999
    wide = fit_exact(Problem(X, y, c, dtype=torch.float64), [C])[0]
    assert wide.converged and wide.objective == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("c", [2, 4])
def test_in_float64_the_coefficients_are_scikit_learns(c):
    X, y = data(c=c)
    X = X.astype(np.float64)
    fit = fit_exact(Problem(X, y, c, standardize=False, dtype=torch.float64), [0.5])[0]
    model = LogisticRegression(C=0.5, tol=1e-12, max_iter=100_000).fit(X, y)
    ours = fit.weight if c > 2 else fit.weight[1:] - fit.weight[:1]
    np.testing.assert_allclose(ours, model.coef_, atol=2e-4 * np.abs(model.coef_).max())
    assert fit.objective <= objective(X, y, 0.5, model.coef_, model.intercept_) * (1 + 1e-12)


@pytest.mark.parametrize("c", [2, 3])
def test_balanced_classes_weigh_as_scikit_learns(c):
    X, y = data(noise=4, c=c)
    keep = (y != c - 1) | (np.arange(len(y)) % 5 == 0)
    X, y = X[keep], y[keep]
    fit = fit_exact(Problem(X, y, c, class_weight="balanced"), [0.1])[0]
    model, Z = reference(X, y, 0.1, class_weight="balanced")
    w = len(y) / (c * np.bincount(y))[y]
    assert len(set(w)) > 1
    assert fit.objective == pytest.approx(objective(Z, y, 0.1, model.coef_, model.intercept_, w), rel=2e-6)
    assert (predictions(fit, X) == model.predict(Z)).mean() >= 0.999


def test_a_weight_of_two_is_a_row_given_twice_and_zero_one_left_out():
    X, y = data(n=120)
    w = np.tile([0.0, 1.0, 2.0, 1.0], 30)
    X, w = X.astype(np.float64), w
    once = fit_exact(Problem(X, y, 3, sample_weight=w, dtype=torch.float64), [0.3])[0]
    rows = np.repeat(np.arange(120), w.astype(int))
    given = fit_exact(Problem(X[rows], y[rows], 3, dtype=torch.float64), [0.3])[0]
    np.testing.assert_allclose(once.weight, given.weight, rtol=1e-6, atol=1e-9)
    assert once.objective == pytest.approx(given.objective, rel=1e-12)


def test_the_gradient_reported_is_the_one_recomputed_here():
    X, y = data()
    fit = fit_exact(Problem(X, y, 3, standardize=False, dtype=torch.float64), [1.0], max_iter=5)[0]
    Z = X.astype(np.float64)
    scores = Z @ fit.weight.T + fit.bias
    p = np.exp(scores - np.logaddexp.reduce(scores, axis=1)[:, None])
    p[np.arange(len(y)), y] -= 1
    gradient = p.T @ Z / len(y) + fit.weight / len(y)
    assert fit.grad_norm == pytest.approx(max(np.abs(gradient).max(), np.abs(p.mean(axis=0)).max()), rel=1e-9)
    assert not fit.converged


def test_a_path_gives_each_penalty_what_it_gives_alone():
    X, y = data(n=150, c=10, d=20)
    Cs = np.logspace(-4, 4, 17)
    path = fit_exact(Problem(X, y, 10), Cs)
    assert [f.C for f in path] == Cs.tolist()
    for i in (0, 5, 9, 16):
        solo = fit_exact(Problem(X, y, 10), [Cs[i]])[0]
        assert path[i].converged and solo.converged
        assert path[i].objective == pytest.approx(solo.objective, rel=5e-6)


def test_a_fold_is_the_fit_of_the_rows_left_in():
    X, y = data(n=120, c=3)
    X = StandardScaler().fit_transform(X.astype(np.float64))
    folds = np.arange(120) // 3 % 4
    fits = fit_exact(Problem(X, y, 3, folds=folds, standardize=False, dtype=torch.float64), [0.1, 2.0])
    assert [(f.fold, f.C) for f in fits] == [(k, C) for k in (-1, 0, 1, 2, 3) for C in (0.1, 2.0)]
    for fit in fits[2:]:
        inside = folds != fit.fold
        solo = fit_exact(Problem(X[inside], y[inside], 3, standardize=False, dtype=torch.float64), [fit.C])[0]
        np.testing.assert_allclose(fit.weight, solo.weight, atol=1e-7 * np.abs(solo.weight).max())
        assert fit.objective == pytest.approx(solo.objective, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("n", [12, 60])
def test_statistics_of_the_rows_that_are_held_out_do_no_harm(n):
    """Of sparse features, as few images give them: the cross-validated log-loss is that of each fold's own statistics.

    Without the floor it was 0.50 where the truth was 1.45: a column that is active in a held-out row alone by a trace
    has a deviation with it and none without.
    """
    differences = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        y = np.arange(n) % 2
        X = np.maximum(0, rng.standard_normal((n, 200)) * rng.gamma(0.5, 1, 200) - rng.gamma(1, 1, 200))
        X[:, :5] += y[:, None]
        X[rng.integers(0, n, 100), 100 + np.arange(100)] += 1e-4
        folds = np.arange(n) // 2 % 6
        shared = {f.fold: f for f in fit_exact(Problem(X, y, 2, folds=folds, dtype=torch.float64), [0.1])}
        losses = np.zeros((2, n))
        for number in range(6):
            out = folds == number
            own = fit_exact(Problem(X[~out], y[~out], 2, dtype=torch.float64), [0.1])[0]
            for k, fit in enumerate((shared[number], own)):
                scores = X[out] @ fit.weight.T + fit.bias
                losses[k, out] = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(out.sum()), y[out]]
        differences.append(losses[1].mean() - losses[0].mean())
    assert abs(np.mean(differences)) < 0.15, differences


def test_streamed_rows_give_what_held_ones_give():
    X, y = data(n=300, d=25)
    held = fit_exact(Problem(X, y, 3), [0.1, 1.0])
    streamed = fit_exact(Problem(X, y, 3, memory=0), [0.1, 1.0])
    for a, b in zip(held, streamed, strict=True):
        assert b.converged
        assert b.objective == pytest.approx(a.objective, rel=1e-5)
    held, streamed = (fit_exact(Problem(X, y, 3, dtype=torch.float64, memory=size), [0.1])[0] for size in (1 << 30, 0))
    np.testing.assert_allclose(streamed.weight, held.weight, atol=1e-7 * np.abs(held.weight).max())
    assert streamed.objective == pytest.approx(held.objective, rel=1e-9)


@pytest.mark.slow
def test_the_same_input_gives_the_same_bits():
    X, y = data(c=10)
    first, second = (fit_exact(Problem(X, y, 10), np.logspace(-3, 3, 13)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.weight, b.weight)
        assert a.objective == b.objective


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_separable_rows_with_hardly_a_penalty_converge_to_a_finite_head(dtype):
    X, y = data(n=60, d=80, noise=0.5)
    X = StandardScaler().fit_transform(X)  # so few rows vary so differently that some columns would be below the floor
    fit = fit_exact(Problem(X, y, 3, dtype=dtype), [1e5])[0]
    model, Z = reference(X, y, 1e5)
    assert fit.converged and np.isfinite(fit.weight).all()
    assert fit.objective <= objective(Z, y, 1e5, model.coef_, model.intercept_) * (1 + 5e-6)
    assert (predictions(fit, X) == y).all()


def test_constant_and_doubled_columns_and_a_class_of_one_row_do_no_harm():
    X, y = data(n=90)
    X = np.hstack([X, X[:, :5], np.full((90, 3), 2.5, np.float32)])
    y = y.copy()
    y[y == 2] = 0
    y[4] = 2
    fit = fit_exact(Problem(X, y, 3), [1.0])[0]
    model, Z = reference(X, y, 1.0)
    assert fit.converged
    assert fit.objective <= objective(Z, y, 1.0, model.coef_, model.intercept_) * (1 + 5e-6)
    assert np.abs(fit.weight[:, -3:]).max() == 0
    np.testing.assert_allclose(fit.weight[:, :5], fit.weight[:, 30:35], atol=1e-4 * np.abs(fit.weight).max())


def test_a_class_whose_rows_all_weigh_nothing_is_refused_by_name():
    """It would be called converged, at whatever the other classes push it to."""
    X, y = data(n=30)
    for weights in ({"class_weight": {1: 0.0}}, {"sample_weight": (y != 1).astype(float)}):
        with pytest.raises(HeadError, match="no train rows of a weight above 0 for class 'bee'"):
            Problem(X, y, 3, class_names=["ant", "bee", "cat"], **weights)
    folds = np.where(y == 2, 0, 1)
    with pytest.raises(HeadError, match="no train rows outside fold 0 for class 2"):
        Problem(X, y, 3, folds=folds)


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_the_head_that_is_returned_is_certified_in_float64(C):
    """Means of 3e5 deviations: float32 cannot hold such a head, whatever the solver has found on its way."""
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    X = rng.standard_normal((300, 20)) + rng.standard_normal((3, 20))[y] + 3e5
    X = X.astype(np.float32).astype(np.float64)
    fit, wide = (fit_exact(Problem(X, y, 3, dtype=dtype), [C])[0] for dtype in (torch.float32, torch.float64))
    s = fit_standardization(X)
    head = fit.weight.astype(np.float64)
    expected = objective((X - s.mean) / s.scale, y, C, head * s.scale, fit.bias + head @ s.mean)
    assert fit.objective == pytest.approx(expected, rel=1e-6)
    assert wide.converged and not fit.converged and fit.objective > wide.objective * (1 + 1e-6)


def test_what_cannot_be_learned_from_is_refused_by_name():
    X, y = data(n=30)
    bad = X.copy()
    bad[3, 4] = np.nan
    with pytest.raises(HeadError, match="1 of 30 train rows hold NaN.*row 3"):
        fit_exact(Problem(bad, y, 3), [1.0])
    with pytest.raises(HeadError, match="no train rows for class 'dog'"):
        fit_exact(Problem(X, y % 2, 3, class_names=["ant", "bee", "dog"]), [1.0])
    with pytest.raises(HeadError, match="the same features"):
        fit_exact(Problem(np.ones((9, 4), np.float32), np.arange(9) % 3, 3), [1.0])
    with pytest.raises(HeadError, match="the same features"):
        fit_exact(Problem(np.ones((3, 4), np.float32), np.arange(3), 3), [1.0])
    for Cs, options, words in (
        ([0.0], {}, "C is 0.0"),
        ([], {}, "no C"),
        ([1.0], {"tol": 0.0}, "tol is 0"),
        ([1.0], {"max_iter": 0}, "max_iter is 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            fit_exact(Problem(X, y, 3), Cs, **options)
    with pytest.raises(ConfigError, match="class weight 'odd'"):
        fit_exact(Problem(X, y, 3, class_weight="odd"), [1.0])


def test_each_iteration_is_told_with_its_head_and_the_objective_falls():
    X, y = data()
    steps = []
    fit = fit_exact(Problem(X, y, 3, standardize=False), [0.5], on_step=lambda s: steps.append((s, s.head)))[0]
    assert [s.n_iter for s, _ in steps] == list(range(1, fit.n_iter + 1))
    values = [s.objective for s, _ in steps]
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(values))
    assert values[-1] == pytest.approx(fit.objective / (0.5 * len(y)), rel=1e-5)
    for step, head in steps:
        weight, bias = (t.astype(np.float64) for t in head())
        assert step.objective == pytest.approx(objective(X, y, 0.5, weight, bias) / (0.5 * len(y)), rel=1e-5)
        assert step.accuracy == pytest.approx(((X @ weight.T + bias).argmax(axis=1) == y).mean(), abs=0.01)


@pytest.mark.parametrize(("n", "total"), [(45, 1e4), (45, 1.0), (1, 10.0), (7, 1e9), (2, 1e3)])
def test_waves_solve_each_penalty_once_and_between_two_that_are_solved(n, total):
    found = waves(np.geomspace(1e-6, 1e5, n).tolist(), total)
    assert sorted(i for wave in found for i in wave) == list(range(n))
    solved = set(found[0])
    for wave in found[1:]:
        for i in wave:
            assert i > max(solved) or (any(j < i for j in solved) and any(j > i for j in solved))
        solved |= set(wave)


def test_interpolation_is_exact_for_a_cubic_and_continuation_for_a_square():
    points, at = [1.0, 2.0, 0.5, 3.0], 1.3
    shares = lagrange(points, at)
    assert sum(shares) == pytest.approx(1)
    assert sum(s * (p**3 - p) for s, p in zip(shares, points, strict=True)) == pytest.approx(at**3 - at)
    points, at = [3.0, 2.0, 1.0, 0.5], 4.5
    shares = lagrange(points, at)
    assert shares[3] == 0
    assert sum(s * (p**2 - p) for s, p in zip(shares, points, strict=True)) == pytest.approx(at**2 - at)


def test_far_outside_the_nearest_alone_stands_in():
    assert lagrange([1.0, 2.0], -1.0) == [1.0, 0.0]
    assert lagrange([3.0], 5.0) == [1.0]
    assert lagrange([], 1.0) == []


@pytest.mark.gpu
def test_on_a_gpu_the_optimum_is_the_same():
    X, y = data(c=10)
    ours, there = (fit_exact(Problem(X, y, 10, device=d), [0.01, 1.0]) for d in ("cpu", "cuda"))
    for a, b in zip(ours, there, strict=True):
        assert b.converged and b.objective == pytest.approx(a.objective, rel=5e-6)


def test_rows_are_turned_where_so_many_fits_cost_less_on_them_and_memory_allows_it(monkeypatch):
    X, y = data(n=900, d=25)
    used = []
    for kind in (path.Held, path.Streamed):
        monkeypatch.setattr(path, kind.__name__, lambda *of, kind=kind: used.append(kind.__name__) or kind(*of))
    problem = Problem(X, y, 3)
    assert turned_bytes(problem) == 900 * 25 * 4
    few, many = [0.1], np.logspace(-3, 1, 20)
    for Cs, memory in ((few, 1 << 30), (many, 1 << 30), (many, 900 * 25 * 4 - 1), (few, 900 * 25 * 4)):
        fit_exact(dataclasses.replace(problem, memory=memory), Cs)
    assert used == ["Streamed", "Held", "Streamed", "Streamed"]
    wide = Problem(np.tile(X[:20], 3), y[:20], 3)
    assert turned_bytes(wide) == 20 * 20 * 4
    fit_exact(wide, few)
    assert used[4:] == ["Held"]


def test_vectors_of_a_sample_lead_to_the_optimum_of_all_rows(monkeypatch):
    X, y = data(n=3000, d=12)
    (every,) = fit_exact(Problem(X, y, 3, dtype=torch.float64), [0.1])
    monkeypatch.setattr(spectrum, "FEWEST", 200)
    taken = []
    take = StandardRows.take
    monkeypatch.setattr(StandardRows, "take", lambda rows, index: taken.extend(index) or take(rows, index))
    (fit,) = fit_exact(Problem(X, y, 3, dtype=torch.float64), [0.1])
    assert len(taken) == len(set(taken)) == 200
    assert fit.converged and fit.n_iter <= 1.5 * every.n_iter
    assert fit.objective == pytest.approx(every.objective, rel=1e-12)
    np.testing.assert_allclose(fit.weight, every.weight, atol=1e-6 * np.abs(every.weight).max())
    (fit,) = fit_exact(Problem(X, y, 3), [0.1])
    assert fit.converged and fit.objective == pytest.approx(every.objective, rel=1e-6)


def test_rows_that_threads_share_give_the_same_bits_again_and_the_optimum_of_one_thread(monkeypatch):
    X, y = data(n=3000, d=12)
    monkeypatch.setattr(standardize, "CHUNK_ROWS", 500)  # six pieces, of which each thread has three
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (2, 2, 1):
            torch.set_num_threads(threads)
            found += fit_exact(Problem(X.astype(np.float16), y, 3), [0.1])
    finally:
        torch.set_num_threads(before)
    first, again, alone = found
    np.testing.assert_array_equal(first.weight, again.weight)
    assert first.grad_norm == again.grad_norm
    assert alone.objective == pytest.approx(first.objective, rel=1e-6)
