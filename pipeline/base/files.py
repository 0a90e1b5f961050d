"""Files that are whole or absent, after a kill and after a power cut alike: the one place that knows how.

The order: a hidden name of one's own beside the target, write, flush, have the file's bytes on the disk, rename, have
the folder's names on the disk. What a killed writer leaves is hidden, ends in ``.draft`` and is never read. Knows paths
and bytes, nothing of what they mean.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.base.errors import HeadError, PipelineError


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A hidden path of our own beside ``path``, to be written; it becomes ``path`` only if the block ends well.

    Two writers of one path do not disturb each other: the last to end wins.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
    try:
        yield draft
        sync(draft)
        move(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


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


def append_text(path: Path, text: str) -> None:
    """Add ``text`` to the file at ``path``; it is on the disk when this returns, and a kill cuts its end at most."""
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def move(source: Path, target: Path) -> None:
    """Rename a file or a folder whose bytes are on the disk, and have the new name there, too."""
    source.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_data(fd: int) -> None:
    """Have an open file's bytes on the disk; where the system can, without its times."""
    getattr(os, "fdatasync", os.fsync)(fd)  # macOS has fsync alone


def remove_drafts(path: Path) -> None:
    """Remove what killed writers of ``path`` left; to be called where a lock keeps every other writer out."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.draft")
    for left in path.parent.iterdir():
        if ours.fullmatch(left.name):
            left.unlink(missing_ok=True)


def reserve(fd: int, offset: int, length: int) -> None:
    """Have room on the disk for ``length`` bytes of an open file, so that a full one is found before long work.

    Raises:
        OSError: there is no such room.
    """
    if not hasattr(os, "posix_fallocate"):  # macOS: ask how much is free, without claiming it
        about = os.fstatvfs(fd)
        if about.f_bavail * about.f_frsize < length:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return
    try:
        os.posix_fallocate(fd, offset, length)
    except OSError as error:
        # File systems without reservation say so; the bytes then claim their room as they are written.
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def try_writing(folder: Path) -> None:
    """Find out before long work whether files can be made in ``folder``; nothing is left there.

    Raises:
        OSError: they cannot.
    """
    with tempfile.TemporaryFile(dir=folder):
        pass


@contextlib.contextmanager
def writing(folder: Path, kind: type[PipelineError] = HeadError, or_else: str = "choose --workspace") -> Iterator[None]:
    """Within it, the system's refusal to write (a full disk, a read-only folder, a quota) is one line.

    Raises:
        PipelineError: of that kind; ``or_else`` is what else can be done about it.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise kind(f"cannot write in {folder}: {why}; free space, permit writing there, or {or_else}") from error
