"""Many softmax regressions minimised side by side, against scipy's minimiser of one, in float64."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import softmax

from pipeline.heads.exact.minimise import PATIENCE, Objective, _Logits, minimise
from pipeline.heads.exact.products import Held

N, R, C = 120, 6, 3


def objective_of(penalties, weighting=None, dtype=torch.float64, spread=1.0):
    """Problems on the same rows, whose weights are all alike or (row 1) leave a third of the rows out."""
    rng = np.random.default_rng(3)
    U = rng.standard_normal((N, R)) * np.geomspace(0.05, 5, R)
    U -= U.mean(axis=0)
    y = (spread * U[:, :C] / U[:, :C].std(axis=0) + rng.gumbel(size=(N, C))).argmax(axis=1)
    weights = np.ones((2, N))
    weights[1, ::3] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    held = Held(torch.from_numpy(U).to(dtype))
    made = Objective(
        held,
        held.variance(torch.from_numpy(weights[0]).to(dtype)),
        torch.from_numpy(y),
        C,
        torch.from_numpy(weights).to(dtype),
        torch.tensor(weighting or [0] * len(penalties)),
        torch.tensor(penalties, dtype=torch.float64),
    )
    return made, U, y, weights


def value(theta, U, y, w, penalty):
    """The objective at theta (C, R + 1), as its definition says, in float64."""
    logits = U @ theta[:, :-1].T + theta[:, -1]
    ce = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(N), y]
    return w @ ce + 0.5 * penalty * (theta[:, :-1] ** 2).sum()


def least(U, y, w, penalty):
    """scipy's minimum of the same objective."""

    def both(flat):
        theta = flat.reshape(C, R + 1)
        logits = U @ theta[:, :-1].T + theta[:, -1]
        p = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
        p[np.arange(N), y] -= 1
        p *= w[:, None]
        gradient = np.hstack([p.T @ U + penalty * theta[:, :-1], p.sum(axis=0)[:, None]])
        return value(theta, U, y, w, penalty), gradient.ravel()

    found = minimize(both, np.zeros(C * (R + 1)), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 5000})
    return found.fun


def solve(objective, start=None, max_iter=500, tol=1e-8, **options):
    k = len(objective.penalty)
    start = torch.zeros(k, C, R + 1, dtype=objective.variance.dtype) if start is None else start
    return minimise(objective, start, tol=tol, fall_tol=1e-12, max_iter=max_iter, **options)


def test_each_problem_ends_at_its_own_minimum_under_its_own_weights():
    penalties, weighting = [1.0, 1e-2, 1e-2, 1e-4], [0, 0, 1, 1]
    objective, U, y, weights = objective_of(penalties, weighting)
    end = solve(objective)
    assert end.converged.all()
    for k, (penalty, row) in enumerate(zip(penalties, weighting, strict=True)):
        found = value(end.theta[k].numpy(), U, y, weights[row], penalty)
        assert found == pytest.approx(least(U, y, weights[row], penalty), rel=1e-10)


def test_a_problem_among_others_ends_where_it_ends_alone():
    penalties = [1.0, 0.3, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5]
    together = solve(objective_of(penalties)[0])
    for k, penalty in enumerate(penalties):
        alone = solve(objective_of([penalty])[0])
        torch.testing.assert_close(together.theta[k], alone.theta[0], rtol=1e-4, atol=1e-5)


def test_a_problem_that_has_converged_leaves_before_the_others():
    penalties = [10.0] * 4 + [1e-5]
    counts, told = solve(objective_of(penalties)[0]).n_iter, []
    solve(objective_of(penalties)[0], on_iteration=lambda p: told.append(p.problems.tolist()))
    assert counts[:4].max() < counts[4]
    assert told[0] == [0, 1, 2, 3, 4] and told[-1] == [4]
    assert [sum(k in alive for alive in told) for k in range(5)] == counts.tolist()


def test_the_start_may_be_the_minimum():
    objective, U, y, weights = objective_of([1e-2])
    there = solve(objective)
    again = solve(objective, start=there.theta)
    assert again.converged.all() and again.n_iter.item() < there.n_iter.item() / 4
    before, after = (value(t.numpy(), U, y, weights[0], 1e-2) for t in (there.theta[0], again.theta[0]))
    assert after <= before * (1 + 1e-14)


def test_too_few_iterations_are_counted_and_not_called_converged():
    end = solve(objective_of([1e-3, 1e-2])[0], max_iter=2)
    assert end.n_iter.tolist() == [2, 2] and end.n_evals.tolist() == [3, 3]
    assert not end.converged.any()


@pytest.mark.slow
def test_what_rounding_forbids_is_given_up_and_not_called_converged():
    end = solve(objective_of([1e-2], dtype=torch.float32)[0], max_iter=10_000, tol=1e-14)
    assert not end.converged.any()
    assert PATIENCE < end.n_iter.item() < 10_000
    assert end.theta.isfinite().all()


