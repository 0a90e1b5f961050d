"""Figures of a classifier from its logits. Knows arrays and class names; float64 throughout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import HeadError
from pipeline.heads.problem import check_labels
from pipeline.heads.scores.confusion import Confusion
from pipeline.heads.standardize import row_chunks

Floats = npt.NDArray[np.float64]

CALIBRATION_BINS = 15  # Guo et al. 2017
COLUMN_BYTES = 8 << 20  # of columns that are ranked one after the other, laid out one after the other
COLUMNS_AT_ONCE = 16  # at least: of float32 that is a line of the processor's cache, which is read at once


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
    confusion: Confusion
    confidence: Floats  # (N,): the probability of each row's predicted class

    def to_json(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        names = ("n", "accuracy", "balanced_accuracy", "macro_f1", "log_loss", "top5", "auroc", "ece")
        per_class = [dict(vars(scores)) for scores in self.per_class]
        plain = {name: getattr(self, name) for name in names}
        return {**plain, "per_class": per_class, "confusion": self.confusion.record()}


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
    bad = sum(len(chunk) - int(np.isfinite(chunk).all(axis=1).sum()) for _, chunk in row_chunks(logits))
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


@dataclass(frozen=True, eq=False)
class Answers:
    """What logits (N, C) say of each row: arrays (N,)."""

    predicted: npt.NDArray[np.int64]  # of equal logits the class of the lowest number
    ahead: npt.NDArray[np.int64]  # how many classes come before the row's own; of equal logits those of lower numbers
    own: Floats  # logarithm of the probability of the row's own class
    confidence: Floats  # probability of the predicted class
    largest: Floats  # of the row's logits
    log_total: Floats  # of exp(logit - largest): the logarithm of a probability is logit - largest - log_total


def answers_of(logits: npt.NDArray[Any], y: npt.NDArray[np.int64], temperature: float = 1.0) -> Answers:
    """Of logits (N, C) with labels (N,), divided by ``temperature`` where a probability is meant; row by row.

    One pass over the rows, some of them at a time: beside the logits nothing of their size is made.
    """
    n = len(logits)
    predicted, ahead = np.empty(n, np.int64), np.empty(n, np.int64)
    own, confidence, largest, log_total = (np.empty(n) for _ in range(4))
    for start, chunk in row_chunks(logits):
        here, every = slice(start, start + len(chunk)), np.arange(len(chunk))
        labels, guess = y[here], chunk.argmax(axis=1)
        predicted[here], ahead[here] = guess, _ahead(chunk, labels)
        scaled = chunk if temperature == 1 else chunk / temperature
        largest[here] = scaled.max(axis=1)
        shifted = scaled.astype(np.float64) - largest[here, None]
        log_total[here] = np.log(np.exp(shifted).sum(axis=1))
        own[here] = shifted[every, labels] - log_total[here]
        confidence[here] = np.exp(shifted[every, guess] - log_total[here])
    return Answers(predicted, ahead, own, confidence, largest, log_total)


def _ahead(logits: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    own = logits[np.arange(len(labels)), labels][:, None]
    found: npt.NDArray[np.int64] = np.count_nonzero(logits > own, axis=1)
    equal = logits == own
    if np.count_nonzero(equal) > len(labels):  # each is equal to itself
        found += np.count_nonzero(equal & (np.arange(logits.shape[1]) < labels[:, None]), axis=1)
    return found


def one_against_rest(
    y_true: npt.NDArray[np.int64], scores: npt.NDArray[Any], less: Sequence[Floats] = ()
) -> list[float | None]:
    """Area under the ROC curve of each class against all others (C,), None for a class with no rows or with all.

    The share of pairs (row of the class, other row) in which the first has the higher score in column c of (N, C), a
    tie counting one half: the Mann-Whitney statistic, from ranks, so in O(N log N) a class. From the scores, in
    float64, each of ``less`` (N,) is taken first; a column at a time, so that nothing of their size is made.
    """
    n, classes = scores.shape
    members = np.split(np.argsort(y_true, kind="stable"), np.cumsum(np.bincount(y_true, minlength=classes))[:-1])
    found: list[float | None] = []
    width = max(COLUMNS_AT_ONCE, COLUMN_BYTES // (scores.itemsize * max(1, n)))
    for first in range(0, classes, width):
        block = np.ascontiguousarray(scores[:, first : first + width].T)
        for column, inside in zip(block, members[first : first + width], strict=True):
            found.append(_area(column, inside, less))
    return found


def _area(scores: npt.NDArray[Any], inside: npt.NDArray[np.int64], less: Sequence[Floats]) -> float | None:
    """The area of one column (N,) with the rows ``inside`` (m,) of the class."""
    m, outside = len(inside), len(scores) - len(inside)
    if not m or not outside:
        return None
    ranked = scores.astype(np.float64)
    for part in less:
        ranked -= part
    own = np.sort(ranked[inside])
    ranked.sort()
    # The mean rank, from 1, of each group of equal scores; halves are added without rounding.
    rank = (ranked.searchsorted(own, "left") + ranked.searchsorted(own, "right") + 1) / 2
    return float((rank.sum() - m * (m + 1) / 2) / (m * outside))


def classification_report(
    y_true: npt.NDArray[Any], logits: npt.NDArray[Any], classes: Sequence[str], *, areas: bool = True
) -> Scores:
    """The figures of logits (N, C) against labels (N,) whose class c is called ``classes[c]``.

    Equal logits go to the class of the lowest number. A class without rows has no AUROC, and is left out of the means
    over classes. Without ``areas`` there is no AUROC at all: it takes as long as everything else.

    Raises:
        HeadError: no rows, logits of another shape or not finite, or a label out of range.
    """
    c = len(classes)
    y = check_logits(y_true, logits, c)
    told = answers_of(logits, y)
    confusion = Confusion.of(y, told.predicted, c)
    right, support, guesses = confusion.right.astype(np.float64), confusion.support, confusion.guesses
    precision = shares(right, guesses)
    recall = shares(right, support)
    f1 = shares(2 * right, support + guesses)
    by_class = _areas(y, logits, told) if areas else [None] * c
    defined = [area for area in by_class if area is not None]
    figures = zip(classes, precision.tolist(), recall.tolist(), f1.tolist(), support.tolist(), by_class, strict=True)
    return Scores(
        n=len(y),
        accuracy=float(right.sum() / len(y)),
        balanced_accuracy=float(recall[support > 0].mean()),
        macro_f1=float(f1[support > 0].mean()),
        log_loss=float(-told.own.mean()),
        top5=float((told.ahead < 5).mean()) if c > 5 else None,
        auroc=float(np.mean(defined)) if defined else None,
        ece=calibration_error(told.predicted == y, told.confidence),
        per_class=tuple(ClassScores(str(name), *rest) for name, *rest in figures),
        confusion=confusion,
        confidence=told.confidence,
    )


def _areas(y: npt.NDArray[np.int64], logits: npt.NDArray[Any], told: Answers) -> list[float | None]:
    if logits.shape[1] != 2:
        return one_against_rest(y, logits, (told.largest, told.log_total))
    # Of two classes the difference ranks the rows: a probability that rounds to 1 would hide how sure it is.
    exact = logits.astype(np.float64)
    return one_against_rest(y, exact - exact[:, ::-1])


def shares(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Floats:
    """``part`` / ``whole`` (C,) float64; a share of nothing is 0."""
    found: Floats = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return found
