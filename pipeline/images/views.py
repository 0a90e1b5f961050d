"""Augmented views of an image: a random part of it, perhaps mirrored, the same for the same image and seed every time.

Views are what makes augmentation and caching go together: their features are computed once, like any others.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.images.cover import Box, Cover

SCALE = (0.35, 1.0)  # share of the image's area
RATIO = (3 / 4, 4 / 3)  # width over height
TRIES = 10


@dataclass(frozen=True)
class View:
    """View ``number`` (1, 2, ...) of the views that ``seed`` gives."""

    number: int
    seed: int

    def provenance(self) -> dict[str, Any]:
        """Everything that decides a view's pixels, as JSON values for the cache's key."""
        return {"number": self.number, "seed": self.seed, "scale": list(SCALE), "ratio": list(RATIO), "flip": 0.5}


def view_pixels(
    image: Image.Image, crop: int, resample: Image.Resampling, view: View, digest: bytes, cover: Cover | None = None
) -> NDArray[np.uint8]:
    """(3, crop, crop) uint8: a random resized crop and flip, decided by the view and the image's bytes alone.

    The box is drawn as torchvision's ``RandomResizedCrop`` does (area uniform in SCALE, log ratio in RATIO).
    """
    seed = hashlib.sha256(f"{view.seed} {view.number} ".encode() + digest).digest()
    rng = np.random.default_rng(int.from_bytes(seed[:16], "little"))
    square = image.resize((crop, crop), resample, box=random_part(image, rng, SCALE, cover))
    if rng.random() < 0.5:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def random_part(image: Image.Image, rng: np.random.Generator, scale: tuple[float, float], cover: Cover | None) -> Box:
    """A random part of an image, or where one that was shrunk shows a random part of the whole."""
    if cover is None:
        return random_box(image.width, image.height, rng, scale)
    return cover.within(random_box(*cover.size, rng, scale))


def smallest_side(scale: tuple[float, float]) -> float:
    """Least width or height of a random part, as a share of a square image's."""
    return math.sqrt(scale[0] * min(RATIO[0], 1 / RATIO[1]))


def random_box(
    width: int, height: int, rng: np.random.Generator, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random part of an image; ``scale`` bounds its share of the area."""
    for _ in range(TRIES):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    # A very long image: the largest box of a legal ratio, from the middle (torchvision's fallback).
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
