"""Which files under a folder are images, judged by name and file status alone.

Knows names, links and folders. Opens no file: one ``os.scandir`` a folder and one ``stat`` an image, so that 50,000
files take well under a second. Paths are bytes throughout, so that any name the file system holds comes through whole.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.base.errors import DataError
from pipeline.images.formats import format_of, passed_over_as
from pipeline.images.listing import shown
from pipeline.images.sources.files import lasting_time

# Left behind by systems, downloads, editors and thumbnailers; compared in lower case.
_JUNK_NAMES = frozenset(
    b"thumbs.db ehthumbs.db ehthumbs_vista.db desktop.ini icon\r __macosx @eadir #recycle $recycle.bin __pycache__ "
    b"lost+found".split(b" ")
) | {b"system volume information"}
_JUNK_ENDINGS = (b".tmp", b".temp", b".part", b".partial", b".crdownload", b".bak", b".swp", b"~")


class Found(NamedTuple):
    """One image file: path relative to the walk's root, size in bytes, time of last change in ns or -1."""

    path: bytes
    size: int
    mtime_ns: int


@dataclass
class Walk:
    """All that lies under a folder: images, the folders that were entered, and what was left out, by reason.

    ``began`` is when the first of them was looked at, in ns.
    """

    files: list[Found] = field(default_factory=list)
    folders: list[bytes] = field(default_factory=list)
    skipped: dict[str, list[bytes]] = field(default_factory=dict)
    began: int = field(default_factory=time.time_ns)

    def skip(self, reason: str, path: bytes) -> None:
        """Note that ``path`` was left out."""
        self.skipped.setdefault(reason, []).append(path)


def walk(root: bytes) -> Walk:
    """Everything under ``root`` at any depth; links are followed, and each folder is entered once.

    A folder that can be reached in several ways is entered where it lies; of links to it from elsewhere the first by
    name is followed.

    Raises:
        DataError: a folder that cannot be opened.
    """
    result, entered = Walk(), set[tuple[int, int]]()
    # (path to open, path relative to root with a trailing slash); links wait until all that lies here has been entered
    todo, links = [(root, b"")], list[tuple[bytes, bytes]]()
    while todo or links:
        if not todo:
            links.sort(key=lambda link: (link[1].count(b"/"), link[1]), reverse=True)
            todo.append(links.pop())
        folder, relative = todo.pop()
        try:
            status = os.stat(folder)
            identity = (status.st_dev, status.st_ino)
            if identity in entered:
                result.skip("link to a folder that is listed already", relative)
                continue
            entered.add(identity)
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_folder(entry, relative, result):
                        (links if entry.is_symlink() else todo).append((entry.path, relative + entry.name + b"/"))
        except OSError as error:
            raise DataError(
                f"folder {shown(folder)} cannot be opened ({error.strerror}): make it readable or move it away"
            ) from error
        if relative:
            result.folders.append(relative[:-1])
    return result


def _is_folder(entry: os.DirEntry[bytes], relative: bytes, result: Walk) -> bool:
    """True for a folder to enter; a file is recorded in ``result`` as an image or as skipped."""
    name, path = entry.name, relative + entry.name
    lower = name.lower()
    if name.startswith(b"."):
        result.skip("hidden", path)
        return False
    if lower in _JUNK_NAMES or lower.endswith(_JUNK_ENDINGS):
        result.skip("junk", path)
        return False
    try:
        if entry.is_dir():
            return True
        passed = passed_over_as(name)
        if passed is not None or format_of(name) is None:
            result.skip(passed or "not an image", path)
            return False
        status = entry.stat()
    except OSError:  # a link to nothing or to itself, or a file that has just gone
        result.skip("broken link", path)
        return False
    if stat.S_ISREG(status.st_mode):
        result.files.append(Found(path, status.st_size, lasting_time(status, result.began)))
    else:
        result.skip("not a regular file", path)
    return False
