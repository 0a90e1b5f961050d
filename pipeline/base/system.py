"""Calls that not every system has, each with another way: locks, reading and writing at a place, room on a disk.

Linux has all of them; macOS has no ``posix_fallocate`` and ``fdatasync``, and Windows hardly any (there this program is
for WSL, which is Linux). Whether another way is right is shown by taking the call away. Knows descriptors alone.
"""

from __future__ import annotations

import errno
import os
import threading
from types import ModuleType
from typing import Any

fcntl: ModuleType | None
msvcrt: Any
try:
    import fcntl
except ImportError:
    fcntl = None
try:
    import msvcrt
except ImportError:
    msvcrt = None

# Of os.open; 0 where a system has no such flag.
FOLDER: int = getattr(os, "O_DIRECTORY", 0)
NO_LINKS: int = getattr(os, "O_NOFOLLOW", 0)
NO_WAIT: int = getattr(os, "O_NONBLOCK", 0)

_moving = threading.Lock()  # of a descriptor's own place, where that has to be moved


def lock(fd: int) -> None:
    """Take the lock of an open file for this process; it goes with the descriptor.

    Raises:
        BlockingIOError: another process, or another descriptor, holds it.
        OSError: its file system, or the system, has no locks.
    """
    if fcntl is not None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif msvcrt is not None:
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EDEADLK):
                raise BlockingIOError(error.errno, error.strerror) from error
            raise
    else:
        raise OSError(errno.ENOSYS, "this system has no locks")


def read_at(fd: int, length: int, offset: int) -> bytes:
    """Up to ``length`` bytes of an open file from ``offset`` on, by any number of threads at once."""
    if hasattr(os, "pread"):
        return os.pread(fd, length, offset)
    with _moving:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, length)


def write_at(fd: int, data: memoryview, offset: int) -> int:
    """Write to an open file at ``offset``, by any number of threads at once; how many bytes the system took."""
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with _moving:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


def sync_data(fd: int) -> None:
    """Have an open file's bytes on the disk; where the system can, without its times."""
    getattr(os, "fdatasync", os.fsync)(fd)


def reserve(fd: int, offset: int, length: int) -> None:
    """Have room on the disk for ``length`` bytes of an open file, so that a full one is found before long work.

    Raises:
        OSError: there is no such room.
    """
    if not hasattr(os, "posix_fallocate"):  # ask how much is free, without claiming it
        if hasattr(os, "fstatvfs"):
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


def is_running(pid: int) -> bool:
    """Whether a process of this machine is there; yes where that cannot be asked."""
    if os.name == "nt":  # there the question would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True
