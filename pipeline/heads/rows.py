"""Rows of features as a solver sees them: checked, read in pieces, standardised, float32.

Knows arrays: features (N, D) of any float type, which may be a read-only memory map larger than memory, and labels
(N,). Knows nothing of solvers, nor of where the arrays come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import ConfigError, HeadError
from pipeline.heads.standardize import Standardization, row_chunks

Array: TypeAlias = npt.NDArray[Any]
ClassWeight: TypeAlias = Literal["balanced"] | None


def check_features(X: Array, what: str) -> None:
    """Pass features (N, D) of finite numbers with at least one row and one column.

    Raises:
        HeadError: another shape or type, no rows, or NaN or infinite values (says in how many rows, and the first).
    """
    if X.ndim != 2 or 0 in X.shape:
        raise HeadError(
            f"{what} features have shape {tuple(X.shape)}: (rows, features) is needed, at least one of each"
        )
    if not (np.issubdtype(X.dtype, np.floating) or np.issubdtype(X.dtype, np.integer)):
        raise HeadError(f"{what} features are {X.dtype}: float16, float32 or float64 is needed")
    bad, first = 0, -1
    for start, chunk in row_chunks(X):
        rows = np.flatnonzero(~np.isfinite(chunk).all(axis=1))
        if rows.size and first < 0:
            first = start + int(rows[0])
        bad += rows.size
    if bad:
        raise HeadError(
            f"{bad} of {len(X)} {what} rows hold NaN or infinite features, the first is row {first}: extract them again"
        )


def check_labels(y: Array, n_rows: int, n_classes: int, what: str) -> npt.NDArray[np.int64]:
    """The labels (N,) as int64, each in 0 ... n_classes - 1.

    Raises:
        HeadError: another shape or type, another count than the rows, or a label out of range.
    """
    y = np.asarray(y)
    if y.shape != (n_rows,):
        raise HeadError(
            f"{what} labels have shape {tuple(y.shape)}: ({n_rows},) is needed, one for each row of features"
        )
    if not np.issubdtype(y.dtype, np.integer):
        raise HeadError(f"{what} labels are {y.dtype}: whole class numbers are needed")
    outside = y[(y < 0) | (y >= n_classes)]
    if outside.size:
        raise HeadError(f"{what} label {outside[0]} ({outside.size} of {n_rows}) is outside 0 ... {n_classes - 1}")
    return y.astype(np.int64, copy=False)


def check_classes(y: npt.NDArray[np.int64], n_classes: int, class_names: Sequence[str] | None) -> None:
    """Pass training labels (N,) in which every one of at least two classes occurs (L6).

    Raises:
        ConfigError: as many names as classes were not given.
        HeadError: fewer than two classes, or classes without a train row, by name where names are given.
    """
    if n_classes < 2:
        raise HeadError(f"{n_classes} class: a head needs at least 2")
    if class_names is not None and len(class_names) != n_classes:
        raise ConfigError(f"{len(class_names)} class names for {n_classes} classes: one name each is needed")
    empty = np.flatnonzero(np.bincount(y, minlength=n_classes) == 0)
    if empty.size:
        names = [repr(class_names[i]) if class_names is not None else str(i) for i in empty[:5]]
        more = f" and {empty.size - 5} more" if empty.size > 5 else ""
        raise HeadError(
            f"no train rows for class {', '.join(names)}{more}: add train images of it, or leave the class out"
        )


def class_weights(y: npt.NDArray[np.int64], n_classes: int, mode: ClassWeight) -> npt.NDArray[np.float64]:
    """The weight of each class (C,): ones, or for "balanced" scikit-learn's N / (C * rows of the class) (L5).

    Raises:
        ConfigError: another mode.
    """
    if mode is None:
        return np.ones(n_classes)
    if mode != "balanced":
        raise ConfigError(f"class weight {mode!r} is not known: choose from none, balanced")
    return len(y) / (n_classes * np.bincount(y, minlength=n_classes).astype(np.float64))


class StandardRows:
    """Rows (N, D) handed out standardised in float32 on a device, held there or read anew each time.

    Held and read rows have the same bits: each goes through the same two float32 operations.
    """

    def __init__(self, X: Array, s: Standardization | None, device: torch.device, *, resident: bool) -> None:
        """Rows of X (N, D), standardised by ``s`` where given; ``resident`` holds them all as float32."""
        self._X = X
        self._device = device
        self._shift: torch.Tensor | None = None
        self._factor: torch.Tensor | None = None
        if s is not None:
            self._shift = torch.from_numpy(s.mean.astype(np.float32)).to(device)
            self._factor = torch.from_numpy((1.0 / s.scale).astype(np.float32)).to(device)
        self._held: torch.Tensor | None = None
        if resident:
            held = torch.empty(X.shape, dtype=torch.float32, device=device)
            for start, chunk in row_chunks(X):
                held[start : start + len(chunk)] = self._standard(chunk)
            self._held = held

    @staticmethod
    def held_bytes(X: Array) -> int:
        """Bytes that the rows take when held."""
        return int(X.size) * 4

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._X)

    def _standard(self, rows: Array) -> torch.Tensor:
        x = torch.from_numpy(np.array(rows, dtype=np.float32)).to(self._device)  # a copy: the map is read-only
        if self._shift is not None and self._factor is not None:
            x.sub_(self._shift).mul_(self._factor)
        return x

    def take(self, index: npt.NDArray[np.int64]) -> torch.Tensor:
        """The rows (n, D) float32 at ``index`` (n,), best sorted so that a memory map is read forwards."""
        if self._held is not None:
            return self._held.index_select(0, torch.from_numpy(index).to(self._device))
        return self._standard(self._X[index])

    def chunks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """All rows in order as (first row's number, rows (n, D) float32)."""
        for start, chunk in row_chunks(self._X):
            if self._held is not None:
                yield start, self._held[start : start + len(chunk)]
            else:
                yield start, self._standard(chunk)
