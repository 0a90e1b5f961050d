"""What a head is to learn, checked once for every solver: train rows, classes, weights, folds, val rows, a device.

Knows arrays only: features (N, D) of any float type, which may be a read-only memory map larger than memory, and labels
(N,). Knows nothing of solvers, nor of where the arrays come from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch

from pipeline.base.errors import ConfigError, HeadError
from pipeline.base.memory import free_bytes, is_out_of_memory, let_go, memory_share
from pipeline.base.spelling import option
from pipeline.base.words import size
from pipeline.heads.rows import Array, unkept
from pipeline.heads.staging import on_gpu
from pipeline.heads.standardize import chunk_rows, copied, row_chunks
from pipeline.heads.threads import by_threads

Solver = TypeVar("Solver", bound=Callable[..., Any])
ClassWeight: TypeAlias = Literal["balanced"] | Mapping[int, float] | None


@dataclass(frozen=True, eq=False)  # arrays have no single ==
class Split:
    """Rows that heads are scored on: features X (n, D) and class numbers y (n,)."""

    X: Array
    y: Array

    def checked(self, what: str, dim: int, n_classes: int) -> Split:
        """The same with labels as int64; ``what`` names the rows in errors.

        Raises:
            HeadError: features or labels that cannot be scored, or not of ``dim`` features.
        """
        check_features(self.X, what)
        if self.X.shape[1] != dim:
            raise HeadError(f"{what} rows have {self.X.shape[1]} features, train rows {dim}: one trunk gives both")
        return Split(self.X, check_labels(self.y, len(self.X), n_classes, what))


@dataclass(frozen=True, eq=False)
class Problem:
    """Train rows and all that belongs to them. Solvers leave alone what they have no use for, as noted.

    Raises:
        HeadError: features, labels, weights, folds or val rows that cannot be learned from.
        ConfigError: a class weight that is not legal, names of another number than classes, a device that is not there.
    """

    X: Array  # (N, D)
    y: Array  # (N,) class numbers; int64 once made
    n_classes: int
    class_names: Sequence[str] | None = None  # for messages
    class_weight: ClassWeight = None  # by class; one that a mapping leaves out weighs 1
    sample_weight: Array | None = None  # (N,), multiplies each row's loss beside its class's
    folds: npt.NDArray[np.int64] | None = None  # (N,), exact: the fold that leaves the row out, -1 none does
    val: Split | None = None  # minibatch: chooses the epoch that is kept
    val_metric: Literal["accuracy", "log_loss"] = "accuracy"  # ... by this
    standardize: bool = True
    device: str | torch.device = "cpu"
    memory: int | None = None  # bytes of the device that rows may be held in; None: ``memory_share``'s
    dtype: torch.dtype = torch.float32  # of the products and of the head; float64 or float32
    row_weight: npt.NDArray[np.float64] = field(init=False)  # (N,): ``sample_weight``, ones where there is none
    loss_weight: npt.NDArray[np.float64] = field(init=False)  # (N,): the class's times the row's own

    def __post_init__(self) -> None:
        """Check everything, and put labels, weights and device in one form."""
        device = check_device(self.device)
        check_features(self.X, "train")
        n, c = len(self.X), self.n_classes
        y = check_labels(self.y, n, c, "train")
        check_classes(y, c, self.class_names)
        row_weight = check_sample_weight(self.sample_weight, n)
        loss_weight = class_weights(y, c, self.class_weight)[y] * row_weight
        check_classes(y[loss_weight > 0], c, self.class_names, " of a weight above 0")
        found = {
            "device": device,
            "y": y,
            "row_weight": row_weight,
            "loss_weight": loss_weight,
            "val": None if self.val is None else self.val.checked("val", self.X.shape[1], c),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)
        if self.folds is not None and self.folds.shape != (n,):
            raise HeadError(f"folds have shape {self.folds.shape}: ({n},) is needed, one for each train row")
        for number in range(self.n_folds):
            left_in = (self.folds != number) & (loss_weight > 0)
            check_classes(y[left_in], c, self.class_names, f" outside fold {number}")

    @property
    def target(self) -> torch.device:
        """The device."""
        return torch.device(self.device)

    @property
    def memory_bytes(self) -> int:
        """Bytes that rows may be held in."""
        return memory_share(self.target) if self.memory is None else self.memory

    @property
    def n_folds(self) -> int:
        """How many folds there are; 0 without."""
        return 0 if self.folds is None else int(self.folds.max()) + 1


def told_where_memory_ends(solver: Solver) -> Solver:
    """A solver of a :class:`Problem`, its first argument; a GPU's memory that is not enough for that is a HeadError."""

    @functools.wraps(solver)
    def told(problem: Problem, *args: Any, **kwargs: Any) -> Any:
        try:
            return solver(problem, *args, **kwargs)
        except Exception as error:
            if not (on_gpu(problem.target) and is_out_of_memory(error)):
                raise
            let_go(error)
            (n, d), free = problem.X.shape, size(free_bytes(problem.target))
            raise HeadError(
                f"out of memory on {problem.device}, which has {free} free without this: {n:,} rows of {d:,} features "
                f"and {problem.n_classes:,} classes are too much for it; give {option('device', 'cpu')}"
            ) from error

    return cast(Solver, told)


