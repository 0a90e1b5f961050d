"""One writing job at a time; a dead one does not block."""

from __future__ import annotations

import errno
import fcntl
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


def test_a_file_system_without_locks_is_one_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS answers where its lock server is not running."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    words = "files there cannot be locked .No locks available."
    with pytest.raises(CacheError, match=words) as caught, writing_lock(tmp_path / "a.h5"):
        pass
    assert "\n" not in str(caught.value) and [p.name for p in tmp_path.iterdir()] == [".a.h5.lock"]


def test_the_number_of_a_dead_holder_that_another_process_has_now_disturbs_nobody(tmp_path: Path) -> None:
    child, _ = holder(tmp_path / "a.h5")
    child.kill()
    child.join()
    said = tmp_path / ".a.h5.holder.json"
    said.write_text(said.read_text().replace(str(child.pid), str(os.getpid())))  # ours is alive
    with writing_lock(tmp_path / "a.h5") as dead:
        assert dead is not None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CacheError, match="cannot write"), writing_lock(tmp_path / "sub" / "a.h5"):
        pass
