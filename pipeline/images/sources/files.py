"""Images that are files: the only place where an id and a folder become a path.

Knows paths and the system's errors. Paths are bytes, so that any name the file system holds comes through whole.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from pipeline.base.files import read_regular
from pipeline.images.decode import MAX_BYTES, ImageFailure
from pipeline.images.listing import shown

# How far two changes of a file can be apart and leave the same time: a tick of the system's clock, and FAT's two
# seconds, in nanoseconds.
FINE_NS, COARSE_NS = 20_000_000, 2_000_000_000


class Files:
    """The images below a folder, by their paths relative to it.

    The folder may be named as bytes or as the system's text for them; without one (empty) ids are paths as they are.
    Ids that lead out of the folder are refused, but for those that ``outside`` is true of.
    """

    def __init__(self, place: str | bytes, outside: Callable[[bytes], bool] | None = None) -> None:
        self._folder, self._outside = os.fsencode(place), outside

    @property
    def place(self) -> str:
        """The folder without links, as the system's text for its bytes."""
        return os.fsdecode(os.path.realpath(self._folder))

    def there(self) -> bool:
        """Whether the folder is there."""
        return os.path.isdir(self._folder)

    def path(self, item: bytes) -> bytes:
        """The file's path, as the exact bytes that the system wants.

        Raises:
            ImageFailure: it is not below the folder.
        """
        if self._folder and leads_out(item) and not (self._outside and self._outside(item)):
            raise ImageFailure("unreadable", f"its path leads out of {shown(self._folder)}, and no manifest says so")
        return os.path.join(self._folder, item)

    def read(self, item: bytes) -> bytes:
        """The file's bytes.

        Raises:
            ImageFailure: the file vanished or cannot be read.
        """
        return read_file(self.path(item))

    def stat(self, item: bytes) -> tuple[int, int]:
        """The file's size in bytes and time of last change in nanoseconds.

        Raises:
            ImageFailure: the file vanished or cannot be looked at.
        """
        try:
            found = os.stat(self.path(item))
        except (OSError, ValueError) as error:
            raise _failure(error) from error
        return found.st_size, found.st_mtime_ns

    def name(self, item: bytes) -> str:
        """The file's path."""
        return os.fsdecode(os.path.join(self._folder, item))


def read_file(path: bytes) -> bytes:
    """The file's bytes.

    Raises:
        ImageFailure: the file vanished, is not a regular one, has more than MAX_BYTES, or cannot be read.
    """
    try:
        return read_regular(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise _failure(error) from error


def _failure(error: OSError | ValueError) -> ImageFailure:
    if isinstance(error, FileNotFoundError):
        return ImageFailure("vanished", "there is no such file")
    if not isinstance(error, OSError):  # a NUL byte in the name
        return ImageFailure("unreadable", f"the file cannot be read: {error}")
    if error.errno == errno.EFBIG:
        return ImageFailure("too_large", str(error.strerror))
    return ImageFailure("unreadable", f"the file cannot be read: {error.strerror}")


def leads_out(item: bytes) -> bool:
    """Whether a path, taken relative to a folder, can lead out of it."""
    return item.startswith(b"/") or (b".." in item and b".." in item.split(b"/"))


def lasting_time(status: os.stat_result, began: int) -> int:
    """A file's time of last change in ns; -1 where a later change could leave the same one.

    ``began`` is the time, in ns, before the file was looked at: what is changed after it gets that time or a later one,
    but for a tick of the system's clock. Times of whole seconds may be of a file system that has no finer ones.
    """
    found = status.st_mtime_ns
    grain = COARSE_NS if found % 1_000_000_000 == 0 else FINE_NS
    return -1 if began - grain <= found <= time.time_ns() + grain else found


def path_of(spec: str) -> bytes:
    """The path that a source's words name; ``~`` is the home folder."""
    return os.fsencode(os.path.expanduser(spec))


def real_name(path: bytes) -> str:
    """The last part of a path without links: ``.`` has one, too."""
    return os.path.basename(os.path.realpath(path)).decode("utf-8", "replace")
