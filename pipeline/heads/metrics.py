"""Figures of a classifier from its logits. Knows arrays and class names; float64 throughout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import HeadError
from pipeline.heads.rows import check_labels

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClassScores:
    """Figures of one class; a share of nothing counts as 0."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int  # rows of this class


@dataclass(frozen=True, eq=False)
class Scores:
    """Figures of one split; shares are 0 ... 1, the definitions are scikit-learn's."""

    n: int
    accuracy: float
    balanced_accuracy: float  # mean recall over classes that occur
    macro_f1: float  # mean over classes that occur or were predicted
    log_loss: float  # natural logarithm
    top5: float | None  # None where 5 guesses cannot miss
    per_class: tuple[ClassScores, ...]
    confusion: npt.NDArray[np.int64]  # (C, C): row is the true class, column the predicted one

    def to_json(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        plain = {name: getattr(self, name) for name in ("n", "accuracy", "balanced_accuracy", "macro_f1", "log_loss")}
        per_class = [dict(vars(scores)) for scores in self.per_class]
        return {**plain, "top5": self.top5, "per_class": per_class, "confusion": self.confusion.tolist()}


def log_softmax(logits: npt.NDArray[Any]) -> Floats:
    """Logarithms of the class probabilities, (N, C) from logits (N, C); float64, no overflow for any finite logits."""
    shifted: Floats = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    total: Floats = np.exp(shifted).sum(axis=1, keepdims=True)
    return shifted - np.log(total)


def softmax(logits: npt.NDArray[Any]) -> Floats:
    """Class probabilities (N, C) float64 from logits (N, C); each row sums to 1."""
    return np.exp(log_softmax(logits))


def classification_report(y_true: npt.NDArray[Any], logits: npt.NDArray[Any], classes: Sequence[str]) -> Scores:
    """The figures of logits (N, C) against labels (N,) whose class c is called ``classes[c]``.

    Equal logits go to the class of the lowest number.

    Raises:
        HeadError: no rows, logits of another shape or not finite, or a label out of range.
    """
    c = len(classes)
    if logits.ndim != 2 or logits.shape[1] != c or len(logits) == 0:
        raise HeadError(f"logits have shape {tuple(logits.shape)}: (rows, {c}) is needed, with at least one row")
    bad = int((~np.isfinite(logits).all(axis=1)).sum())
    if bad:
        raise HeadError(
            f"{bad} of {len(logits)} rows have NaN or infinite logits: the head or the features are damaged"
        )
    y = check_labels(y_true, len(logits), c, "scored")
    predicted = logits.argmax(axis=1)
    confusion = np.bincount(y * c + predicted, minlength=c * c).reshape(c, c)
    right = np.diag(confusion).astype(np.float64)
    support, guesses = confusion.sum(axis=1), confusion.sum(axis=0)
    precision = _share(right, guesses)
    recall = _share(right, support)
    f1 = _share(2 * right, support + guesses)
    top5 = None
    if c > 5:
        top5 = float((np.argsort(-logits, axis=1, kind="stable")[:, :5] == y[:, None]).any(axis=1).mean())
    return Scores(
        n=len(y),
        accuracy=float(right.sum() / len(y)),
        balanced_accuracy=float(recall[support > 0].mean()),
        macro_f1=float(f1[support + guesses > 0].mean()),
        log_loss=float(-log_softmax(logits)[np.arange(len(y)), y].mean()),
        top5=top5,
        per_class=tuple(
            ClassScores(str(name), float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
            for i, name in enumerate(classes)
        ),
        confusion=confusion.astype(np.int64),
    )


def _share(part: Floats, whole: npt.NDArray[Any]) -> Floats:
    shares: Floats = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return shares
