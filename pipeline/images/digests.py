"""An image's identity: the SHA-256 of its bytes.

Knows bytes, nothing of what they mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pipeline.images.decode import ImageFailure
from pipeline.images.listing import Images
from pipeline.images.room import BIG_BYTES, alone_if

DIGEST_BYTES = 32
NO_DIGEST = bytes(DIGEST_BYTES)
"""Stands for an image that could not be read."""

_RUN = 32  # images a task, so that small files do not cost more in hand-over than in work


def digest_many(
    images: Images, ids: Sequence[bytes], *, workers: int, progress: Callable[[int], None] | None = None
) -> NDArray[np.uint8]:
    """(N, 32) uint8: the digest of each image, in order; a row of zeros where it vanished or cannot be read.

    ``progress`` is called from this thread with the number of images that have been finished since the last call.
    """
    digests = np.zeros((len(ids), DIGEST_BYTES), np.uint8)

    def run(start: int) -> int:
        stop = min(start + _RUN, len(ids))
        for i in range(start, stop):
            try:
                with alone_if(images.stat(ids[i])[0] > BIG_BYTES):
                    digests[i] = np.frombuffer(hashlib.sha256(images.read(ids[i])).digest(), np.uint8)
            except ImageFailure:
                digests[i] = 0  # documented: the loader will say what is wrong with this image
        return stop - start

    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="digest") as pool:
        try:
            for n in pool.map(run, range(0, len(ids), _RUN)):
                if progress is not None:
                    progress(n)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return digests