def test_each_iteration_tells_its_point_objective_and_logits_and_never_rises():
    objective, U, y, weights = objective_of([1e-1, 1e-3], [0, 1])
    told = []
    solve(objective, max_iter=8, on_iteration=lambda p: told.append((p.problems.tolist(), p)))
    assert [p.n_iter for _, p in told] == list(range(1, len(told) + 1))
    values = np.full(2, np.inf)
    for alive, p in told:
        for place, k in enumerate(alive):
            theta = p.theta[place].numpy()
            expected = value(theta, U, y, weights[k], [1e-1, 1e-3][k])
            assert p.objective[place].item() == pytest.approx(expected, rel=1e-12)
            assert expected <= values[k] * (1 + 1e-14)
            values[k] = expected
    logits = theta[:, :-1] @ U.T + theta[:, -1:]  # of the last problem told; its row's own class is at 0
    # (logits are worked on in place: only those of the last iteration are still as they were told)
    np.testing.assert_allclose(told[-1][1].logits[-1], logits - logits[y, np.arange(N)], atol=1e-10)


def test_separable_rows_in_float32_end_finite_near_the_float64_minimum():
    narrow = objective_of([1e-7], dtype=torch.float32, spread=1000.0)[0]
    _, U, y, weights = objective_of([1e-7], spread=1000.0)
    end = minimise(narrow, torch.zeros(1, C, R + 1), tol=1e-5, fall_tol=1e-7, max_iter=2000)
    wide = solve(objective_of([1e-7], spread=1000.0)[0], max_iter=2000, tol=1e-10)
    found, best = (value(t[0].double().numpy(), U, y, weights[0], 1e-7) for t in (end.theta, wide.theta))
    assert end.converged.all() and end.theta.isfinite().all()
    # (what the objective may still fall by is estimated; where rows are separable it has been 100 times as much)
    assert found <= best * (1 + 1e-4)


@pytest.mark.parametrize("problems", [1, 45])
def test_pieces_cover_each_row_once(problems):
    objective = objective_of([1.0] * problems)[0]
    many = torch.zeros(5001, dtype=torch.int64)
    pieces = list(Objective(**{**vars(objective), "y": many}).pieces())
    assert [i for piece in pieces for i in range(5001)[piece]] == list(range(5001))
    assert (len(pieces) > 1) == (problems == 45)


def test_selected_problems_keep_their_penalties_and_weights():
    objective = objective_of([1.0, 0.1, 0.01], [0, 1, 0])[0]
    kept = objective.select(torch.tensor([False, True, True]))
    assert kept.penalty.tolist() == [0.1, 0.01] and kept.weighting.tolist() == [1, 0]
    assert kept.product is objective.product


def test_the_coupling_of_classes_is_the_mean_of_their_softmax_covariance():
    objective, _, y, weights = objective_of([1.0, 1e-3], [0, 1])
    logits = np.random.default_rng(5).standard_normal((2, C, N)) * 3
    logits -= np.take_along_axis(logits, np.broadcast_to(y, (2, 1, N)), axis=1)
    found = _Logits(objective, torch.from_numpy(logits)).coupling().numpy()
    p = softmax(logits, axis=1)
    for k in range(2):
        expected = np.diag(p[k] @ weights[k]) - (p[k] * weights[k]) @ p[k].T
        np.testing.assert_allclose(found[k], expected, atol=1e-12)


def test_float32_keeps_the_coupling_of_rows_that_are_all_but_sure():
    objective, _, y, weights = objective_of([1.0], dtype=torch.float32)
    logits = np.random.default_rng(5).uniform(-24, -20, (1, C, N))  # p is within 1e-8 of 1 in the row's own class
    np.put_along_axis(logits, np.broadcast_to(y, (1, 1, N)), 0.0, axis=1)
    found = _Logits(objective, torch.from_numpy(logits).float()).coupling().numpy()[0]
    p = softmax(logits, axis=1)[0]
    apart = -(p * weights[0]) @ p.T * (1 - np.eye(C))
    np.testing.assert_allclose(found, apart - np.diag(apart.sum(axis=1)), rtol=1e-4)


def test_classes_that_are_hard_to_tell_apart_in_pairs_cost_few_iterations():
    """Two pairs of classes: between the pairs nothing is to be learned any more, within them all is."""
    rng = np.random.default_rng(7)
    n = 4000
    y = rng.integers(0, 4, n)
    U = rng.standard_normal((n, 3)) + np.stack([12.0 * (y > 1), 0.7 * (y % 2), 0.0 * y], axis=1)
    U -= U.mean(axis=0)
    rows = Held(torch.from_numpy(U))
    w = torch.full((1, n), 1 / n, dtype=torch.float64)
    penalty = torch.tensor([1e-4], dtype=torch.float64)
    made = Objective(rows, rows.variance(w[0]), torch.from_numpy(y), 4, w, torch.tensor([0]), penalty)
    end = minimise(made, torch.zeros(1, 4, 4, dtype=torch.float64), tol=1e-7, fall_tol=1e-8, max_iter=200)
    assert end.converged.all() and int(end.n_iter[0]) < 40
