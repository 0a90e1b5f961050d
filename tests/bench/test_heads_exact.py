"""The exact heads' entries at toy size: finite ratios, and the objective beside scikit-learn's."""

import math

import numpy as np
import pytest

from pipeline.bench import heads_exact
from pipeline.bench.measure import Bench
from pipeline.report.watch import Watch


@pytest.fixture
def bench(tmp_path):
    return Bench(2, tmp_path, Watch())


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    X = rng.standard_normal((90, 8)) + 2 * rng.standard_normal((3, 8))[y]
    return [heads_exact.Rows("toy", X.astype(np.float16), y)]


@pytest.mark.parametrize(
    "entry",
    [
        heads_exact.bench_exact_one,
        heads_exact.bench_exact_path,
        heads_exact.bench_exact_cv,
        heads_exact.bench_evals,
    ],
)
def test_each_entry_gives_finite_ratios_and_objectives_no_higher_than_scikit_learns(bench, rows, entry):
    found = entry(bench, rows)
    assert all(math.isfinite(v) for f in found for v in f.each)
    assert found[0].name == "toy" and found[0].goal is not None
    for figure in found:
        if "objective" in figure.name:
            assert figure.value <= 1e-5


def test_memory_is_what_the_fit_takes_beyond_the_rows(bench):
    found = heads_exact.bench_exact_memory(bench, rows=4000, dim=64)[0]
    assert math.isfinite(found.value) and found.value > 0
