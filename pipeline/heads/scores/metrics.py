"""Figures of a classifier from its logits. Knows arrays and class names; float64 throughout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import HeadError
from pipeline.heads.problem import check_labels

Floats = npt.NDArray[np.float64]

CALIBRATION_BINS = 15  # Guo et al. 2017


@dataclass(frozen=True)
class ClassScores:
    """Figures of one class; a share of nothing counts as 0."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int  # rows of this class
    auroc: float | None  # this class against the rest; None where one of the two has no rows


@dataclass(frozen=True, eq=False)
class Scores:
    """Figures of one split; shares are 0 ... 1, the definitions are scikit-learn's.

    Means over classes are over those that occur: of one without rows nothing can be known, and that a row was taken for
    it counts in the figures of the row's own class.
    """

    n: int
    accuracy: float
    balanced_accuracy: float  # mean recall over classes that occur
    macro_f1: float  # mean F1 over classes that occur
    log_loss: float  # natural logarithm
    top5: float | None  # None where 5 guesses cannot miss
    auroc: float | None  # mean over classes, each against the rest (of two classes the same); None if there is none
    ece: float  # expected calibration error, see calibration_error
    per_class: tuple[ClassScores, ...]
    confusion: npt.NDArray[np.int64]  # (C, C): row is the true class, column the predicted one

    def to_json(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        names = ("n", "accuracy", "balanced_accuracy", "macro_f1", "log_loss", "top5", "auroc", "ece")
        per_class = [dict(vars(scores)) for scores in self.per_class]
        plain = {name: getattr(self, name) for name in names}
        return {**plain, "per_class": per_class, "confusion": self.confusion.tolist()}


def log_softmax(logits: npt.NDArray[Any]) -> Floats:
    """Logarithms of the class probabilities, (N, C) from logits (N, C); float64, no overflow for any finite logits."""
    shifted: Floats = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    total: Floats = np.exp(shifted).sum(axis=1, keepdims=True)
    return shifted - np.log(total)


def softmax(logits: npt.NDArray[Any]) -> Floats:
    """Class probabilities (N, C) float64 from logits (N, C); each row sums to 1."""
    return np.exp(log_softmax(logits))


def check_logits(y_true: npt.NDArray[Any], logits: npt.NDArray[Any], c: int) -> npt.NDArray[np.int64]:
    """The labels (N,) as int64, when logits (N, c) can be scored against them.

    Raises:
        HeadError: no rows, logits of another shape or not finite, or a label out of range.
    """
    if logits.ndim != 2 or logits.shape[1] != c or len(logits) == 0:
        raise HeadError(f"logits have shape {tuple(logits.shape)}: (rows, {c}) is needed, with at least one row")
    bad = int((~np.isfinite(logits).all(axis=1)).sum())
    if bad:
        raise HeadError(
            f"{bad} of {len(logits)} rows have NaN or infinite logits: the head or the features are damaged"
        )
    return check_labels(y_true, len(logits), c, "scored")


def calibration_error(correct: npt.NDArray[np.bool_], confidence: Floats, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error, 0 ... 1, of predictions that are right or not (N,) at a claimed probability (N,).

    The rows are put into equal-width bins (i / bins, (i + 1) / bins] of the probability; the error is the mean over
    rows of |accuracy of the bin - mean probability of the bin| (Guo et al. 2017, eq. 3, arXiv:1706.04599).
    """
    place = calibration_bins(confidence, bins)
    right = np.bincount(place, weights=correct, minlength=bins)
    claimed = np.bincount(place, weights=confidence, minlength=bins)
    return float(np.abs(right - claimed).sum() / len(confidence))


def calibration_bins(confidence: Floats, bins: int = CALIBRATION_BINS) -> npt.NDArray[np.int64]:
    """The bin, 0 ... bins - 1, of each claimed probability (N,)."""
    place: npt.NDArray[np.int64] = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return place


def one_against_rest(y_true: npt.NDArray[np.int64], scores: Floats) -> list[float | None]:
    """Area under the ROC curve of each class against all others (C,), None for a class with no rows or with all.

    The share of pairs (row of the class, other row) in which the first has the higher score in column c of (N, C), a
    tie counting one half: the Mann-Whitney statistic, from ranks, so in O(N log N) a class.
    """
    found: list[float | None] = []
    for c, inside in enumerate(np.bincount(y_true, minlength=scores.shape[1]).tolist()):
        outside = len(y_true) - inside
        if not inside or not outside:
            found.append(None)
            continue
        _, place, ties = np.unique(scores[:, c], return_inverse=True, return_counts=True)
        rank = np.cumsum(ties) - (ties - 1) / 2  # the mean rank, from 1, of each group of equal scores
        found.append(float((rank[place][y_true == c].sum() - inside * (inside + 1) / 2) / (inside * outside)))
    return found


def classification_report(y_true: npt.NDArray[Any], logits: npt.NDArray[Any], classes: Sequence[str]) -> Scores:
    """The figures of logits (N, C) against labels (N,) whose class c is called ``classes[c]``.

    Equal logits go to the class of the lowest number. A class without rows has no AUROC, and is left out of the means
    over classes.

    Raises:
        HeadError: no rows, logits of another shape or not finite, or a label out of range.
    """
    c = len(classes)
    y = check_logits(y_true, logits, c)
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
    log_p, exact = log_softmax(logits), logits.astype(np.float64)
    # Of two classes the difference ranks the rows: a probability that rounds to 1 would hide how sure it is.
    areas = one_against_rest(y, exact - exact[:, ::-1] if c == 2 else log_p)
    defined = [area for area in areas if area is not None]
    return Scores(
        n=len(y),
        accuracy=float(right.sum() / len(y)),
        balanced_accuracy=float(recall[support > 0].mean()),
        macro_f1=float(f1[support > 0].mean()),
        log_loss=float(-log_p[np.arange(len(y)), y].mean()),
        top5=top5,
        auroc=float(np.mean(defined)) if defined else None,
        ece=calibration_error(predicted == y, np.exp(log_p[np.arange(len(y)), predicted])),
        per_class=tuple(
            ClassScores(str(name), float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]), areas[i])
            for i, name in enumerate(classes)
        ),
        confusion=confusion.astype(np.int64),
    )


def _share(part: Floats, whole: npt.NDArray[Any]) -> Floats:
    shares: Floats = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return shares
