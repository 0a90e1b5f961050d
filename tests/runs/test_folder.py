"""Runs' folders: their numbers, and that they are whole."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Barrier

import pytest

from pipeline.base.workspace import Workspace
from pipeline.runs import folder as runs
from pipeline.stages.learn.settings import TrainSettings

SHA256 = "0" * 64
TRANSFORM = {"resize": 36, "crop": 32, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}
ABOUT = {
    "cache": {
        "path": "/made.h5",
        "key": SHA256,
        "content": SHA256,
        "rows": {"train": 2},
        "about": {"source": "made", "root": "/", "notes": [], "weights": "random:0", "pretrained": False},
    },
    "provenance": {
        "trunk": {"name": "resnet18", "layer": "avgpool"},
        "weights": {"name": "random:0", "sha256": SHA256},
        "transform": TRANSFORM,
        "dtype": "float16",
        "precision": "float32",
        "engine": {"name": "torch", "version": "2", "device": "cpu"},
    },
    "classes": ["ant", "bee"],
}


def new_run(root: Path) -> AbstractContextManager[tuple[runs.Draft, Path]]:
    return runs.new_run(Workspace(root), stage="train", name="digits", settings=TrainSettings(), about=ABOUT)


def test_runs_that_begin_at_once_get_numbers_of_their_own(tmp_path: Path) -> None:
    together = Barrier(6)

    def one(_: int) -> str:
        together.wait()
        with new_run(tmp_path) as (draft, folder):
            together.wait()  # all are at work before the first one ends
            draft.write_json("metrics.json", {})
        return folder.name

    with ThreadPoolExecutor(6) as pool:
        names = sorted(pool.map(one, range(6)))
    assert names == [f"{n:04d}-train-digits" for n in range(1, 7)]
    assert sorted(p.name for p in (tmp_path / "runs").glob("[0-9]*")) == names
    assert all(runs.load_run(tmp_path / "runs" / name).stage == "train" for name in names)


def test_a_run_that_fails_leaves_nothing_but_its_number(tmp_path: Path) -> None:
    try:
        with new_run(tmp_path):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert [p.name for p in (tmp_path / "runs").iterdir() if p.is_dir()] == []


def test_every_file_of_a_run_is_on_the_disk_before_the_folder_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: set[int] = set()
    fsync = os.fsync

    def told(fd: int) -> None:
        flushed.add(os.fstat(fd).st_ino)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", told)
    with new_run(tmp_path) as (draft, final):
        draft.write_json("metrics.json", {})
        draft.write_lines("trace.jsonl", [{"epoch": 1}, {"epoch": 2}])
        draft.write_text("picture.svg", "<svg/>")
    written = {p.name: p.stat().st_ino for p in final.iterdir()}
    assert set(written) == {"config.json", "metrics.json", "trace.jsonl", "picture.svg"}
    assert set(written.values()) <= flushed
    assert final.parent.stat().st_ino in flushed
    assert (final / "trace.jsonl").read_text() == '{"epoch": 1}\n{"epoch": 2}\n'
