"""Bounds of a network's maps, between which int8 has its 256 steps: they decide the numbers, so they are kept.

Knows plain values. They are found by ``pipeline.trunk.engines.int8``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Literal

from pipeline.base.schema import Rule, Sha256

_ORDERED = Rule("the lower bound and the upper one", lambda pair: pair[0] <= pair[1])
_Bounds = Annotated[tuple[float, float], _ORDERED]


@dataclass(frozen=True)
class Calibration:
    """What int8 needs to know of a network beside its weights.

    Attributes:
        bounds: the least and the largest value of each map of the exported network, by its name there.
        weight_bits: of 8, how many the weights have (``pipeline.base.precision.bits_of_weights``).
        images: SHA-256 of the images that the bounds were found on.
    """

    bounds: dict[str, _Bounds]
    weight_bits: Literal[7, 8]
    images: tuple[Sha256, ...]

    @property
    def sha256(self) -> str:
        """Of what decides numbers: the bounds and the bits, not the images."""
        told = json.dumps([self.bounds, self.weight_bits], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()
