"""What every engine is: pixels in at one fixed batch shape, features out, within a stated tolerance."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipeline.base.memory import is_out_of_memory as is_out_of_memory  # (to engines' users it is an engine's word)

# Largest difference of a feature from plain eager torchvision in float32, as a share of the largest feature of the same
# image. float32 leaves about 1e-6 after 50 to 150 layers; bfloat16 has 8 significant bits. What is coarser than
# float32 is judged by all features of an image (``pipeline.trunk.engines.check``): a single one may be far off.
TOLERANCE = {"float32": 1e-5, "tf32": 2.0**-8, "bfloat16": 2.0**-5, "int8": 2.0**-1}


class Engine(Protocol):
    """Runs a trunk: ``engine(pixels)`` gives features (n, dim) float32 of pixels (n, 3, S, S) uint8, n <= batch."""

    name: str
    version: str
    device: str
    precision: str
    batch: int
    dim: int

    @property
    def net(self) -> nn.Module | None:
        """The network that it runs; None where that lies in a library's own memory."""

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (n, dim) float32 of pixels (n, 3, S, S) uint8, n <= batch."""


def fill(buffer: NDArray[np.uint8], pixels: NDArray[np.uint8]) -> None:
    """Copy pixels (n, 3, S, S) into the buffer (batch, 3, S, S), black after them."""
    if pixels.dtype != np.uint8 or pixels.shape[1:] != buffer.shape[1:] or len(pixels) > len(buffer):
        raise ValueError(
            f"pixels are {pixels.dtype} {pixels.shape}: the engine takes uint8 of at most {buffer.shape} images"
        )
    buffer[: len(pixels)] = pixels
    buffer[len(pixels) :] = 0
