"""Files and folders that are whole or absent, after a kill and after a power cut alike: the one place that knows how.

The order: a hidden folder of one's own beside the target, locked; in it the file is written, flushed, has its bytes on
the disk, is renamed to the target, and has its name on the disk. What a killed writer leaves is such a folder, ends in
``.draft``, is never read, and is removed by the next writer beside it, who sees by the lock that nobody is at it. Links
are never followed: a rename replaces them. Modes are those of the caller's umask. Knows paths and bytes, nothing of
what they mean.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.base import system
from pipeline.base.errors import HeadError, PipelineError
from pipeline.base.spelling import option

_DRAFT = re.compile(r"\.(?P<host>.*)-(?P<pid>[0-9]+)-[0-9a-f]{8}\.draft")
OLD = 24 * 3600.0  # seconds after which a draft whose writer cannot be asked for counts as left behind
_POLL = 0.05  # seconds between two tries for a lock


class Busy(Exception):
    """Another process holds the lock; no PipelineError, since who asked for it knows what that means."""


# -- whole or absent --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path of our own, to be written as a file; it becomes ``path`` only if the block ends well.

    Two writers of one path do not disturb each other: the last to end wins.
    """
    with draft_in(path.parent) as draft:
        own = draft / path.name
        yield own
        sync(own)
        move(own, path)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder of our own, to be filled; it becomes ``path`` only if the block ends well.

    Raises:
        OSError: ``path`` is there already, and not an empty folder.
    """
    with draft_in(path.parent) as draft:
        own = draft / path.name
        own.mkdir()
        yield own
        move(own, path)


@contextlib.contextmanager
def draft_in(beside: Path) -> Iterator[Path]:
    """A hidden folder in the folder ``beside``, locked as long as the block runs, and gone afterwards."""
    sweep(beside)
    own, fd = _new_draft(beside)
    try:
        yield own
    finally:
        # What cannot be removed now goes with the next sweep; the error that brought us here is the one to tell.
        shutil.rmtree(own, ignore_errors=True)
        os.close(fd)


def _new_draft(beside: Path) -> tuple[Path, int]:
    while True:
        own = beside / f".{_host()}-{os.getpid()}-{secrets.token_hex(4)}.draft"
        own.mkdir()
        try:
            fd = os.open(own, os.O_RDONLY | system.FOLDER)
        except FileNotFoundError:
            continue  # swept before it was locked
        with contextlib.suppress(OSError):  # a file system without locks: then host and process tell who is at it
            system.lock(fd)
        if _is_at(own, fd):
            return own, fd
        os.close(fd)


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


def drafts(beside: Path) -> list[Path]:
    """The drafts that lie in a folder, of killed writers and of live ones."""
    with os.scandir(beside) as entries:
        return [Path(entry.path) for entry in entries if _DRAFT.fullmatch(entry.name)]


def sweep(beside: Path) -> None:
    """Remove what killed writers left in a folder; what belongs to others who may not be disturbed stays."""
    for draft in drafts(beside):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            fd = os.open(draft, os.O_RDONLY | system.FOLDER | system.NO_LINKS)
            try:
                if _is_dead(draft, fd):
                    shutil.rmtree(draft, ignore_errors=True)
            finally:
                os.close(fd)


def _is_dead(draft: Path, fd: int) -> bool:
    try:
        system.lock(fd)
    except BlockingIOError:
        return False
    except OSError:
        locks = False
    else:
        locks = True
    named = _DRAFT.fullmatch(draft.name)
    assert named is not None
    ours = named["host"] == _host()
    if locks and ours:
        return True
    # Another machine's locks may not reach this one, and some file systems have none at all: then it must be old, too,
    # and where its process could be asked for, gone.
    return time.time() - os.fstat(fd).st_mtime > OLD and not (ours and system.is_running(int(named["pid"])))


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "", socket.gethostname())[:40]


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``: whole, or not at all."""
    with whole(path) as draft:
        draft.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8: whole, or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path``, indented by one space: whole, or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def append_line(path: Path, line: str) -> None:
    """Add ``line`` and a line's end to the file at ``path``; it, and the file's name, are then on the disk.

    A kill or a full disk can cut the line; the next one is written behind a line's end of its own.
    """
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | system.NO_LINKS, 0o666)
    try:
        size = os.fstat(fd).st_size
        cut = size > 0 and system.read_at(fd, 1, size - 1) != b"\n"
        write_all(fd, (("\n" if cut else "") + line + "\n").encode("utf-8"))
        os.fsync(fd)
    finally:
        os.close(fd)
    if size == 0:
        sync(path.parent)


