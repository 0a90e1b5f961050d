"""Tests on a GPU (``make test ARGS='-m gpu'``), whose bodies run small on the CPU, too, so that no slip hides in them.

On a GPU they run one after the other, whatever the number of test processes: one of them fills the card.
"""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

GPU = "cuda"


def on_both(here: Sequence[Any], there: Sequence[Any]) -> list[Any]:
    """Parameters (device, value): those for the CPU, among the slow tests, and those for the GPU with its mark."""
    return [
        *(pytest.param("cpu", value, id=f"cpu-{value}", marks=pytest.mark.slow) for value in here),
        *(pytest.param(GPU, value, id=f"gpu-{value}", marks=pytest.mark.gpu) for value in there),
    ]


@pytest.fixture(autouse=True)
def card(request: pytest.FixtureRequest) -> Iterator[None]:
    """The card for this test alone."""
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    with (Path(tempfile.gettempdir()) / "pipeline-tests-card.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
