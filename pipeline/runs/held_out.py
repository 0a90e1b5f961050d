"""What heads of a run's settings say of rows that they did not learn from: kept beside the run, and read again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from pipeline.runs.tensors import read_tensors

FILE = "held_out.safetensors"


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Logits (n, C) float32 of rows by a head that did not learn from them; cache ``rows`` (n,) and labels ``y`` (n,).

    ``fold`` (n,) int64 is the fold that a row was left out in, 0 for all where one head scored them. ``distance`` (n,)
    float32 is 1 - the cosine of the raw features with those of the nearest row that the head did learn from.
    """

    logits: NDArray[np.float32]
    rows: NDArray[np.int64]
    y: NDArray[np.int64]
    fold: NDArray[np.int64]
    distance: NDArray[np.float32]

    @property
    def folds(self) -> int:
        """How many there are."""
        return int(self.fold.max()) + 1

    def file(self) -> bytes:
        """As a safetensors file."""
        return safetensors.numpy.save({name: np.ascontiguousarray(tensor) for name, tensor in vars(self).items()})

    def fits(self) -> bool:
        """Whether these are tensors of such types and shapes; what is read from a file need not be."""
        whole = (self.rows, self.y, self.fold)
        flat = all(a.dtype == np.int64 and a.shape == self.logits.shape[:1] for a in whole)
        return flat and len(self.rows) > 0 and self.logits.dtype == np.float32 and self.logits.ndim == 2


def read_held_out(folder: Path) -> HeldOut | None:
    """What is kept of it in a run's folder, if anything is.

    Raises:
        HeadError: it is damaged.
    """
    path = folder / FILE
    return read_tensors(path, HeldOut, "delete it, or search again") if path.exists() else None
