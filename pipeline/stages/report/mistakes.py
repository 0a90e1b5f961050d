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


def pairs(told: Told, y: NDArray[np.int64]) -> list[Pair]:
    """The pairs of classes that are confused, the most often confused first."""
    wrong = np.flatnonzero(told.predicted != y)
    found: list[Pair] = []
    if not len(wrong):
        return found
    cells, place = np.unique(np.stack([y[wrong], told.predicted[wrong]], axis=1), axis=0, return_inverse=True)
    for number, (true, taken) in enumerate(cells.tolist()):
        at = wrong[place.ravel() == number]
        found.append(Pair(true, taken, at[np.argsort(-told.confidence[at], kind="stable")]))
    return sorted(found, key=lambda pair: (-len(pair.at), pair.true, pair.taken))


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
