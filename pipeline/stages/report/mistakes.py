"""Which images are worth looking at: pairs of classes that are confused, confident mistakes, answers that are not sure.

Knows answers; chooses rows by them, and reads none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.scores.metrics import Answers as Told

SHOWN = 24  # images of a gallery
OF_A_PAIR = 12
MOST_PAIRS = 120  # that are shown by their images; a matrix has all


@dataclass(frozen=True, eq=False)
class Pair:
    """Images of the class ``true`` that are taken for ``taken``: their places ``at`` (n,), the most confident first."""

    true: int
    taken: int
    at: NDArray[np.int64]


def pairs(told: Told, y: NDArray[np.int64], most: int = MOST_PAIRS) -> list[Pair]:
    """The pairs of classes that are confused, those most often confused first; of many the first."""
    wrong = np.flatnonzero(told.predicted != y)
    wrong = wrong[np.argsort(-told.confidence[wrong], kind="stable")]
    cells, place, counts = np.unique(
        np.stack([y[wrong], told.predicted[wrong]], axis=1), axis=0, return_inverse=True, return_counts=True
    )
    often = np.argsort(-counts, kind="stable")[:most]
    by_cell = np.split(np.argsort(place.ravel(), kind="stable"), np.cumsum(counts)[:-1])
    return [Pair(int(cells[k, 0]), int(cells[k, 1]), wrong[by_cell[k]]) for k in often.tolist()]


def confident(told: Told, y: NDArray[np.int64], most: int = SHOWN) -> NDArray[np.int64]:
    """Places (m,) of wrong answers, the most confident first."""
    wrong = np.flatnonzero(told.predicted != y)
    return wrong[np.argsort(-told.confidence[wrong], kind="stable")][:most]


def unsure(told: Told, most: int = SHOWN) -> NDArray[np.int64]:
    """Places (m,) of answers, right or wrong, the least sure first."""
    return np.argsort(told.confidence, kind="stable")[:most]


def coverage(told: Told, right: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Accuracy (n,) among the surest k answers, k = 1 ... n, and the share k / n of all; equals in the rows' order."""
    order = np.argsort(-told.confidence, kind="stable")
    k = np.arange(1, len(right) + 1)
    return k / len(right), np.cumsum(right[order]) / k
