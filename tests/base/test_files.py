"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.base import files
from pipeline.base.errors import DataError, HeadError


def test_a_temporary_file_is_gone_when_writing_fails(tmp_path: Path) -> None:
    target = tmp_path / "whole"
    with pytest.raises(ZeroDivisionError), files.whole(target) as draft:
        draft.write_text("half")
        1 / 0
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def told_fsync(fd: int) -> None:
        steps.append("folder" if os.path.samestat(os.fstat(fd), tmp_path.stat()) else f"{os.fstat(fd).st_size} bytes")
        fsync(fd)

    def told_replace(source: Path, target: Path) -> Path:
        steps.append(f"{target.name} takes its name")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", told_fsync)
    monkeypatch.setattr(Path, "replace", told_replace)
    files.write_bytes(tmp_path / "a", b"12345")
    assert steps == ["5 bytes", "a takes its name", "folder"]


@pytest.mark.parametrize("fatal", range(4))
def test_a_writer_that_dies_at_any_step_leaves_the_old_or_the_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fatal: int
) -> None:
    target, lives = tmp_path / "a.json", fatal
    files.write_json(target, {"old": True})

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal lives
            lives -= 1
            if lives < 0:  # also what would clean up afterwards: a killed process does nothing more
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
            patch.setattr(owner, name, dying(getattr(owner, name)))
        with suppress(KeyboardInterrupt):
            files.write_json(target, {"new": True})
    assert json.loads(target.read_text()) == ({"new": True} if fatal >= 2 else {"old": True})
    files.remove_drafts(target)
    assert list(tmp_path.iterdir()) == [target]


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with files.whole(target) as first:
        first.write_text("first")
        with files.whole(target) as second:
            second.write_text("second")
        assert target.read_text() == "second"
    assert target.read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_only_the_drafts_of_one_file_are_removed(tmp_path: Path) -> None:
    (tmp_path / "[a].h5").write_text("whole")
    for name in (".[a].h5.01234567.draft", ".[a].h5.89abcdef.draft", ".a.h5.01234567.draft", ".[a].h5.lock"):
        (tmp_path / name).write_text("")
    files.remove_drafts(tmp_path / "[a].h5")
    assert {p.name for p in tmp_path.iterdir()} == {"[a].h5", ".a.h5.01234567.draft", ".[a].h5.lock"}


def test_text_is_added_behind_what_is_there(tmp_path: Path) -> None:
    files.append_text(tmp_path / "a", "1\n")
    files.append_text(tmp_path / "a", "2\n")
    assert (tmp_path / "a").read_text() == "1\n2\n"


def test_a_refusal_of_the_system_is_one_line_with_its_cure(tmp_path: Path) -> None:
    with pytest.raises(HeadError) as caught, files.writing(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value) == (
        f"cannot write in {tmp_path}: No space left on device; free space, permit writing there, or choose --workspace"
    )
    with (
        pytest.raises(DataError, match="cannot write in .*Not a directory.*or give another --out$"),
        files.writing(tmp_path, DataError, "give another --out"),
    ):
        (tmp_path / "file").write_text("")
        files.write_text(tmp_path / "file" / "below", "x")


@pytest.fixture
def open_file(tmp_path: Path) -> Any:
    with (tmp_path / "a").open("w+b") as file:
        yield file


def test_room_is_claimed_where_the_system_can(open_file: Any) -> None:
    files.reserve(open_file.fileno(), 4096, 100_000)
    assert os.fstat(open_file.fileno()).st_size == 104_096


def test_a_file_system_that_reserves_nothing_is_written_to_all_the_same(
    open_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    files.reserve(open_file.fileno(), 0, 4096)


def test_a_full_disk_is_found_where_there_is_no_posix_fallocate(
    open_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    files.reserve(open_file.fileno(), 0, 4096)
    with pytest.raises(OSError, match="No space left"):
        files.reserve(open_file.fileno(), 0, 1 << 60)


def test_bytes_are_flushed_where_there_is_no_fdatasync(open_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.delattr(os, "fdatasync")
    monkeypatch.setattr(os, "fsync", flushed.append)
    files.sync_data(open_file.fileno())
    assert flushed == [open_file.fileno()]
