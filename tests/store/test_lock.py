"""One writing job at a time; a dead one does not block."""

from __future__ import annotations

import multiprocessing
import os
import socket
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from pipeline.base.errors import CacheError
from pipeline.store import writing_lock


def _hold(path: Path, pipe: Connection) -> None:
    with writing_lock(path):
        pipe.send("held")
        pipe.recv()


def holder(path: Path) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_hold, args=(path, theirs))
    child.start()
    assert ours.recv() == "held"
    return child, ours


def test_a_second_job_fails_at_once_and_names_the_first(tmp_path: Path) -> None:
    child, pipe = holder(tmp_path / "a.h5")
    try:
        with (
            pytest.raises(CacheError, match=f"process {child.pid} on {socket.gethostname()}"),
            writing_lock(tmp_path / "a.h5"),
        ):
            pass
    finally:
        pipe.send("go")
        child.join()
    with writing_lock(tmp_path / "a.h5") as dead:
        assert dead is None


def test_a_killed_job_is_recognised_and_named(tmp_path: Path) -> None:
    child, _ = holder(tmp_path / "a.h5")
    child.kill()
    child.join()
    with writing_lock(tmp_path / "a.h5") as dead:
        assert dead is not None
        assert f"process {child.pid}" in dead


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CacheError, match="cannot write"), writing_lock(tmp_path / "sub" / "a.h5"):
        pass
