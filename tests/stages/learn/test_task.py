"""What learning works on: rows joined without a copy, and the memory that they may be held in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import search, train
from pipeline.base.errors import ConfigError
from pipeline.base.workspace import Workspace
from pipeline.stages.learn.settings import SearchSettings
from pipeline.stages.learn.task import task_of

LITTLE = 1e-6  # GiB: about a thousand bytes


def said(listener: Any) -> list[str]:
    return [line for line in listener.text.splitlines() if "read anew" in line]


def test_train_and_val_rows_are_one_view_of_the_cache(workshop: SimpleNamespace, tmp_path: Path) -> None:
    task = task_of(SearchSettings(str(workshop.cache.cache)), Workspace(tmp_path))
    both = task.both
    assert np.shares_memory(both.X, task.cache.features)
    np.testing.assert_array_equal(both.X, np.concatenate([task.train.X, task.val.X]))
    np.testing.assert_array_equal(both.y, np.concatenate([task.train.y, task.val.y]))


@pytest.mark.parametrize("solver", ["exact", "adamw", "mlp"])
def test_memory_decides_whether_rows_are_held_and_it_is_said(
    workshop: SimpleNamespace, tmp_path: Path, listener: Any, solver: str
) -> None:
    def work(memory: float | None) -> float | None:
        if solver != "adamw":
            few = {"space": "mlp", "trials": 2, "epochs": 2} if solver == "mlp" else {}
            found = search(
                workshop.cache.cache, memory=memory, evaluate=False, workspace=tmp_path, watch=listener, **few
            )
        else:
            found = train(
                workshop.cache.cache, solver=solver, epochs=5, memory=memory, workspace=tmp_path, watch=listener
            )
        return found.val

    held = work(None)
    assert not said(listener)
    assert work(LITTLE) == held
    lines = said(listener)
    assert len(lines) == (2 if solver == "exact" else 1)  # a search fits the chosen head once more
    for line in lines:
        assert line.startswith("the rows are read anew for each pass: held they take ")
        assert line.endswith(", and memory allows 1.0 KiB")


def test_no_memory_at_all_is_refused(workshop: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="memory is 0"):
        train(workshop.cache.cache, memory=0, workspace=tmp_path)
