"""The images that the benchmarks work on, made from a seed.

Knows Pillow and numpy. A photograph here has what a real one has for a decoder: structure at every scale and the noise
of a sensor, so that a 0.2-megapixel JPEG of quality 85 takes 30 to 60 KB.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = (512, 400)  # 0.2 megapixels
QUALITY = 85
DRAWN, FEWEST = 200_000_000, 16  # pixels, and photographs: of 12 megapixels one takes a second to draw
SENSOR_NOISE = 3.0  # standard deviation, in grey levels
_OCTAVES = ((4, 46.0), (12, 26.0), (32, 15.0), (80, 9.0), (160, 6.0))  # cells across, strength in grey levels


def make_photographs(folder: Path, count: int, *, size: tuple[int, int] = SIZE, classes: int = 2) -> None:
    """``count`` JPEG photographs in class folders, no two of the same bytes.

    As many are drawn as DRAWN pixels make, FEWEST at least; the others show one of these again, with other bytes at the
    end of the file, where no decoder looks.
    """
    folders, files = _class_folders(folder, classes), []
    drawn = max(FEWEST, DRAWN // (size[0] * size[1]))
    for number in range(count):
        path = folders[number % classes] / f"{number:06d}.jpg"
        if number < drawn:
            pixels = _photograph(np.random.default_rng(number), size)
            Image.fromarray(pixels).save(path, quality=QUALITY)
            files.append(path)
        else:
            path.write_bytes(files[number % drawn].read_bytes() + number.to_bytes(8, "big"))


def make_small(
    folder: Path,
    count: int,
    *,
    first: int = 0,
    side: int = 32,
    classes: int = 10,
    labels: NDArray[np.int64] | None = None,
) -> list[Path]:
    """``count`` small PNG images in class folders, numbered from ``first``, each with content of its own; their paths.

    ``labels`` (count,) says in which folder each is put; by default each has its turn.
    """
    folders, paths = _class_folders(folder, classes), []
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
        pixels = coarse.repeat(4, axis=0).repeat(4, axis=1)
        label = number % classes if labels is None else int(labels[number - first])
        paths.append(folders[label] / f"{number:06d}.png")
        Image.fromarray(pixels).save(paths[-1], compress_level=1)
    return paths


def name_of_class(number: int) -> str:
    """The name of a class's folder."""
    return f"class{number:02d}"


def _class_folders(folder: Path, classes: int) -> list[Path]:
    folders = [folder / name_of_class(c) for c in range(classes)]
    for each in folders:
        each.mkdir(parents=True, exist_ok=True)
    return folders


def _photograph(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(height, width, 3) uint8: a gradient, noise smoothed at several scales, and a sensor's noise."""
    width, height = size
    slope = rng.normal(0, 40, (2, 3))
    across, down = np.linspace(-1, 1, width)[:, None], np.linspace(-1, 1, height)[:, None]
    picture = 128 + (across * slope[0])[None, :, :] + (down * slope[1])[:, None, :]
    for cells, strength in _OCTAVES:
        rows = max(2, cells * height // width)
        # Light and shade are common to the three colours, as in a photograph.
        grid = rng.normal(0, strength, (rows, cells)).astype(np.float32)
        layer = np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC))
        picture += layer[..., None] * rng.uniform(0.6, 1.2, 3)
    picture += rng.normal(0, SENSOR_NOISE, (height, width, 1))
    pixels: NDArray[np.uint8] = np.clip(picture, 0, 255).astype(np.uint8)
    return pixels
