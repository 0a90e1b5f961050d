"""Options and fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = pytest.mark.skip(reason="slow: run with --slow")
    gpu = pytest.mark.skip(reason="no CUDA device")
    real = pytest.mark.skip(reason="PIPELINE_REAL_DATA names no folder with photographs")
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(slow)
        if "gpu" in item.keywords and not _has_gpu():
            item.add_marker(gpu)
        if "realdata" in item.keywords and not Path(os.environ.get("PIPELINE_REAL_DATA", "-")).is_dir():
            item.add_marker(real)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