def check_features(X: Array, what: str) -> None:
    """Pass features (N, D) of finite numbers with at least one row and one column; a map's pages are not kept.

    Raises:
        HeadError: another shape or type, no rows, or NaN or infinite values (says in how many rows, and the first).
    """
    if X.ndim != 2 or 0 in X.shape:
        raise HeadError(
            f"{what} features have shape {tuple(X.shape)}: (rows, features) is needed, at least one of each"
        )
    if not (np.issubdtype(X.dtype, np.floating) or np.issubdtype(X.dtype, np.integer)):
        raise HeadError(f"{what} features are {X.dtype}: float16, float32 or float64 is needed")
    bad = np.concatenate(by_threads(len(X), chunk_rows(X.shape[1]), functools.partial(_not_finite, unkept(X))))
    if bad.size:
        raise HeadError(
            f"{bad.size} of {len(X)} {what} rows hold NaN or infinite features, the first is row {bad[0]}: extract "
            "them again"
        )


def _not_finite(X: Array, start: int, stop: int) -> npt.NDArray[np.int64]:
    """The numbers of those of the rows that hold what is not finite."""
    found = [np.zeros(0, np.int64)]
    room = torch.empty(min(chunk_rows(X.shape[1]), stop - start), X.shape[1])
    for first, chunk in row_chunks(X, start, stop):
        # A sum of finite numbers may overflow, but what is not finite never has a finite one.
        if not bool(torch.isfinite(copied(chunk, room=room).sum(dim=1)).all()):
            found.append(first + np.flatnonzero(~np.isfinite(chunk).all(axis=1)))
    return np.concatenate(found)


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


def check_classes(y: npt.NDArray[np.int64], n_classes: int, class_names: Sequence[str] | None, which: str = "") -> None:
    """Pass training labels (N,) in which every one of at least two classes occurs; ``which`` rows they are of.

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
            f"no train rows{which} for class {', '.join(names)}{more}: add train images of it, or leave the class out"
        )


def class_weights(y: npt.NDArray[np.int64], n_classes: int, mode: ClassWeight) -> npt.NDArray[np.float64]:
    """The weight of each class (C,): ones, scikit-learn's N / (C * rows of the class) for "balanced", or those given.

    A class that a mapping leaves out weighs 1.

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
    number = target.index or 0
    if target.type == "cuda" and (not torch.cuda.is_available() or 0 < number >= torch.cuda.device_count()):
        raise ConfigError(f"device {str(device)!r} is not there: choose cpu")
    return target
