"""Heads on a GPU: those of the CPU, and no more memory than they are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from pipeline.bench.features import power_law
from pipeline.heads.exact.path import fit_exact
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.fit import fit_minibatch
from pipeline.heads.problem import Problem, Split
from pipeline.heads.ridge import ridge_path
from tests.gpu.conftest import on_both

# MB beside the rows: pieces on their way and one as float64 (192), the basis (100), products of pieces, logits.
BESIDE = 768
ROWS = on_both([600], [600, 40_000])


def problem(n: int, dim: int = 64, classes: int = 10) -> Problem:
    X, y = power_law(n, dim, classes, seed=0)
    half = n // 2
    return Problem(X[:half], y[:half], classes, val=Split(X[half:], y[half:]))


def on(device: str, given: Problem) -> tuple[Problem, Problem]:
    """The problem on the CPU and on the device."""
    return given, dataclasses.replace(given, device=device)


@pytest.mark.parametrize(("device", "n"), ROWS)
def test_exact_heads_converge_to_the_optimum_of_the_cpu(device: str, n: int) -> None:
    folds = np.arange(n // 2) % 3
    here, there = (fit_exact(p, [0.01, 1.0, 100.0]) for p in on(device, dataclasses.replace(problem(n), folds=folds)))
    assert len(here) == len(there) == 12
    for a, b in zip(here, there, strict=True):
        assert a.converged and b.converged
        assert b.objective == pytest.approx(a.objective, rel=5e-6)


@pytest.mark.parametrize(("device", "n"), ROWS)
def test_fewer_rows_than_features_and_float64_converge_there_too(device: str, n: int) -> None:
    given = problem(min(n, 600), dim=1000)
    for dtype in (torch.float32, torch.float64):
        (a,), (b,) = (fit_exact(p, [1.0]) for p in on(device, dataclasses.replace(given, dtype=dtype)))
        assert a.converged and b.converged
        assert b.objective == pytest.approx(a.objective, rel=5e-6 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize(("device", "kind"), on_both(["linear", "mlp", "cosine"], ["linear", "mlp", "cosine"]))
def test_minibatch_heads_learn_what_they_learn_on_the_cpu(device: str, kind: str) -> None:
    """Not to the last bit: sums are added in another order, and dropout draws otherwise on each kind of device."""
    configs = [MinibatchConfig(kind=kind, lr=lr, epochs=3, seed=seed) for lr in (1e-3, 1e-2) for seed in (0, 1)]
    here, there = (fit_minibatch(p, configs) for p in on(device, problem(2000)))
    for a, b in zip(here, there, strict=True):
        assert b.val_accuracy == pytest.approx(a.val_accuracy, abs=0.005)
        for left, right in zip(a.trace, b.trace, strict=True):
            assert right.loss == pytest.approx(left.loss, rel=1e-3)


@pytest.mark.parametrize(("device", "kind"), on_both(["linear"], ["linear", "mlp", "cosine"]))
def test_minibatch_heads_are_the_same_bits_again(device: str, kind: str) -> None:
    configs = [MinibatchConfig(kind=kind, epochs=2, dropout=0.2 if kind == "mlp" else 0.0)]
    (a,), (b,) = (fit_minibatch(on(device, problem(2000))[1], configs) for _ in range(2))
    assert all(np.array_equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


@pytest.mark.parametrize(("device", "shape"), on_both([(600, 64), (60, 200)], [(600, 64), (60, 200), (40_000, 512)]))
def test_ridge_heads_are_those_of_the_cpu(device: str, shape: tuple[int, int]) -> None:
    here, there = (ridge_path(p).fits for p in on(device, problem(*shape)))
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(b.weight, a.weight, atol=1e-5 * np.abs(a.weight).max())
        assert b.loo_squared_error == pytest.approx(a.loo_squared_error, rel=1e-5)


@pytest.mark.parametrize(("device", "megabytes"), on_both([64], [64, 1536]))
def test_exact_heads_take_the_memory_that_their_rows_may_and_little_more(device: str, megabytes: int) -> None:
    """Rows of 1.2 GB, 2.5 GB as float32: they stay in host memory, and are sent in pieces, or lie on the card once."""
    n, dim = (300_000, 2048) if device == "cuda" else (600, 64)
    X, y = power_law(n, dim, 10, seed=0)
    given = Problem(X, y, 10, device=device, memory=megabytes << 20)
    with peak_of(device) as taken:
        fits = fit_exact(given, [0.01, 1.0])
    assert all(fit.converged for fit in fits)
    assert taken() <= (megabytes + BESIDE) << 20


@contextmanager
def peak_of(device: str) -> Iterator[Callable[[], int]]:
    """Bytes that the card gave within at most, beyond those that it had given before; none where there is no card."""
    if device == "cpu":
        yield lambda: 0
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield lambda: torch.cuda.max_memory_allocated(device) - before
