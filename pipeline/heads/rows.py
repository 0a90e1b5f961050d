"""Rows of features as a solver sees them: checked, read in pieces, standardised, float32.

Knows arrays: features (N, D) of any float type, which may be a read-only memory map larger than memory, and labels
(N,). Knows nothing of solvers, nor of where the arrays come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from pipeline.base.errors import ConfigError, HeadError
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


def class_weights(
    y: npt.NDArray[np.int64], n_classes: int, mode: ClassWeight | Mapping[int, float]
) -> npt.NDArray[np.float64]:
    """The weight of each class (C,): ones, scikit-learn's N / (C * rows of the class) for "balanced", or those given.

    A class that a mapping leaves out weighs 1 (L5).

    Raises:
        ConfigError: another mode, or a weight that is negative or not finite.
    """
    if mode is None:
        return np.ones(n_classes)
    if isinstance(mode, Mapping):
        weights = np.array([mode.get(c, 1.0) for c in range(n_classes)], dtype=np.float64)
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise ConfigError(f"class weights are {weights.tolist()}: they must be finite and none negative")
        return weights
    if mode != "balanced":
        raise ConfigError(f"class weight {mode!r} is not known: choose from none, balanced")
    return len(y) / (n_classes * np.bincount(y, minlength=n_classes).astype(np.float64))


def check_sample_weight(sample_weight: Array | None, n_rows: int) -> npt.NDArray[np.float64]:
    """The weights (N,) as float64, ones where None are given.

    Raises:
        HeadError: another shape, a weight below 0 or not finite, or none above 0.
    """
    if sample_weight is None:
        return np.ones(n_rows)
    weight = np.asarray(sample_weight, dtype=np.float64)
    if weight.shape != (n_rows,):
        raise HeadError(f"sample weights have shape {weight.shape}: ({n_rows},) is needed, one for each train row")
    bad = weight[~(np.isfinite(weight) & (weight >= 0))]
    if bad.size or not weight.any():
        what = f"sample weight {bad[0]} ({bad.size} of {n_rows})" if bad.size else "every sample weight is 0"
        raise HeadError(f"{what}: weights at least 0 and finite are needed, some above 0")
    return weight


def check_device(device: str | torch.device) -> torch.device:
    """The device.

    Raises:
        ConfigError: it is not there.
    """
    target = torch.device(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {str(device)!r} is not there: choose cpu")
    return target


class StandardRows:
    """Rows (N, D) handed out standardised in one float type on a device, held there or read anew each time.

    Held and read rows have the same bits: each goes through the same two operations.
    """

    def __init__(
        self,
        X: Array,
        s: Standardization | None,
        device: torch.device,
        *,
        resident: bool,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Rows of X (N, D), standardised by ``s`` where given; ``resident`` holds them all as ``dtype``."""
        self._X = X
        self._device = device
        self._numpy = np.dtype(str(dtype).removeprefix("torch."))
        self.dtype, self.dim = dtype, X.shape[1]
        self._shift: torch.Tensor | None = None
        self._factor: torch.Tensor | None = None
        if s is not None:
            self._shift = torch.from_numpy(s.mean.astype(self._numpy)).to(device)
            self._factor = torch.from_numpy((1.0 / s.scale).astype(self._numpy)).to(device)
        self._held: torch.Tensor | None = None
        if resident:
            held = torch.empty(X.shape, dtype=dtype, device=device)
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
        x = torch.from_numpy(np.array(rows, dtype=self._numpy)).to(self._device)  # a copy: the map is read-only
        if self._shift is not None and self._factor is not None:
            x.sub_(self._shift).mul_(self._factor)
        return x

    def take(self, index: npt.NDArray[np.int64]) -> torch.Tensor:
        """The rows (n, D) at ``index`` (n,), best sorted so that a memory map is read forwards."""
        if self._held is not None:
            return self._held.index_select(0, torch.from_numpy(index).to(self._device))
        return self._standard(self._X[index])

    def chunks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """All rows in order as (first row's number, rows (n, D))."""
        for start, chunk in row_chunks(self._X):
            if self._held is not None:
                yield start, self._held[start : start + len(chunk)]
            else:
                yield start, self._standard(chunk)
