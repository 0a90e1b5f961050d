"""Stage two with `--device cuda`, on a device double: the same heads as on the CPU, and what is said of memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import search, train
from pipeline.heads.artifact import Head, load_head
from tests.device_double import device_double


@pytest.mark.parametrize("options", [{"C": 0.1}, {"solver": "adamw", "epochs": 2}, {"solver": "sgd", "kind": "mlp"}])
def test_a_head_trained_on_a_gpu_is_that_of_the_processor(
    options: dict[str, Any], workshop: SimpleNamespace, tmp_path: Path
) -> None:
    def head(device: str) -> Head:
        found = train(workshop.cache.cache, device=device, workspace=tmp_path / device, **options)
        return load_head(found.run)

    here = head("cpu")
    with device_double():
        there = head("cuda")
    for name, tensor in here.tensors.items():
        np.testing.assert_allclose(there.tensors[name], tensor, atol=2e-3 * np.abs(tensor).max())


@pytest.mark.parametrize(
    "options", [pytest.param({"Cs": (0.01, 0.1)}, marks=pytest.mark.slow), {"space": "mlp", "trials": 3, "epochs": 3}]
)
def test_a_search_on_a_gpu_chooses_as_on_the_processor(
    options: dict[str, Any], workshop: SimpleNamespace, tmp_path: Path
) -> None:
    def chosen(device: str) -> Any:
        return search(workshop.cache.cache, device=device, evaluate=False, workspace=tmp_path / device, **options)

    here = chosen("cpu")
    with device_double():
        there = chosen("cuda")
    assert there.val == here.val
    one, other = (load_head(found.run) for found in (here, there))
    for name, tensor in one.tensors.items():
        np.testing.assert_allclose(other.tensors[name], tensor, atol=2e-3 * np.abs(tensor).max())


def test_what_a_gpu_has_free_decides_whether_rows_are_held_there_and_it_is_said(
    workshop: SimpleNamespace, tmp_path: Path, listener: Any
) -> None:
    for free in (1 << 30, 3 << 10):
        with device_double() as double:
            double.free = free
            train(workshop.cache.cache, device="cuda", solver="sgd", epochs=1, workspace=tmp_path, watch=listener)
    [said] = [line for line in listener.text.splitlines() if "read anew" in line]
    assert said.endswith("and memory allows 1.0 KiB")
