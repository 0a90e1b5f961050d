"""An image's identity: the SHA-256 of its file's bytes.

Knows bytes on disk, nothing of what they mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 32
NO_DIGEST = bytes(DIGEST_BYTES)
"""Stands for a file that could not be read."""

_PIECE = 1 << 20  # bytes read at a time
_RUN = 32  # files a task, so that small files do not cost more in hand-over than in work


def digest_file(path: bytes) -> bytes:
    """SHA-256 of the file's bytes (32 bytes).

    Raises:
        OSError: the file cannot be read.
    """
    state = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            state.update(piece)
    return state.digest()


def digest_many(
    paths: Sequence[bytes], *, workers: int, progress: Callable[[int], None] | None = None
) -> NDArray[np.uint8]:
    """(N, 32) uint8: the digest of each file, in order; a row of zeros where the file vanished or cannot be read.

    ``progress`` is called from this thread with the number of files that have been finished since the last call.
    """
    digests = np.zeros((len(paths), DIGEST_BYTES), np.uint8)

    def run(start: int) -> int:
        stop = min(start + _RUN, len(paths))
        for i in range(start, stop):
            try:
                digests[i] = np.frombuffer(digest_file(paths[i]), np.uint8)
            except OSError:
                digests[i] = 0  # documented: the loader will say what is wrong with this file
        return stop - start

    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="digest") as pool:
        try:
            for n in pool.map(run, range(0, len(paths), _RUN)):
                if progress is not None:
                    progress(n)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return digests
