"""All heads on a device double: the CPU's numbers, nothing on two devices at once, and nobody waits without need."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import clone

from pipeline.base.errors import HeadError
from pipeline.base.memory import memory_share
from pipeline.heads import rows as rows_module
from pipeline.heads.estimators import ExactLinearHead, ExactLinearHeadCV, MinibatchHead
from pipeline.heads.exact import minimise, path
from pipeline.heads.exact.path import fit_exact
from pipeline.heads.exact.room import cases_at_once, held_bytes, lie
from pipeline.heads.minibatch import batches, passes
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.fit import fit_minibatch, rows_bytes
from pipeline.heads.minibatch.halving import Halving, successive_halving
from pipeline.heads.problem import Problem, Split
from pipeline.heads.ridge import ridge_path
from pipeline.heads.rows import StandardRows
from pipeline.heads.standardize import fit_standardization
from tests.device_double import Double, device_double

GPU = torch.device("cuda")
GB = 10**9


def data(n=300, d=24, c=4, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % c
    X = np.random.default_rng(9).standard_normal((c, d))[y] + 1.5 * rng.standard_normal((n, d))
    return (X * np.linspace(0.1, 4, d) + 3).astype(dtype), y


def on_both(solve, problem, late=False):
    """What a solver makes of a problem on the CPU, and on the double."""
    here = solve(problem)
    with device_double(late=late):
        return here, solve(dataclasses.replace(problem, device="cuda"))


@pytest.fixture
def small_pieces(monkeypatch):
    """Many pieces on a GPU, though rows are few."""
    monkeypatch.setattr(rows_module, "GPU_CHUNK_ROWS", 90)
    monkeypatch.setattr(minimise, "GPU_PIECE_BYTES", 1 << 14)
    monkeypatch.setattr(batches, "POOL_BYTES", 100 * 24 * 2)


# -- exact ------------------------------------------------------------------------------------------------------------

FOLDS = np.arange(300) // 4 % 3
PROBLEMS = {
    "plain": {},
    "folds": {"folds": FOLDS},
    "read anew": {"memory": 0},
    "held as stored, not turned": {"memory": 300 * 24 * 4 + 9},
    "float16 read anew, folds": {"X": data(dtype=np.float16)[0], "memory": 0, "folds": FOLDS},
    "whole numbers": {"X": data()[0].round().astype(np.int32)},
    "float64": {"X": data(dtype=np.float64)[0], "dtype": torch.float64},
    "fewer rows than features": dict(zip(("X", "y"), data(30, 60), strict=True)),
    "as many rows as classes": dict(zip(("X", "y"), data(4, 6), strict=True)),
    "two classes, weighed": {"y": np.arange(300) % 2, "n_classes": 2, "class_weight": {1: 3.0}, "standardize": False},
}


@pytest.mark.parametrize("changes", PROBLEMS.values(), ids=PROBLEMS)
def test_exact_heads_are_those_of_the_processor(changes, small_pieces):
    X, y = data()
    problem = Problem(**{"X": X, "y": y, "n_classes": 4, **changes})
    here, there = on_both(lambda p: fit_exact(p, [1e-3, 0.1]), problem, late=problem.memory == 0)
    assert [(fit.C, fit.fold) for fit in there] == [(fit.C, fit.fold) for fit in here]
    for a, b in zip(here, there, strict=True):
        assert b.converged
        assert b.objective == pytest.approx(a.objective, rel=1e-10 if problem.dtype == torch.float64 else 5e-6)
        np.testing.assert_allclose(b.weight, a.weight, atol=2e-3 * np.abs(a.weight).max())


@pytest.mark.parametrize("memory", [None, 0])
def test_of_very_many_rows_the_sample_is_taken_on_the_gpu(memory, monkeypatch):
    monkeypatch.setattr("pipeline.heads.exact.spectrum.FEWEST", 200)
    monkeypatch.setattr(rows_module, "GPU_CHUNK_ROWS", 150)
    X, y = data(900, 8)
    here, there = on_both(lambda p: fit_exact(p, [0.1]), Problem(X, y, 4, memory=memory), late=memory == 0)
    assert there[0].converged and there[0].objective == pytest.approx(here[0].objective, rel=1e-6)


def test_a_case_that_is_told_of_asks_the_gpu_once_for_both_figures():
    X, y = data()
    told = ([], [])
    with device_double():
        fit_exact(Problem(X, y, 4, device="cuda"), [0.1], on_step=told[1].append)
    fit_exact(Problem(X, y, 4), [0.1], on_step=told[0].append)
    for a, b in zip(*told, strict=True):
        assert (b.n_iter, b.accuracy) == (a.n_iter, pytest.approx(a.accuracy, abs=0.01))
        assert b.objective == pytest.approx(a.objective, rel=1e-5)


def counted(monkeypatch, double: Double, cls, name):
    """Every call of a method: how often the host waited within it."""
    method, found = getattr(cls, name), []

    def call(self, *args, **kwargs):
        before = double.synchronisations
        try:
            return method(self, *args, **kwargs)
        finally:
            found.append(double.synchronisations - before)

    monkeypatch.setattr(cls, name, call)
    return found


def test_an_iteration_waits_for_its_trials_for_the_coupling_and_for_who_is_done(monkeypatch):
    X, y = data()
    with device_double() as double:
        steps = counted(monkeypatch, double, minimise._Run, "step")
        trials = counted(monkeypatch, double, minimise._Logits, "evaluate")
        couplings = counted(monkeypatch, double, minimise._Logits, "coupling")
        leaving = counted(monkeypatch, double, minimise._Run, "keep")
        starts = counted(monkeypatch, double, minimise._Run, "__init__")
        before, ended = double.synchronisations, []
        monkeypatch.setattr(path, "minimise", lambda *a, **k: _waited(double, ended, *a, **k))
        fit_exact(Problem(X, y, 4, device="cuda"), np.logspace(-4, -1, 8))
    assert before == 0 and leaving and not any(leaving) and not any(trials) and not any(couplings)
    searched = len(trials) - len(starts)  # (one look at the start each)
    assert sum(steps) == searched + len(couplings) - len(starts)
    assert len(couplings) <= len(steps) / minimise.COUPLING_STEPS + 2 * len(starts)
    assert sum(ended) == sum(steps) + sum(starts) + len(steps)
    assert sum(starts) <= 2 * len(starts)


def _waited(double, ended, *args, **kwargs):
    before = double.synchronisations
    found = minimise.minimise(*args, **kwargs)
    ended.append(double.synchronisations - before)
    return found


# -- minibatch --------------------------------------------------------------------------------------------------------

SHORT = {"epochs": 2, "batch_size": 48, "order_seed": 0}
HEADS = {
    "linear": [{}, {"label_smoothing": 0.1, "seed": 2}, {"solver": "sgd", "schedule": "constant"}],
    "mixup": [{"mixup": 0.3, "label_smoothing": 0.1}, {"seed": 3}],
    "mlp": [{"kind": "mlp", "width": 8, "depth": 2, "dropout": rate, "mixup": 0.2, "seed": 5} for rate in (0.3, 0)],
    "cosine": [{"kind": "cosine"}, {"kind": "cosine", "mixup": 0.3, "seed": 4}],
    "leaving": [{"lr": lr, "solver": "sgd", "patience": 1, "epochs": 4} for lr in (1e9, 0.5, 1e-4)],
}
KINDS = {name: [MinibatchConfig(**{**SHORT, **one}) for one in some] for name, some in HEADS.items()}


def alike(here, there):
    """Bit by bit the same heads, which are chosen by the same figures."""
    for a, b in zip(here, there, strict=True):
        assert (b.best_epoch, b.diverged, b.n_iter, len(b.trace)) == (a.best_epoch, a.diverged, a.n_iter, len(a.trace))
        for name, tensor in a.tensors.items():
            np.testing.assert_array_equal(b.tensors[name], tensor)
        for mine, theirs in zip(a.trace, b.trace, strict=True):
            assert dataclasses.astuple(theirs) == pytest.approx(dataclasses.astuple(mine), rel=1e-6)


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("configs", KINDS.values(), ids=KINDS)
def test_minibatch_heads_have_the_bits_of_the_processor(configs, memory, small_pieces):
    """Rows as they are stored, and standardised on the GPU, are what a processor holds; the double draws as it does."""
    (X, y), (V, v) = data(dtype=np.float16), data(90, seed=5)
    problem = Problem(X, y, 4, val=Split(V, v), memory=memory)
    alike(*on_both(lambda p: fit_minibatch(p, configs), problem, late=memory == 0))


def test_halving_goes_on_with_the_same_heads(small_pieces):
    (X, y), (V, v) = data(), data(90, seed=5)
    configs = [
        MinibatchConfig(batch_size=64, lr=lr, seed=k, order_seed=0, mixup=0.1 * k)
        for k, lr in enumerate((0.001, 0.01, 0.1, 0.3))
    ]
    alike(*on_both(lambda p: successive_halving(p, configs, Halving(1, 4, 2)), Problem(X, y, 4, val=Split(V, v))))


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("configs", KINDS.values(), ids=KINDS)
def test_no_step_waits_for_the_gpu_and_an_epoch_does_once(configs, memory, monkeypatch):
    (X, y), (V, v) = data(), data(90, seed=5)
    with device_double() as double:
        steps = counted(monkeypatch, double, passes.Pass, "_step")
        epochs = counted(monkeypatch, double, passes.Pass, "_close")
        whole = counted(monkeypatch, double, passes.Pass, "advance")
        problem = Problem(X, y, 4, val=Split(V, v), device="cuda", memory=memory)
        fit_minibatch(problem, configs)
    assert len(steps) >= 14 and not any(steps)
    read_anew = 1 if memory == 0 else 0  # a piece of rows waits for room in page-locked memory
    assert max(epochs) == 1 + read_anew
    assert sum(whole) == sum(epochs) + read_anew * len(epochs)


# -- ridge, estimators ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("shape", [(300, 20), (20, 50)])
def test_ridge_is_that_of_the_processor(shape, memory, small_pieces):
    X, y = data(*shape)
    here, there = on_both(ridge_path, Problem(X, y, 4, sample_weight=1.0 + np.arange(len(X)) % 3, memory=memory))
    for a, b in zip(here.fits, there.fits, strict=True):
        np.testing.assert_allclose(b.weight, a.weight, rtol=1e-5, atol=1e-7)
        assert b.loo_accuracy == pytest.approx(a.loo_accuracy, abs=1e-9)
        assert b.loo_squared_error == pytest.approx(a.loo_squared_error, rel=1e-9)


@pytest.mark.filterwarnings("ignore:C = .* is the")
@pytest.mark.parametrize(
    "estimator",
    [
        ExactLinearHead(),
        pytest.param(ExactLinearHeadCV(Cs=3, cv=2), marks=pytest.mark.slow),
        MinibatchHead(epochs=3, validation_fraction=0.2),
    ],
)
def test_an_estimator_learns_where_it_is_told_to(estimator):
    X, y = data(90, 6, 3)
    here = clone(estimator).fit(X, y)
    with device_double() as double:
        there = clone(estimator).set_params(device="cuda").fit(X, y)
        assert double.launches > 100
    np.testing.assert_allclose(there.predict_proba(X), here.predict_proba(X), atol=1e-3)


# -- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_on_a_gpu_have_the_bits_of_the_processor(resident, dtype, late, small_pieces):
    X = data(1000, dtype=np.float16)[0]
    s = fit_standardization(X)
    expected = StandardRows(X, s, torch.device("cpu"), resident=True, dtype=dtype)._held
    with device_double(late=late):
        rows = StandardRows(X, s, GPU, resident=resident, dtype=dtype)
        starts, pieces = zip(*((start, piece.clone()) for start, piece in rows.chunks()), strict=True)
        picked = [piece.clone() for _, piece in rows.picked(np.arange(3, 900, 2))]
        assert starts == tuple(range(0, 1000, 90))
        assert torch.equal(torch.cat(pieces).cpu(), expected)
        assert torch.equal(torch.cat(picked).cpu(), expected[3:900:2])


def test_rows_that_a_gpu_holds_take_the_bytes_that_they_are_stored_in():
    X = data(dtype=np.float16)[0]
    assert StandardRows.held_bytes(X, GPU) == X.nbytes
    assert StandardRows.held_bytes(X, GPU, torch.float64) == X.nbytes
    assert StandardRows.held_bytes(X, torch.device("cpu"), torch.float64) == 4 * X.nbytes
    assert StandardRows.held_bytes(X.astype(np.int16), GPU) == 4 * X.nbytes
    with device_double():
        assert StandardRows(X, None, GPU, resident=True)._held.dtype == torch.float16


# -- memory -----------------------------------------------------------------------------------------------------------

IMAGENET = SimpleNamespace(
    X=np.broadcast_to(np.float16(1), (1_281_167, 2048)), n_classes=1000, dtype=torch.float32, target=GPU
)


@pytest.mark.parametrize(
    ("card", "minibatch_holds", "stored", "turned"),
    [(8, False, False, False), (24, True, True, False), (80, True, True, True), (141, True, True, True)],
)
def test_where_the_rows_of_imagenet_lie_on_a_card_of_so_many_gigabytes(card, minibatch_holds, stored, turned):
    """5.2 GB as they are stored, in float16; 10.5 GB turned, in float32; a third of the card is for them."""
    with device_double(memory=card * GB):
        problem = SimpleNamespace(**vars(IMAGENET), memory_bytes=memory_share(GPU))
        assert (rows_bytes(problem) <= problem.memory_bytes) is minibatch_holds
        assert lie(problem, 45) == (stored, turned)
        assert held_bytes(problem, 45) == 1_281_167 * 2048 * 2


@pytest.mark.parametrize(
    ("shape", "card", "cases"),
    [
        ((1_281_167, 1000, 2049), 141, 1),
        ((100_000, 1000, 2049), 80, 10),  # 0.4 GB of logits each: all that GPU_LOGITS_BYTES lets in
        ((100_000, 1000, 2049), 16, 5),  # five copies of the logits and 0.26 GB of L-BFGS's memory each
        ((100_000, 1000, 2049), 8, 2),
        ((10_000, 10, 2049), 8, 1342),
        ((500, 10, 500), 8, 6710),
    ],
)
def test_how_many_fits_advance_together_is_asked_of_the_card(shape, card, cases):
    with device_double(memory=card * GB):
        assert cases_at_once(shape, torch.float32, GPU) == cases


def test_what_a_processor_computes_together_is_asked_of_nobody():
    assert cases_at_once((10_000, 10, 2049), torch.float32, torch.device("cpu")) == (1 << 28) // 400_000


def test_what_does_not_fit_is_halved_until_it_does(monkeypatch):
    X, y = data()
    Cs = np.logspace(-4, -2.5, 7).tolist()
    with device_double():
        expected = fit_exact(Problem(X, y, 4, device="cuda"), Cs)
        tried, full = [], minimise.minimise

        def of_three(objective, start, **options):
            tried.append(len(start))
            if len(start) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return full(objective, start, **options)

        monkeypatch.setattr(path, "minimise", of_three)
        found = fit_exact(Problem(X, y, 4, folds=FOLDS, device="cuda"), Cs)
    assert max(tried) >= 6
    assert tried[tried.index(max(tried)) + 1] == max(tried) // 2
    for a, b in zip(expected, found, strict=False):
        assert b.converged and b.objective == pytest.approx(a.objective, rel=5e-6)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
@pytest.mark.parametrize("solver", ["exact", "minibatch", "ridge", "halving"])
def test_what_does_not_fit_at_all_is_one_line_with_what_is_free_and_the_cure(solver, error, monkeypatch):
    (X, y), (V, v) = data(), data(90, seed=5)

    def fail(*_, **__):
        raise error

    solve = {
        "exact": lambda p: fit_exact(p, [0.1, 1.0]),
        "minibatch": lambda p: fit_minibatch(p, KINDS["linear"]),
        "ridge": ridge_path,
        "halving": lambda p: successive_halving(p, KINDS["mixup"], Halving(1, 3)),
    }[solver]
    for place in ("pipeline.heads.exact.path.minimise", "pipeline.heads.ridge._tall"):
        monkeypatch.setattr(place, fail)
    monkeypatch.setattr(passes.Pass, "_step", fail)
    problem = Problem(X, y, 4, val=Split(V, v))
    with device_double(memory=3 << 30), pytest.raises(HeadError) as told:
        solve(dataclasses.replace(problem, device="cuda"))
    assert str(told.value) == (
        "out of memory on cuda, which has 3.0 GiB free without this: 300 rows of 24 features and 4 classes are too "
        "much for it; give device='cpu'"
    )
    with pytest.raises(type(error)):  # a processor's memory is another matter
        solve(problem)
