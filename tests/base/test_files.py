"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import subprocess
import sys
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
    files.sweep(tmp_path)
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


def draft_of_a_killed_writer(folder: Path) -> Path:
    """A process that is killed while it writes ``folder / "a"``."""
    code = "import os, sys; from pathlib import Path; from pipeline.base import files\n"
    code += "with files.whole(Path(sys.argv[1]) / 'a') as own:\n    own.write_text('half')\n    os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == -9
    (draft,) = files.drafts(folder)
    assert (draft / "a").read_text() == "half"
    return draft


def test_what_a_killed_writer_left_goes_with_the_next_one_and_a_live_one_is_let_be(tmp_path: Path) -> None:
    draft = draft_of_a_killed_writer(tmp_path)
    (tmp_path / ".somebody's.draft").mkdir()
    with files.whole(tmp_path / "a") as live:
        live.write_text("live")
        assert not draft.exists()
        files.write_text(tmp_path / "b", "b")
    assert {p.name: p.is_dir() or p.read_text() for p in tmp_path.iterdir()} == {
        "a": "live",
        "b": "b",
        ".somebody's.draft": True,
    }


@pytest.mark.parametrize("here", [True, False])
def test_without_locks_only_what_is_old_and_of_no_live_process_of_this_machine_counts_as_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    host = socket.gethostname() if here else "elsewhere"
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    names = [f".{host}-{pid}-01234567.draft" for pid in (int(gone.stdout), os.getpid())]
    for name in names:
        (tmp_path / name).mkdir()
    files.write_text(tmp_path / "a", "a")
    assert {p.name for p in tmp_path.iterdir()} == {"a", *names}, "not yet: numbers of processes mean little"
    for name in names:
        os.utime(tmp_path / name, (0, 0))
    files.write_text(tmp_path / "a", "a")
    assert {p.name for p in tmp_path.iterdir()} == {"a", *(names[1:] if here else [])}


def test_a_draft_of_another_machine_is_let_be_for_a_day_whatever_its_lock_says(tmp_path: Path) -> None:
    """Locks of one machine need not be seen by another, on a file system that both have."""
    (other := tmp_path / ".elsewhere-1-01234567.draft").mkdir()
    files.write_text(tmp_path / "a", "a")
    assert other.exists()
    os.utime(other, (0, 0))
    files.write_text(tmp_path / "a", "a")
    assert not other.exists()


def test_a_lock_that_cannot_be_had_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with files.locked(tmp_path / "lock"), pytest.raises(files.Busy), files.locked(tmp_path / "lock", patience=0.1):
        pass
    with files.locked(tmp_path / "lock"):
        pass

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(HeadError, match="files there cannot be locked .No locks available.; free space, permit"),
        files.writing(tmp_path),
        files.locked(tmp_path / "lock"),
    ):
        pass


def test_links_are_replaced_and_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    for name in ("a", "b", "c"):
        (tmp_path / name).symlink_to(tmp_path / "theirs")
    files.write_text(tmp_path / "a", "ours")
    assert (tmp_path / "a").read_text() == "ours" and not (tmp_path / "a").is_symlink()
    with pytest.raises(OSError, match="symbolic links"):
        files.append_line(tmp_path / "b", "ours")
    with pytest.raises(OSError, match="symbolic links"), files.locked(tmp_path / "c"):
        pass
    assert (tmp_path / "theirs").read_text() == "theirs"


@pytest.mark.parametrize(("mask", "modes"), [(0o027, (0o640, 0o750)), (0o002, (0o664, 0o775))])
def test_modes_are_those_of_the_umask(tmp_path: Path, mask: int, modes: tuple[int, int]) -> None:
    before = os.umask(mask)
    try:
        files.write_text(tmp_path / "a", "a")
        files.append_line(tmp_path / "b", "b")
        with files.locked(tmp_path / "c"), files.whole_folder(tmp_path / "d") as folder:
            files.write_text(folder / "e", "e")
        files.make_folder(tmp_path / "f" / "g")
    finally:
        os.umask(before)
    found = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    assert found == {**dict.fromkeys("abce", modes[0]), **dict.fromkeys("dfg", modes[1])}


def test_a_line_is_added_behind_what_is_there_and_never_to_one_that_was_cut(tmp_path: Path) -> None:
    files.append_line(tmp_path / "a", "1")
    files.append_line(tmp_path / "a", "2")
    with (tmp_path / "a").open("a") as file:
        file.write("thr")
    files.append_line(tmp_path / "a", "4")
    assert (tmp_path / "a").read_text() == "1\n2\nthr\n4\n"


def test_a_system_that_writes_a_part_at_a_time_gets_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, pwrite = os.write, os.pwrite
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:3], offset))
    files.append_line(tmp_path / "a", "0123456789")
    with (tmp_path / "b").open("wb") as file:
        files.write_all(file.fileno(), b"0123456789", 2)
    assert (tmp_path / "a").read_text() == "0123456789\n"
    assert (tmp_path / "b").read_bytes() == b"\0\0" + b"0123456789"
    monkeypatch.setattr(os, "write", lambda *_: 0)
    with pytest.raises(OSError, match="Input/output error"):
        files.append_line(tmp_path / "a", "x")


def test_a_refusal_of_the_system_is_one_line_with_its_cure(tmp_path: Path) -> None:
    with pytest.raises(HeadError) as caught, files.writing(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value) == (
        f"cannot write in {tmp_path}: No space left on device; free space, permit writing there, "
        "or choose another workspace"
    )
    with (
        pytest.raises(DataError, match="cannot write in .*Not a directory.*or give another out$"),
        files.writing(tmp_path, DataError, "give another out"),
    ):
        (tmp_path / "file").write_text("")
        files.write_text(tmp_path / "file" / "below", "x")
