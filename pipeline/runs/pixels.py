"""A cache's rows as images again: the same images with the same bytes, decoded as they were for the cache."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import DataError
from pipeline.images import Geometry, ImageFailure, Images, Limits, Loader, digest_many, look_ahead
from pipeline.images.loader import load_one
from pipeline.runs.recipe import images_from
from pipeline.store import Cache


def pixel_batches(
    cache: Cache, rows: Sequence[int], *, geometry: Geometry, size: int, workers: int
) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    """The images of cache rows, in the order given, as batches ``(rows, (m, 3, S, S) uint8)``, decoded ahead.

    Raises:
        DataError: an image is gone or is not the one that the row was made from.
    """
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    return pixels_of(cache, batches, geometry=geometry, workers=workers)


def pixels_of(
    cache: Cache, batches: Sequence[Sequence[int]], *, geometry: Geometry, workers: int
) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    """As :func:`pixel_batches`, for batches of rows as they are given."""
    ids, digests, images = cache.ids, cache.digests, images_of(cache)
    ahead = look_ahead(geometry, max((len(batch) for batch in batches), default=1))
    with Loader(images, geometry, workers=workers, ahead=ahead, limits=Limits(known=digests)) as loader:
        loaded = loader.load((row, ids[row]) for batch in batches for row in batch)
        for batch in batches:
            pixels = []
            for _ in batch:
                item = next(loaded)
                if item.failure is not None or item.digest != digests[item.index].tobytes():
                    raise changed_image(images, ids[item.index], item.failure)
                assert item.pixels is not None
                pixels.append(item.pixels)
            yield list(batch), np.stack(pixels)


def changed_image(images: Images, item: bytes, failure: ImageFailure | None = None) -> DataError:
    """The error for an image that is not the one that its row was made from; ``failure`` is why it cannot be read."""
    name = f"{images.place}/{os.fsdecode(item)!a}"
    if failure is not None:
        return DataError(f"{name}: {failure.reason}: the images must be where the cache found them, as they were")
    return DataError(f"{name} has changed since its features were made: run `pipeline extract` again, and train again")


def require_images(cache: Cache, rows: NDArray[np.int64], *, workers: int) -> None:
    """Find out before long work that the images of cache rows are there and unchanged.

    Of an image whose size and time are those that the cache recorded nothing is read; others are hashed.

    Raises:
        DataError: one is gone or has changed.
    """
    ids, digests, (sizes, times), images = cache.ids, cache.digests, cache.stats, images_of(cache)
    touched = []
    for row in rows.tolist():
        try:
            found = images.stat(ids[row])
        except ImageFailure:
            touched.append(row)  # reading it says what is wrong with it
            continue
        if found != (sizes[row], times[row]):
            touched.append(row)
    same = (digest_many(images, [ids[row] for row in touched], workers=workers) == digests[touched]).all(axis=1)
    for row in (touched[i] for i in np.flatnonzero(~same)):
        raise changed_image(images, ids[row], load_one(row, ids[row], images, Geometry(1, 1)).failure)


def labelled(cache: Cache, split: str) -> NDArray[np.int64]:
    """Indices (n,) int64 of the labelled good rows of a split, ascending."""
    rows = cache.rows(split)
    return rows[cache.labels[rows] >= 0]


def images_of(cache: Cache) -> Images:
    """The images that the cache was made from.

    Raises:
        DataError: the place where they lay is not there any more.
        CacheError: the cache does not say where it was.
    """
    images = images_from(cache)
    if not images.there():
        raise DataError(
            f"the images of {cache.path.name} are not at {images.place} any more: run `pipeline extract` on their new "
            "place"
        )
    return images
