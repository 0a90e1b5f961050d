"""Images by their ids -> pixels in threads, a bounded number ahead of the one who consumes them.

Knows reading, decoding and resizing, and how long each took. Knows nothing of batches. Threads, because Pillow lets go
of the interpreter while it decodes and resamples: nothing is copied between processes and no shared memory can run out.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ConfigError
from pipeline.images.decode import MAX_PIXELS, MAX_SIDE, Found, ImageFailure, examine
from pipeline.images.digests import NO_DIGEST
from pipeline.images.listing import Images
from pipeline.images.resize import Geometry, to_pixels
from pipeline.images.room import ALONE, BIG_BYTES, BIG_PIXELS, alone_if


@dataclass(frozen=True, eq=False)
class Loaded:
    """One image: ``pixels`` (3, crop, crop) uint8 and what was ``found`` in the file, or None and a ``failure``.

    The pixels are a view of the place that they were loaded into, where one was given.

    ``digest`` is the SHA-256 of the bytes that were read (zeros when none could be); times in seconds.
    """

    index: int
    pixels: NDArray[np.uint8] | None
    digest: bytes
    found: Found | None
    failure: ImageFailure | None
    read_s: float
    decode_s: float
    transform_s: float


@dataclass(frozen=True, eq=False)
class Limits:
    """How large an image may be: of ``max_pixels``, or of any number where it was let in before.

    ``known`` (N, 32) uint8 are the digests of images by their index: the same bytes were decoded once.
    """

    max_pixels: int = MAX_PIXELS
    known: NDArray[np.uint8] | None = None

    def of(self, index: int, digest: bytes) -> int:
        """The most pixels that the image may have."""
        again = self.known is not None and self.known[index].tobytes() == digest
        return MAX_SIDE * MAX_SIDE if again else self.max_pixels


LIMITS = Limits()

AHEAD_BYTES = 64 << 20  # of pixels that wait for the trunk
MOST_AHEAD = 1024  # images: more of the small ones bring nothing


def look_ahead(geometry: Geometry, batch: int) -> int:
    """How many images to have ready or at work before they are asked for, where ``batch`` are taken at once.

    As many as AHEAD_BYTES hold, so that a few large files in a row do not keep the trunk waiting, and two batches at
    least. Whole images are in memory only where a thread is at work on one.
    """
    return max(2 * batch, min(MOST_AHEAD, AHEAD_BYTES // (3 * geometry.crop**2)))


class Loader:
    """Loads images in ``workers`` threads: in order, at most ``ahead`` before they are asked for, or one by one."""

    def __init__(
        self, images: Images, geometry: Geometry, *, workers: int, ahead: int = 1, limits: Limits = LIMITS
    ) -> None:
        if workers < 1 or ahead < 1:
            raise ConfigError(f"a loader needs at least 1 worker and 1 image ahead, not {workers} and {ahead}")
        self._images, self._geometry, self._limits = images, geometry, limits
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="loader")

    def load(self, jobs: Iterable[tuple[int, bytes]]) -> Iterator[Loaded]:
        """One :class:`Loaded` for each ``(index, id)``, in order.

        ``jobs`` may be endless: it is read only as far as the look-ahead. Closing the iterator cancels what has not
        been started.
        """
        waiting: deque[Future[Loaded]] = deque()
        try:
            for index, item in jobs:
                waiting.append(self._pool.submit(load_one, index, item, self._images, self._geometry, self._limits))
                if len(waiting) >= self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def begin(self, index: int, item: bytes, place: NDArray[np.uint8]) -> Future[Loaded]:
        """Have a thread load one image into its ``place`` (crop, crop, 3) uint8; one that fails may leave a part of it.

        How many are under way is the caller's business.
        """
        return self._pool.submit(load_one, index, item, self._images, self._geometry, self._limits, place)

    def close(self) -> None:
        """Stop the threads; what has not been started is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Loader:
        """The loader itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def load_one(
    index: int,
    item: bytes,
    images: Images,
    geometry: Geometry,
    limits: Limits = LIMITS,
    place: NDArray[np.uint8] | None = None,
) -> Loaded:
    """Read, hash, decode and resize one image, into its ``place`` if it has one; what is wrong is told, not raised.

    Where memory does not do, it is tried once more when no other big image is at work. Without a digest, an image that
    failed for that is tried again by the next job: the machine was too small, and not the image at fault.
    """
    try:
        return _load_one(index, item, images, geometry, limits, place)
    except MemoryError:
        pass  # outside: the error holds on to the image through its frames
    with ALONE:
        try:
            return _load_one(index, item, images, geometry, limits, place)
        except MemoryError:
            failure = ImageFailure("too_large", "there is not enough memory to decode it")
            return Loaded(index, None, NO_DIGEST, None, failure, 0.0, 0.0, 0.0)


def _load_one(
    index: int, item: bytes, images: Images, geometry: Geometry, limits: Limits, place: NDArray[np.uint8] | None
) -> Loaded:
    digest, pixels, found, failure = NO_DIGEST, None, None, None
    marks = [time.perf_counter()] * 4  # start, read, decoded, transformed
    try:
        with ExitStack() as room:
            room.enter_context(alone_if(images.stat(item)[0] > BIG_BYTES))
            blob = images.read(item)
            digest = hashlib.sha256(blob).digest()
            marks[1:] = [time.perf_counter()] * 3
            most = limits.of(index, digest)
            image, found = examine(
                blob, lambda pixels: room.enter_context(alone_if(pixels > BIG_PIXELS)), most, geometry.side
            )
            marks[2:] = [time.perf_counter()] * 2
            pixels = to_pixels(image, geometry, digest, found.cover, place)
            marks[3] = time.perf_counter()
            del blob, image  # before the next big one may come
    except ImageFailure as error:
        # a new one: the one that was raised holds on to the image through its frames
        failure = ImageFailure(error.kind, error.reason)
    start, read, decoded, transformed = marks
    return Loaded(index, pixels, digest, found, failure, read - start, decoded - read, transformed - decoded)
