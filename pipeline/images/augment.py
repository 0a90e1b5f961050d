"""Augmented images for training end to end: drawn from a seed, the epoch and the image's own bytes, and nothing else.

So an interrupted training, and any number of processes, see the very images that one uninterrupted process sees. The
crop is torchvision's ``RandomResizedCrop``; the operations of RandAugment (Cubuk et al. 2020, arXiv 1909.13719) and
their strengths are those of torchvision's ``RandAugment`` with its defaults.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from pipeline.images.cover import Cover
from pipeline.images.views import random_part

SCALE = (0.08, 1.0)  # share of the image's area: torchvision's default, that its weights were trained with
OPERATIONS = 2  # of RandAugment, on each image
STRENGTH = 9 / 30  # of each operation's range: magnitude 9 of bins 0 ... 30


@dataclass(frozen=True)
class Augmentation:
    """What epoch ``epoch`` does to an image: ``kind`` is flip, crop (random resized crop) or weights (crop and flip).

    ``randaugment`` puts two random operations on what comes out.
    """

    kind: str
    seed: int
    epoch: int
    randaugment: bool = False

    def generator(self, digest: bytes) -> np.random.Generator:
        """The image's own random numbers in this epoch; ``digest`` is its file's SHA-256."""
        seed = hashlib.sha256(f"augment {self.seed} {self.epoch} ".encode() + digest).digest()
        return np.random.default_rng(int.from_bytes(seed[:16], "little"))

    @property
    def crops(self) -> bool:
        """Whether a part of the image is seen instead of its centre."""
        return self.kind in ("crop", "weights")


def random_crop(
    image: Image.Image, crop: int, resample: Image.Resampling, rng: np.random.Generator, cover: Cover | None = None
) -> Image.Image:
    """(crop, crop) pixels: a random part of the image, resized."""
    return image.resize((crop, crop), resample, box=random_part(image, rng, SCALE, cover))


def finish(square: Image.Image, augmentation: Augmentation, rng: np.random.Generator) -> Image.Image:
    """What comes after the crop: perhaps mirrored, perhaps two operations of RandAugment."""
    if augmentation.kind in ("flip", "weights") and rng.random() < 0.5:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augmentation.randaugment:
        names = sorted(RAND_OPERATIONS)
        for _ in range(OPERATIONS):
            operation = RAND_OPERATIONS[names[int(rng.integers(len(names)))]]
            square = operation(square, STRENGTH if rng.random() < 0.5 else -STRENGTH)
    return square


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=(0, 0, 0))


def _shear_x(image: Image.Image, share: float) -> Image.Image:
    return _affine(image, (1, 0.3 * share, 0, 0, 1, 0))


def _shear_y(image: Image.Image, share: float) -> Image.Image:
    return _affine(image, (1, 0, 0, 0.3 * share, 1, 0))


def _translate_x(image: Image.Image, share: float) -> Image.Image:
    return _affine(image, (1, 0, -int(150 / 331 * image.width * share), 0, 1, 0))


def _translate_y(image: Image.Image, share: float) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, -int(150 / 331 * image.height * share)))


def _rotate(image: Image.Image, share: float) -> Image.Image:
    return image.rotate(30 * share, Image.Resampling.NEAREST, fillcolor=(0, 0, 0))


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Callable[[Image.Image, float], Image.Image]:
    def operation(image: Image.Image, share: float) -> Image.Image:
        return kind(image).enhance(1 + 0.9 * share)

    return operation


def _posterize(image: Image.Image, share: float) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(4 * abs(share)))


def _solarize(image: Image.Image, share: float) -> Image.Image:
    return ImageOps.solarize(image, math.ceil(255 * (1 - abs(share))))


# name -> what it does to an image with a share (negative: the other way, where there is one) of its full strength
RAND_OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "Identity": lambda image, _: image,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Rotate": _rotate,
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
}
