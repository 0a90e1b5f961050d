"""What every engine is: pixels in at one fixed batch shape, features out, within a stated tolerance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

# Largest difference of a feature from plain eager torchvision in float32, as a share of the largest feature of the same
# image. float32 leaves about 1e-6 after 50 to 150 layers; bfloat16 has 8 significant bits. What is coarser than
# float32 is judged by all features of an image (``pipeline.trunk.engines.check``): a single one may be far off.
TOLERANCE = {"float32": 1e-5, "tf32": 2.0**-8, "bfloat16": 2.0**-5, "int8": 2.0**-1}


@dataclass(eq=False)
class Slot:
    """Room for one batch: ``places`` (batch, S, S, 3) uint8 are written, ``found`` (batch, D) float32 come of them."""

    places: NDArray[np.uint8]
    found: NDArray[np.float32]

    def pixels(self, at: list[int]) -> NDArray[np.uint8]:
        """A copy (n, 3, S, S) of the images at these places."""
        return np.ascontiguousarray(self.places[at].transpose(0, 3, 1, 2))


class Engine(Protocol):
    """Runs a trunk: ``engine(pixels)`` gives features (n, dim) float32 of pixels (n, 3, S, S) uint8, n <= batch.

    Where batches follow one another each has a slot: its images are written there, ``start`` begins, ``finish`` waits.
    """

    name: str
    version: str
    device: str
    precision: str
    batch: int
    dim: int

    @property
    def net(self) -> nn.Module | None:
        """The network that it runs; None where that lies in a library's own memory."""

    def slot(self) -> Slot:
        """A new slot, its places black."""

    def start(self, slot: Slot) -> None:
        """Begin to compute what is in a slot, which is left alone until :meth:`finish`; on a CPU it ends here."""

    def finish(self, slot: Slot) -> NDArray[np.float32]:
        """Features (batch, dim) float32 of all places of a slot that was started; its next batch overwrites them."""

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (n, dim) float32 of pixels (n, 3, S, S) uint8, n <= batch."""


def through(engine: Engine, slot: Slot, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Features (n, dim) float32 of pixels (n, 3, S, S) uint8, n <= batch, by one slot, black after them."""
    places = slot.places.transpose(0, 3, 1, 2)
    if pixels.dtype != np.uint8 or pixels.shape[1:] != places.shape[1:] or len(pixels) > len(places):
        raise ValueError(
            f"pixels are {pixels.dtype} {pixels.shape}: the engine takes uint8 of at most {places.shape} images"
        )
    places[: len(pixels)] = pixels
    places[len(pixels) :] = 0
    engine.start(slot)
    return engine.finish(slot)[: len(pixels)].copy()
