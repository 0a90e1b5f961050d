"""An RGB image -> the square of pixels that a network wants, bit for bit as torchvision's preset gives it.

That is of images that were decoded whole; of those that were shrunk meanwhile it is the same square but for rounding.

Knows resizing and cropping. Normalisation is the trunk's business: pixels stay uint8 here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.base.errors import ConfigError
from pipeline.images.augment import SCALE as CROP_SCALE
from pipeline.images.augment import Augmentation, finish, random_crop
from pipeline.images.cover import Cover
from pipeline.images.decode import MAX_PIXELS, ImageFailure
from pipeline.images.views import SCALE as VIEW_SCALE
from pipeline.images.views import View, smallest_side, view_pixels

# name -> (Pillow's filter, half its width in source pixels when nothing is shrunk)
_FILTERS = {
    "bilinear": (Image.Resampling.BILINEAR, 1.0),
    "bicubic": (Image.Resampling.BICUBIC, 2.0),
}

# Since version 13 Pillow takes the other pass first for tall images (height over width from about 2 on), and the
# rounding between the passes makes that visible. A tall image is therefore left to Pillow whole.
_TALL = 1.5


@dataclass(frozen=True)
class Geometry:
    """Short side resized to ``resize``, then the centre ``crop`` x ``crop``; ``interpolation`` bilinear or bicubic."""

    resize: int
    crop: int
    interpolation: str = "bilinear"
    view: View | None = None  # an augmented view instead of the centre
    augmentation: Augmentation | None = None  # what an epoch of training does to the image
    scaled: bool = False  # what can be shrunk while it is decoded may be

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: a size below 1, or an unknown interpolation.
        """
        if self.resize < 1 or self.crop < 1:
            raise ConfigError(f"image sizes must be at least 1, not resize {self.resize} and crop {self.crop}")
        if self.interpolation not in _FILTERS:
            raise ConfigError(f"interpolation {self.interpolation!r} is not known: choose from {', '.join(_FILTERS)}")

    @property
    def side(self) -> int | None:
        """What the short side of an image becomes; None where the whole image must be decoded.

        Of a part that is drawn at random, what the short side would become with the smallest part.
        """
        if not self.scaled:
            return None
        if self.view is not None:
            return math.ceil(self.crop / smallest_side(VIEW_SCALE))
        if self.augmentation is not None and self.augmentation.crops:
            return math.ceil(self.crop / smallest_side(CROP_SCALE))
        return self.resize


def to_pixels(
    image: Image.Image,
    geometry: Geometry,
    digest: bytes = b"",
    cover: Cover | None = None,
    place: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """(3, crop, crop) uint8: what torchvision's ``ImageClassification`` preset has before it converts to float.

    Only what the crop shows is computed, where that gives the same bits. Pillow makes each row narrow or wide first,
    rounds to 8 bits, then does the same with columns. So rows that no output row needs can be left out of the first
    pass, and columns outside the crop out of the second; the coefficients stay those of the whole image. ``digest`` is
    the file's, which decides an augmented view and what an augmentation draws. ``cover`` belongs to an image that was
    shrunk while it was decoded: sizes and parts are then those of the whole image. They are written into ``place``
    (crop, crop, 3) uint8 where that is given, and what is returned is a view of it.

    Raises:
        ImageFailure: so narrow that it would be larger than MAX_PIXELS once its short side is resized.
    """
    if geometry.view is not None:
        seen = view_pixels(image, geometry.crop, _FILTERS[geometry.interpolation][0], geometry.view, digest, cover)
        return seen if place is None else _put(seen.transpose(1, 2, 0), place)
    if geometry.augmentation is None:
        square = _centre(image, geometry, cover)
    else:
        rng = geometry.augmentation.generator(digest)
        if geometry.augmentation.crops:
            square = random_crop(image, geometry.crop, _FILTERS[geometry.interpolation][0], rng, cover)
        else:
            square = _centre(image, geometry, cover)
        square = finish(square, geometry.augmentation, rng)
    whole = np.asarray(square)
    return np.ascontiguousarray(whole.transpose(2, 0, 1)) if place is None else _put(whole, place)


def _put(square: NDArray[np.uint8], place: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The square (crop, crop, 3) in its place, as a view (3, crop, crop)."""
    place[...] = square
    return place.transpose(2, 0, 1)


def _centre(image: Image.Image, geometry: Geometry, cover: Cover | None) -> Image.Image:
    """The resized image's centre, (crop, crop) pixels."""
    width, height = image.size if cover is None else cover.size
    new_width, new_height = _resized(width, height, geometry.resize)
    if (
        new_width * new_height > MAX_PIXELS
    ):  # a hair of 3 x 2,000,000 pixels passes the decoder's limit and fills memory here
        raise ImageFailure("too_large", f"{width} x {height} pixels become {new_width} x {new_height} when resized")
    left = _crop_start(new_width, geometry.crop)
    top = _crop_start(new_height, geometry.crop)
    unscaled = (new_width, new_height) == (width, height)
    if cover is not None or left < 0 or top < 0 or unscaled or height > _TALL * width:
        resample, box = _FILTERS[geometry.interpolation][0], None if cover is None else cover.box
        whole = image if unscaled else image.resize((new_width, new_height), resample, box=box)
        # Pillow fills what lies outside the image with black, as torchvision's padding does
        return whole.crop((left, top, left + geometry.crop, top + geometry.crop))
    return _resize_crop(image, (new_width, new_height), left, top, geometry)


def _resized(width: int, height: int, short_side: int) -> tuple[int, int]:
    """torchvision's rule (``_compute_resized_output_size``): the long side is cut down to a whole pixel."""
    if width <= height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def _crop_start(size: int, crop: int) -> int:
    """First pixel of the centre crop, negative where black is added (torchvision's ``center_crop``)."""
    return round((size - crop) / 2) if size >= crop else -((crop - size) // 2)


def _resize_crop(image: Image.Image, new: tuple[int, int], left: int, top: int, geometry: Geometry) -> Image.Image:
    resample, support = _FILTERS[geometry.interpolation]
    (width, height), crop = image.size, geometry.crop
    x0, x1, columns, left = _window(width, new[0], left, crop)
    y0, y1, rows, top = _window(height, new[1], top, crop)
    scale = height / new[1]
    reach = support * max(scale, 1.0) + 1
    first = max(0, math.floor(y0 + top * scale - reach))
    last = min(height, math.ceil(y0 + (top + crop) * scale + reach))
    strip = image if (first, last) == (0, height) else image.crop((0, first, width, last))
    narrow = strip.resize((columns, last - first), resample, box=(x0, 0, x1, last - first))
    # Back to the whole height (black where no row is needed): the second pass then has the whole image's coefficients.
    full = narrow.crop((left, -first, left + crop, height - first))
    tall = full.resize((crop, rows), resample, box=(0, y0, crop, y1))
    return tall.crop((0, top, crop, top + crop))


def _window(size: int, new: int, start: int, crop: int) -> tuple[float, float, int, int]:
    """(box start, box end, resized length, start of the crop in it) of the smallest exact resampling of one side.

    Pillow takes the box in float32. Where the crop's ends fall on float32 numbers (a short side resized to 256: always)
    the crop alone gives the same coefficients; elsewhere the whole side is resampled.
    """
    low, high = start * size / new, (start + crop) * size / new
    exact = (
        low * new == start * size
        and high * new == (start + crop) * size
        and float(np.float32(low)) == low
        and float(np.float32(high)) == high
        and (high - low) / crop == size / new
    )
    return (low, high, crop, 0) if exact else (0.0, float(size), new, start)
