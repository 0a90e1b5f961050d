"""Convolutions and products on a GPU are IEEE's or TF32's as they are held, in every state that a process may be in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.base.arithmetic_states import OVERRIDE, STATES
from tests.base.arithmetic_states import __file__ as script
from tests.gpu.conftest import on_both


@pytest.mark.parametrize(("device", "override"), on_both([False], [False, True]))
def test_products_are_what_is_held_in_every_state_of_a_process(device: str, override: bool) -> None:
    """Also where PyTorch calls the state a mix of two APIs, which some of its ways to ask for it refuse."""
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    here.pop(OVERRIDE, None)
    here |= {OVERRIDE: "1"} if override else {}
    said = subprocess.run([sys.executable, script, device], env=here, capture_output=True, text=True, check=True).stdout
    found = json.loads(said)
    assert set(found) == set(STATES)
    for state, by_precision in found.items():
        assert "error" not in by_precision, f"{state}: {by_precision}"
        exact, coarse = by_precision["float32"], by_precision["tf32"]
        assert all(error < 1e-5 for error in exact.values()), f"{state}: {by_precision}"
        if device == "cpu":
            assert coarse == exact, f"{state}: {by_precision}"
        else:  # (for a convolution cuDNN may take an algorithm without TF32 all the same)
            assert 5e-5 < coarse["product"] < 5e-3 and coarse["convolution"] < 5e-3, f"{state}: {by_precision}"
