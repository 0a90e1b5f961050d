"""The arithmetic that is held: in every state that a process may be in before, and that bits do not depend on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.base.arithmetic import arithmetic, ordered_attention
from pipeline.base.precision import lacks
from pipeline.bench.trunk import random_trunk
from pipeline.heads.baselines import NEIGHBOURS, cosine_centroids, nearest_by_cosine, run_baselines
from pipeline.heads.exact.path import fit_exact
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.fit import fit_minibatch
from pipeline.heads.problem import Problem, Split
from pipeline.heads.ridge import ridge_path
from pipeline.runs.network import classifier_of, network_forward
from pipeline.trunk.engines.check import eager_features
from pipeline.trunk.engines.open import open_engine
from pipeline.trunk.identity import TrunkSpec
from pipeline.trunk.weights import load_model
from tests.base.arithmetic_states import OLD, OPERATIONS, OVERRIDE, STATES

HELD = {
    "float32": ["ieee", "ieee", "ieee", "ieee"],
    "tf32": ["tf32", "tf32", "ieee", "ieee"],
    "bfloat16": ["ieee", "ieee", "ieee", "ieee"],
    "int8": ["ieee", "ieee", "ieee", "ieee"],
    "float32 in tf32": ["ieee", "ieee", "ieee", "ieee"],
    "tf32 again": ["tf32", "tf32", "ieee", "ieee"],
}
ADDED_IN_ONE_ORDER = {"enabled": True, "benchmark": False, "deterministic": True}
# An operation's own setting that is its parent's value: PyTorch shows it as it shows an inherited one.
AS_ITS_PARENT = ("all three of the new", "legacy, then new")

needs_the_new = pytest.mark.skipif(
    not hasattr(torch.backends.cudnn, "conv"), reason="PyTorch before 2.9 has no setting for each operation"
)


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    """What ``arithmetic_states.py`` prints without and with the override of the environment."""
    here = {key: value for key, value in os.environ.items() if key != OVERRIDE}
    here |= {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("arithmetic_states.py"))]
    running = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for env in (here, {**here, OVERRIDE: "1"})
    ]
    said = [process.communicate()[0] for process in running]
    assert not any(process.returncode for process in running)
    return {**json.loads(said[0]), **json.loads(said[1])}


@needs_the_new
@pytest.mark.parametrize("state", [*STATES, "environment"])
def test_whatever_was_set_before_holds_again_afterwards_and_nothing_of_it_within(found: Any, state: str) -> None:
    moments = found[state]["entered"]
    assert "error" not in moments, moments["error"]
    for moment, values in HELD.items():
        assert [moments[moment][name] for name in OPERATIONS] == values, moment
        assert {name: moments[moment][name] for name in ADDED_IN_ONE_ORDER} == ADDED_IN_ONE_ORDER
    afterwards = [moment for moment in moments if moment.startswith("after")]
    assert len(afterwards) == 6
    for moment in afterwards:
        assert moments[moment] == moments["before"], moment


@needs_the_new
@pytest.mark.parametrize("state", [state for state in [*STATES, "environment"] if state not in AS_ITS_PARENT])
def test_what_was_inherited_is_inherited_afterwards(found: Any, state: str) -> None:
    there = found[state]["entered"]["parent changed"]
    assert there == found[state]["untouched"]["parent changed"]
    if state == "convolutions inherit":
        assert there["cudnn.conv"] == there["cuda.matmul"] == there["backends"] == "tf32"


@needs_the_new
def test_the_states_are_not_all_one(found: Any) -> None:
    """What is set is there before the context is entered."""
    before = {state: found[state]["entered"]["before"] for state in found}
    assert before["medium"]["mkldnn.matmul"] == "bf16" and before["medium"]["cuda.matmul"] == "tf32"
    assert before["environment"]["cuda.matmul"] == "tf32" != before["default"]["cuda.matmul"]
    assert before["by the clock"]["benchmark"] and not before["by the clock"]["deterministic"]
    assert len({json.dumps(values) for values in before.values()}) > len(before) / 2


@pytest.mark.parametrize("state", OLD)
def test_before_pytorch_2_9_two_settings_hold_all_of_it(found: Any, state: str) -> None:
    moments = found[state]["as_before_2_9"]
    assert moments["float32"] == moments["float32 again"] == ["highest", False]
    assert moments["tf32"] == ["high", True]
    assert moments["before"] == moments["after"]


# -- on processors that multiply in bfloat16 -------------------------------------------------------------------------

needs_bfloat16 = pytest.mark.skipif(
    lacks("bfloat16", "cpu") is not None, reason="the processor has no bfloat16 (AVX512-BF16, AMX or Arm's BF16)"
)
PIXELS = np.random.default_rng(1).integers(0, 256, (8, 3, 64, 64), dtype=np.uint8)


@contextmanager
def medium() -> Iterator[None]:
    """Products of float32 matrices in bfloat16, as a program around may have asked for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def rows(n: int = 1000, d: int = 64, c: int = 5) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    y = np.arange(n) % c
    return (2 * rng.standard_normal((n, d)) + 0.2 * rng.standard_normal((c, d))[y]).astype(np.float32), y


