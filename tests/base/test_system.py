"""What is done where a system lacks a call: each is taken away."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import extract, open_cache
from pipeline.base import files, system
from tests.conftest import QUICK

OF_LINUX = ("sched_getaffinity", "posix_fallocate", "posix_fadvise", "fdatasync", "pread", "pwrite", "preadv")


@pytest.fixture
def open_file(tmp_path: Path) -> Any:
    with (tmp_path / "a").open("w+b") as file:
        yield file


def test_room_is_claimed_where_the_system_can(open_file: Any) -> None:
    system.reserve(open_file.fileno(), 4096, 100_000)
    assert os.fstat(open_file.fileno()).st_size == 104_096


def test_a_file_system_that_reserves_nothing_is_written_to_all_the_same(
    open_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    system.reserve(open_file.fileno(), 0, 4096)


def test_a_full_disk_is_found_where_there_is_no_posix_fallocate(
    open_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    system.reserve(open_file.fileno(), 0, 4096)
    with pytest.raises(OSError, match="No space left"):
        system.reserve(open_file.fileno(), 0, 1 << 60)


def test_bytes_are_flushed_where_there_is_no_fdatasync(open_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.delattr(os, "fdatasync")
    monkeypatch.setattr(os, "fsync", flushed.append)
    system.sync_data(open_file.fileno())
    assert flushed == [open_file.fileno()]


def test_bytes_are_read_and_written_at_a_place_without_pread_and_pwrite(
    open_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pread")
    monkeypatch.delattr(os, "pwrite")
    files.write_all(open_file.fileno(), b"second", 6)
    files.write_all(open_file.fileno(), b"first ", 0)
    assert system.read_at(open_file.fileno(), 5, 7) == b"econd"
    assert system.read_at(open_file.fileno(), 99, 0) == b"first second"


def test_room_that_cannot_even_be_asked_for_is_not_asked_for(open_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.delattr(os, "fstatvfs")
    system.reserve(open_file.fileno(), 0, 1 << 60)


def windows_locks() -> SimpleNamespace:
    """Locks as Windows has them: of bytes from the file's place on, an OSError of its own where they are held."""

    def locking(fd: int, mode: int, n_bytes: int) -> None:
        assert (mode, n_bytes) == (2, 1)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(errno.EACCES, "Permission denied") from error

    return SimpleNamespace(LK_NBLCK=2, locking=locking)


def test_windows_locks_are_taken_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "fcntl", None)
    monkeypatch.setattr(system, "msvcrt", windows_locks())
    with files.locked(tmp_path / "lock"), pytest.raises(files.Busy), files.locked(tmp_path / "lock"):
        pass
    with files.locked(tmp_path / "lock"):
        pass


def test_a_system_without_locks_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "fcntl", None)
    with pytest.raises(OSError, match="cannot be locked"), files.locked(tmp_path / "lock"):
        pass


def test_on_windows_no_process_is_asked_whether_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
    monkeypatch.setattr(os, "name", "nt")
    asked = system.is_running(1 << 22)
    monkeypatch.undo()
    assert asked and not killed
    assert system.is_running(os.getpid()) and not system.is_running(1 << 22)


def test_an_extraction_gives_the_same_bits_without_what_only_linux_has(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(name: str) -> Any:
        cache = open_cache(extract(photos, **QUICK, name=name, workspace=tmp_path).cache, verify=True)
        found = cache.features.tobytes(), cache.digests.tobytes(), cache.ids
        cache.path.unlink()  # or its rows would be copied
        return found

    whole = made("linux")
    for name in OF_LINUX:
        monkeypatch.delattr(os, name)
    assert made("elsewhere") == whole
    monkeypatch.setattr(system, "fcntl", None)
    monkeypatch.setattr(system, "msvcrt", windows_locks())
    assert made("windows") == whole
