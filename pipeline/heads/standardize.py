"""Standardisation of features, with a floor for their scale, and its exact folding into a linear layer.

Knows arrays only. Statistics are sums in float64 over pieces of the rows, so that features in float16 or in a memory
map larger than memory are never copied whole.

Pooled features of a ReLU network are sparse: a column that is all but zero in the train rows has a tiny deviation, and
divided by it a new image may come out at 1e5. So no column is divided by less than FLOOR times the median deviation of
those that vary. Measured on an ImageNet-trained EfficientNet-Lite0 (photographs of ants and bees, the best C on val,
mean of 8 draws), accuracy and log-loss on test without and with it: 1 image a class 60.5 % 1.06 -> 74.3 % 0.51, 5
images 79.0 % 1.31 -> 92.1 % 0.20, all 208 the same within chance (94.8 % 0.124 -> 94.1 % 0.130). A floor of the root
mean square deviation does as well on features, but ruins columns in different units (scikit-learn's wine: log-loss
0.05 -> 0.25); the median leaves them alone (0.055).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

FLOOR = 0.5  # of the median deviation of the columns that vary
CHUNK_BYTES = 16 << 20  # of one piece as float64
CHUNK_ROWS = 8192  # of one piece of narrow rows


@dataclass(frozen=True, eq=False)
class Standardization:
    """x -> (x - mean) / scale, column by column."""

    mean: npt.NDArray[np.float64]  # (D,)
    scale: npt.NDArray[np.float64]  # (D,), positive


def identity(dim: int) -> Standardization:
    """Leaves ``dim`` columns as they are."""
    return Standardization(np.zeros(dim), np.ones(dim))


def copied(rows: npt.NDArray[Any], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A copy of rows of any type as a tensor of ``dtype``, which may be written to.

    Float16 becomes float32 by torch: numpy has the same numbers, in 25 times the time.
    """
    if rows.dtype != np.float16:
        return torch.from_numpy(rows.astype(str(dtype).removeprefix("torch.")))
    half = rows if rows.flags.writeable else rows.copy()  # of what is read only torch would warn
    return torch.from_numpy(half).to(torch.float32).to(dtype)


def row_chunks(X: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """X (N, D) in order as (first row's number, view of some rows), each within CHUNK_BYTES and CHUNK_ROWS."""
    rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES // (8 * X.shape[1])))
    for start in range(0, len(X), rows):
        yield start, X[start : start + rows]


def fit_standardization(X: npt.NDArray[Any], weight: npt.NDArray[np.float64] | None = None) -> Standardization:
    """Mean and scale of each column of X (N, D), in float64; rows count ``weight`` (N,) times.

    The scale is the population deviation, at least FLOOR times the median one of the columns that are not constant
    (where all are, 1). A column whose variance is within rounding of zero counts as constant; the bound is
    scikit-learn's (``sklearn.preprocessing._data._is_constant_feature``).
    """
    w = np.ones(len(X)) if weight is None else weight
    n, d = float(w.sum()), X.shape[1]
    total = np.zeros(d)
    for start, chunk in row_chunks(X):
        total += w[start : start + len(chunk)] @ copied(chunk, torch.float64).numpy()
    mean = total / n
    squares = np.zeros(d)
    for start, chunk in row_chunks(X):
        centred = copied(chunk, torch.float64).numpy()
        centred -= mean
        centred *= centred
        squares += w[start : start + len(chunk)] @ centred
    variance = squares / n
    eps = np.finfo(np.float64).eps
    constant = variance <= n * eps * variance + (n * mean * eps) ** 2
    if constant.all():
        return Standardization(mean, np.ones(d))
    deviation = np.sqrt(variance)
    return Standardization(mean, np.maximum(deviation, FLOOR * np.median(deviation[~constant])))


def fold(
    weight: npt.NDArray[Any], bias: npt.NDArray[Any], s: Standardization, dtype: type[np.floating[Any]] = np.float32
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The layer on raw features that equals (weight (C, D), bias (C,)) on standardised ones.

    W ((x - mean) / scale) + b = (W / scale) x + (b - (W / scale) mean); computed in float64, given as ``dtype``. The
    shift is made of the weights as they were rounded: their error then meets x - mean alone, and not a large mean.
    """
    folded = (weight.astype(np.float64) / s.scale).astype(dtype)
    shifted = bias.astype(np.float64) - folded.astype(np.float64) @ s.mean
    return folded, shifted.astype(dtype)