def exact(_: Path) -> list[Any]:
    fits = fit_exact(Problem(*rows(), 5), [0.01, 1.0])
    return [part for fit in fits for part in (fit.weight, fit.bias)]


def minibatch(_: Path) -> list[Any]:
    X, y = rows()
    configs = [MinibatchConfig(epochs=2, kind=kind) for kind in ("linear", "mlp", "cosine")]
    fits = fit_minibatch(Problem(X, y, 5, val=Split(X[::2] + 1, y[::2])), configs)
    return [tensor for fit in fits for tensor in fit.tensors.values()]


def ridge(_: Path) -> list[Any]:
    return [fit.weight for shape in ((400, 64), (50, 64)) for fit in ridge_path(Problem(*rows(*shape), 5)).fits]


def neighbours(_: Path) -> list[Any]:
    """Figures alone: the labels are nearly noise, so that a row more or less among the nearest shows in them."""
    X, y = rows(4000, 32)
    problem = Problem(X[::2], y[::2], 5, val=Split(X[1::2], y[1::2]))
    return [np.array(found.val) for found in run_baselines(problem, names=[*NEIGHBOURS])]


def centroids(_: Path) -> list[Any]:
    X, y = rows()
    found = cosine_centroids(X, y, 5)
    return [found.numpy(), *map(np.asarray, nearest_by_cosine(found, X))]


def engine(folder: Path) -> list[Any]:
    """timm's smallest ViT."""
    pytest.importorskip("timm")
    info, trunk, dim = random_trunk("timm:test_vit", 64, folder)
    spec = TrunkSpec(info, info.layer("last"), "torch", "float32", "cpu")
    return [open_engine(spec, trunk, dim, batch=8, work_dir=folder)(PIXELS), eager_features(trunk, info, PIXELS)]


def network(folder: Path) -> list[Any]:
    pytest.importorskip("timm")
    info = random_trunk("timm:test_vit", 64, folder)[0]
    whole = load_model(info)
    return list(network_forward(whole, classifier_of(whole, info), PIXELS, info))


COMPUTING: list[Callable[[Path], list[Any]]] = [exact, minibatch, ridge, neighbours, centroids, engine, network]


@needs_bfloat16
@pytest.mark.parametrize("compute", COMPUTING)
def test_what_a_program_has_set_changes_no_bit(
    compute: Callable[[Path], list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = compute(tmp_path)
    with medium():
        found = compute(tmp_path)
        monkeypatch.setattr("pipeline.base.arithmetic._hold", lambda *_: None)
        free = compute(tmp_path)  # what is set does reach these products where nothing holds them
    assert [part.tobytes() for part in found] == [part.tobytes() for part in plain]
    if compute is not ridge:  # whose products are float64's
        assert [part.tobytes() for part in free] != [part.tobytes() for part in plain]


@needs_bfloat16
def test_under_medium_a_plain_product_is_off_and_one_that_is_held_is_not() -> None:
    a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0)).unbind()
    true = a.double() @ b.double()
    with medium():
        plain = a @ b
        with arithmetic():
            held = a @ b
    errors = [float((found - true).abs().max() / true.abs().max()) for found in (plain, held)]
    assert errors[0] > 1e-4 and errors[1] < 1e-6


def test_attention_is_taken_in_one_order_on_a_gpu_alone() -> None:
    told = torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.mem_efficient_sdp_enabled
    for device, fused in (("cpu", True), ("cuda", False), ("cuda:1", False)):
        with ordered_attention(device):
            assert [ask() for ask in told] == [fused, fused] and torch.backends.cuda.math_sdp_enabled()
        assert [ask() for ask in told] == [True, True]
