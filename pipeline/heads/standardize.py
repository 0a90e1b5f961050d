"""Standardisation of features, and its exact folding into a linear layer.

Knows arrays only. Statistics are sums in float64 over pieces of the rows, so that features in float16 or in a memory
map larger than memory are never copied whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

CHUNK_BYTES = 16 << 20  # of one piece as float64
CHUNK_ROWS = 8192  # of one piece of narrow rows


@dataclass(frozen=True, eq=False)
class Standardization:
    """x -> (x - mean) / scale, column by column."""

    mean: npt.NDArray[np.float64]  # (D,)
    scale: npt.NDArray[np.float64]  # (D,), positive; 1 for a constant column


def identity(dim: int) -> Standardization:
    """Leaves ``dim`` columns as they are."""
    return Standardization(np.zeros(dim), np.ones(dim))


def row_chunks(X: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """X (N, D) in order as (first row's number, view of some rows), each within CHUNK_BYTES and CHUNK_ROWS."""
    rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES // (8 * X.shape[1])))
    for start in range(0, len(X), rows):
        yield start, X[start : start + rows]


def fit_standardization(X: npt.NDArray[Any], weight: npt.NDArray[np.float64] | None = None) -> Standardization:
    """Mean and population deviation of each column of X (N, D), in float64; rows count ``weight`` (N,) times.

    A column whose variance is within rounding of zero counts as constant and gets scale 1; the bound is
    scikit-learn's (``sklearn.preprocessing._data._is_constant_feature``).
    """
    w = np.ones(len(X)) if weight is None else weight
    n, d = float(w.sum()), X.shape[1]
    total = np.zeros(d)
    for start, chunk in row_chunks(X):
        total += w[start : start + len(chunk)] @ chunk.astype(np.float64)
    mean = total / n
    squares = np.zeros(d)
    for start, chunk in row_chunks(X):
        centred = chunk.astype(np.float64)
        centred -= mean
        centred *= centred
        squares += w[start : start + len(chunk)] @ centred
    variance = squares / n
    eps = np.finfo(np.float64).eps
    constant = variance <= n * eps * variance + (n * mean * eps) ** 2
    return Standardization(mean=mean, scale=np.where(constant, 1.0, np.sqrt(variance)))


def fold(
    weight: npt.NDArray[Any], bias: npt.NDArray[Any], s: Standardization, dtype: type[np.floating[Any]] = np.float32
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The layer on raw features that equals (weight (C, D), bias (C,)) on standardised ones.

    W ((x - mean) / scale) + b = (W / scale) x + (b - (W / scale) mean); computed in float64, given as ``dtype``.
    """
    folded = weight.astype(np.float64) / s.scale
    shifted = bias.astype(np.float64) - folded @ s.mean
    return folded.astype(dtype), shifted.astype(dtype)