def write_all(fd: int, data: bytes, offset: int | None = None) -> None:
    """Write all of it, at ``offset`` or at the file's own place; the system may take a part at a time."""
    view = memoryview(data)
    while view:
        count = os.write(fd, view) if offset is None else system.write_at(fd, view, offset)
        if count == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        view, offset = view[count:], None if offset is None else offset + count


def open_regular(path: str | bytes | os.PathLike[str]) -> int:
    """A descriptor of a regular file, to be read from and closed; nothing else is waited for or read from.

    Raises:
        OSError: it is not there, may not be read, or is a folder, a pipe, a device.
    """
    fd = os.open(path, os.O_RDONLY | system.NO_WAIT)  # a pipe without a writer would otherwise wait for one
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file", path)
    return fd


def read_regular(path: str | bytes | os.PathLike[str], limit: int | None = None) -> bytes:
    """The bytes of a regular file, as many as it has when it is opened.

    Raises:
        OSError: as of :func:`open_regular`; EFBIG where it has more than ``limit`` bytes.
    """
    with open(open_regular(path), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise OSError(errno.EFBIG, f"{size:,} bytes, the limit is {limit:,}", path)
        parts = []
        while size and (part := file.read(size)):
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def move(source: Path, target: Path) -> None:
    """Rename a file or a folder whose bytes are on the disk, and have the new name there, too."""
    source.replace(target)
    sync(target.parent)


def link(source: Path, target: Path) -> None:
    """Give a file a second name; a copy where the system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync(target)


def make_folder(path: Path) -> None:
    """Have a folder, and those above it, there and on the disk."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def remove(*paths: Path) -> None:
    """Remove files that may be there."""
    for path in paths:
        path.unlink(missing_ok=True)


# -- locks ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path, *, patience: float = 0, busy: PipelineError | None = None) -> Iterator[None]:
    """Hold the lock that is the file at ``path``, which is made where it is not there, and stays.

    The lock is the operating system's: a dead holder's is gone with its process, whatever has its number now.
    ``patience`` is how many seconds another holder is waited for.

    Raises:
        Busy: another process, or another part of this one, holds it; where ``busy`` is given, that instead.
        OSError: the file cannot be opened, or its file system has no locks.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | system.NO_LINKS, 0o666)
    try:
        ends = time.monotonic() + patience
        while not _taken(fd):
            if time.monotonic() >= ends:
                raise busy or Busy(path)
            time.sleep(_POLL)
        yield
    finally:
        os.close(fd)


def _taken(fd: int) -> bool:
    try:
        system.lock(fd)
    except BlockingIOError:
        return False
    except OSError as error:
        why = f"files there cannot be locked ({error.strerror})"
        raise OSError(error.errno, why) from error
    return True


# -- on the disk ------------------------------------------------------------------------------------------------------


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def try_writing(folder: Path) -> None:
    """Find out before long work whether files can be made in ``folder``; nothing is left there.

    Raises:
        OSError: they cannot.
    """
    with draft_in(folder) as draft:
        (draft / "try").touch()


@contextlib.contextmanager
def writing(folder: Path, kind: type[PipelineError] = HeadError, or_else: str = "") -> Iterator[None]:
    """Within it, the system's refusal to write (a full disk, a read-only folder, a quota) is one line.

    Raises:
        PipelineError: of that kind; ``or_else`` is what else can be done about it (by default: another workspace).
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        # A draft is nobody's choice: what is told is the folder that it lies in.
        folder = next((p.parent for p in (folder, *folder.parents) if _DRAFT.fullmatch(p.name)), folder)
        or_else = or_else or f"choose another {option('workspace')}"
        raise kind(f"cannot write in {folder}: {why}; free space, permit writing there, or {or_else}") from error
