"""Images that are in memory, PIL's and arrays of pixels: what the same pixels in a file become.

Knows pixels, colour modes and orientation as ``decode`` does; nothing of files.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from PIL import Image

from pipeline.base.errors import DataError
from pipeline.images.colour import to_rgb
from pipeline.images.decode import MAX_PIXELS, Found, ImageFailure
from pipeline.images.digests import NO_DIGEST
from pipeline.images.loader import Loaded
from pipeline.images.orientation import upright
from pipeline.images.resize import Geometry, to_pixels


def picture_of(value: Any, name: str) -> Image.Image:
    """A PIL image as it is; an array (H, W), (H, W, 3) or (H, W, 4) uint8 as the one that it is.

    Raises:
        DataError: neither, or an array of another shape or type; ``name`` says which.
    """
    if isinstance(value, Image.Image):
        return value
    legal = "give (H, W) or (H, W, 3) uint8, RGB, 0 to 255; several as a list"
    if not isinstance(value, np.ndarray):
        raise DataError(f"{name} is a {type(value).__name__}: give a path, a PIL image or an array, or a list of them")
    if value.dtype != np.uint8 or not value.size or not (value.ndim == 2 or value.shape[2:] in ((3,), (4,))):
        raise DataError(f"{name} is an array {value.shape} {value.dtype}: {legal}")
    return Image.fromarray(np.ascontiguousarray(value))


def load_picture(index: int, picture: Image.Image, geometry: Geometry) -> Loaded:
    """One image made ready for a network; what is wrong with it is told, not raised."""
    began = time.perf_counter()
    try:
        if picture.width * picture.height > MAX_PIXELS:
            raise ImageFailure("too_large", f"{picture.width} x {picture.height} pixels, the limit is {MAX_PIXELS:,}")
        picture.load()  # one that was opened from a file and not read yet
        seen = upright(to_rgb(picture), picture)
        decoded = time.perf_counter()
        pixels = to_pixels(seen, geometry)
    except ImageFailure as refused:
        return Loaded(index, None, NO_DIGEST, None, ImageFailure(refused.kind, refused.reason), 0.0, 0.0, 0.0)
    except Exception as error:  # whatever a mode or a file that was not read yet makes Pillow raise
        words = " ".join(str(error).split()) or type(error).__name__
        failure = ImageFailure("unreadable", f"its pixels cannot be had ({words})")
        return Loaded(index, None, NO_DIGEST, None, failure, 0.0, 0.0, 0.0)
    took = time.perf_counter() - decoded
    return Loaded(index, pixels, NO_DIGEST, Found(seen.size, picture.mode), None, 0.0, decoded - began, took)
