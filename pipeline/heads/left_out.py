"""What exact heads say of rows that they were fitted without: figures of each penalty, and the logits of one.

Knows the fits of a problem with folds, and its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.exact.path import ExactFit
from pipeline.heads.scores.tally import Tally


def left_out_figures(
    fits: Sequence[ExactFit], X: NDArray[Any], y: NDArray[np.int64], folds: NDArray[np.int64]
) -> dict[float, dict[str, float]]:
    """The figures of each C, in the fits' order, over rows X (n, D) with labels y (n,): each row by the head fitted
    without its fold (n,).
    """
    Cs = list(dict.fromkeys(fit.C for fit in fits))
    tally = Tally(len(Cs), len(fits[0].bias))
    for number, of_fold in _by_fold(fits).items():
        if number >= 0:
            here = folds == number
            tally.add_linear([(of_fold[C].weight, of_fold[C].bias) for C in Cs], X[here], y[here])
    return dict(zip(Cs, tally.figures(), strict=True))


def left_out_logits(
    fits: Sequence[ExactFit], C: float, X: NDArray[Any], folds: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Logits (n, classes) of rows X (n, D) by the heads of one C, each row by the one fitted without its fold (n,)."""
    logits = np.empty((len(X), len(fits[0].bias)), np.float32)
    for number, of_fold in _by_fold(fits).items():
        if number >= 0:
            here = folds == number
            logits[here] = linear_logits(X[here], of_fold[C].weight, of_fold[C].bias)
    return logits


def linear_logits(X: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any]) -> NDArray[np.float32]:
    """Logits (n, C) float32 of rows (n, D) by a linear head on raw features."""
    return np.asarray(X, np.float32) @ weight.T.astype(np.float32) + bias.astype(np.float32)


def _by_fold(fits: Sequence[ExactFit]) -> dict[int, dict[float, ExactFit]]:
    """Fold, -1 for the fits of all rows -> C -> fit."""
    found: dict[int, dict[float, ExactFit]] = {}
    for fit in fits:
        found.setdefault(fit.fold, {})[fit.C] = fit
    return found
