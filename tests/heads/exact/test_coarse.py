"""Why exact heads hold IEEE's float32: in TF32, emulated, the gradient never comes down to what is promised."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pipeline.bench.features import power_law
from pipeline.heads.exact.path import TOL, fit_exact
from pipeline.heads.problem import Problem
from tests.rounding import BITS, Coarse


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The emulation is of one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("cut", [False, True])
def test_products_in_tf32_leave_the_gradient_above_the_tolerance(cut: bool) -> None:
    X, y = power_law(2000, 128, 10, seed=0)
    problem = Problem(X, y, 10)
    (fit,) = fit_exact(problem, [1.0])
    assert fit.converged and fit.grad_norm <= TOL[torch.float32] == 1e-5
    with Coarse(BITS["tf32"], cut=cut) as coarse:
        (off,) = fit_exact(problem, [1.0])
    assert coarse.products > 100
    assert not off.converged and off.grad_norm > 2 * TOL[torch.float32]
