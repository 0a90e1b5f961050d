"""What learning works on: rows joined without a copy, and the memory that they may be held in."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import extract, open_cache, search, train
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


def test_where_an_image_failed_both_splits_are_one_copy(
    workshop: SimpleNamespace, tmp_path: Path, quick: dict[str, Any]
) -> None:
    photos = shutil.copytree(workshop.photos, tmp_path / "photos")
    learned = open_cache(workshop.cache.cache).split("train").ids
    broken = photos / os.fsdecode(learned[len(learned) // 2])
    broken.write_bytes(broken.read_bytes()[:40])
    made = extract(photos, workspace=tmp_path, **quick)
    whole, task = open_cache(made.cache), task_of(SearchSettings(str(made.cache)), Workspace(tmp_path))
    assert made.failed == 1
    assert not np.shares_memory(task.train.X, whole.features)
    assert np.shares_memory(task.train.X, task.both.X)
    assert np.shares_memory(task.val.X, task.both.X)
    for split, rows in (("train", task.train), ("val", task.val)):
        there = whole.split(split)
        np.testing.assert_array_equal(rows.X, whole.features[there.rows])
        np.testing.assert_array_equal(rows.y, there.y)
    np.testing.assert_array_equal(task.both.X, np.concatenate([task.train.X, task.val.X]))
    np.testing.assert_array_equal(task.both.y, np.concatenate([task.train.y, task.val.y]))


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


def test_a_device_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device='mps': PyTorch sees no GPU of Apple's"):
        task_of(SearchSettings("no-such-cache", device="mps"), Workspace(tmp_path))
