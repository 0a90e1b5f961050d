"""Small images of a cache's rows, as the trunk saw them: the same part of the image, decoded by the same decoder.

Knows which rows; an image that is gone, or is not the one that the row was made from, has none, and is counted.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.base.machine import cores
from pipeline.base.workspace import Workspace
from pipeline.images import Geometry, Limits, Loader, look_ahead
from pipeline.runs.recipe import images_from, provenance_of
from pipeline.store import Cache

FEW = 200  # images that may be large
LARGE, SMALL = 192, 96  # pixels of a side
QUALITY = 80  # of a JPEG


@dataclass(frozen=True)
class Album:
    """JPEG files of rows, how many were asked for, how many of them are ``gone``, and where they were looked for."""

    jpegs: dict[int, bytes]
    asked: int
    gone: int
    place: str


def album_of(cache: Cache | None, rows: Iterable[int], desk: Workspace) -> Album:
    """The images of the rows, as far as they are to be had."""
    wanted = sorted(set(rows))
    if cache is None:
        return Album({}, len(wanted), 0, "")
    images = images_from(cache)
    if not images.there():
        return Album({}, len(wanted), len(wanted), images.place)
    geometry = _geometry(cache, LARGE if len(wanted) <= FEW else SMALL)
    ids, digests, found = cache.ids, cache.digests, {}
    ahead = look_ahead(geometry, 1)
    with (
        Loader(images, geometry, workers=cores(), ahead=ahead, limits=Limits(known=digests)) as loader,
        desk.watch.track("images", len(wanted)) as tracker,
    ):
        for loaded in loader.load((row, ids[row]) for row in wanted):
            if loaded.pixels is not None and loaded.digest == digests[loaded.index].tobytes():
                found[loaded.index] = _jpeg(loaded.pixels)
            tracker.advance()
    return Album(found, len(wanted), len(wanted) - len(found), images.place)


def _geometry(cache: Cache, side: int) -> Geometry:
    """The part of an image that the trunk saw, ``side`` pixels wide."""
    seen = provenance_of(cache)["transform"]
    return Geometry(max(side, round(side * seen.resize / seen.crop)), side, seen.interpolation, scaled=True)


def _jpeg(pixels: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
