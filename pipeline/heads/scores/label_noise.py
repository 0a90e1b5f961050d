"""Labels that look wrong: confident learning on what heads say of rows that they have not learned from.

Northcutt, Jiang and Chuang 2021 (Journal of Artificial Intelligence Research 70, arXiv 1911.00068). A class's threshold
is the mean probability of that class over the rows that carry its label. A row counts as of the most probable of the
classes whose thresholds it reaches; counted by label and class these rows are the confident joint. Each label's counts
are scaled to the number of its rows, since not all reach a threshold, and give the share of labels that are wrong. So
many of the rows that seem to be of another class than their label are suspected, those first whose label is the least
probable.

Measured on 2, 5 and 10 % of the labels of digits flipped, at random and to the class most alike (features of an
EfficientNet-Lite0), that list holds 0.84 to 0.95 of the flipped ones; the rows off the diagonal of the confident joint,
the paper's other list, hold 0.70 to 0.75 of them. Knows logits and labels only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.heads.scores.confusion import Confusion
from pipeline.heads.scores.intervals import LEVEL, Interval, binomial_interval
from pipeline.heads.scores.metrics import Floats, check_logits, softmax
from pipeline.heads.standardize import row_chunks

DRAWS = 1000  # of the rows anew, for the interval of a share
DRAWN_AT_ONCE = 4_000_000  # cells of the confident joint


@dataclass(frozen=True, eq=False)
class LabelNoise:
    """What logits (n, C) say of labels (n,): how probable each is, which are suspected, and how many may be wrong.

    ``margin`` is the probability of a row's label less that of the most probable other class. ``share`` is the part of
    the labels that is estimated to be wrong. It counts what the heads confuse as well: on labels that are all right it
    is not 0, so that it is a bound from above rather than a measurement. ``interval`` says how far another draw of rows
    would move it.
    """

    self_confidence: Floats  # (n,): the probability of the row's label
    margin: Floats  # (n,)
    predicted: npt.NDArray[np.int64]  # (n,): the most probable class
    order: npt.NDArray[np.int64]  # (m,): the suspected rows, the most suspect first
    support: npt.NDArray[np.int64]  # (C,): rows by label
    joint: Confusion  # the confident joint: rows by label (``true``) and by the class that they seem to be of
    share: float
    interval: Interval

    def pairs(self) -> list[tuple[int, int, int, float]]:
        """(label, class, rows in the confident joint, rows that are estimated to be so), most first."""
        joint = self.joint
        scale = self.support / np.maximum(joint.support, 1)
        off = np.flatnonzero(joint.true != joint.predicted)
        estimated = joint.count[off] * scale[joint.true[off]]
        return [
            (int(joint.true[k]), int(joint.predicted[k]), int(joint.count[k]), float(e))
            for e, k in sorted(zip(estimated.tolist(), off.tolist(), strict=True), key=lambda p: (-p[0], p[1]))
        ]


def label_noise(
    logits: npt.NDArray[Any], y: npt.NDArray[Any], temperature: float = 1.0, *, seed: int = 0
) -> LabelNoise:
    """Judge labels y (n,) by logits (n, C) of heads that have learned from none of those rows.

    The same arrays and ``seed`` give the same bits. Beside the logits nothing of their size is made.

    Raises:
        HeadError: no rows, logits of another shape or not finite, or a label out of range.
    """
    classes = logits.shape[-1]
    labels = check_logits(y, logits, classes)
    n, support = len(labels), np.bincount(labels, minlength=classes)
    own, other = np.empty(n), np.empty(n)
    for start, p in _probabilities(logits, temperature):
        here, every = slice(start, start + len(p)), np.arange(len(p))
        own[here] = p[every, labels[here]]
        p[every, labels[here]] = -1
        other[here] = p.max(axis=1)
    threshold = np.bincount(labels, own, classes) / np.maximum(support, 1)
    threshold[support == 0] = np.inf  # nothing says how sure the heads are of it where it is right
    threshold -= 1e-9  # a class of which all rows are equally probable reaches its own mean
    guess, predicted = np.empty(n, np.int64), np.empty(n, np.int64)
    for start, p in _probabilities(logits, temperature):
        here = slice(start, start + len(p))
        predicted[here] = p.argmax(axis=1)
        p[p < threshold] = -1
        guess[here] = np.where(p.max(axis=1) < 0, -1, p.argmax(axis=1))
    sure = guess >= 0
    joint = Confusion.of(labels[sure], guess[sure], classes)
    share, interval = _share(joint, np.bincount(labels[~sure], minlength=classes), np.random.default_rng(seed))
    other_class = np.flatnonzero(predicted != labels)
    by_suspicion = other_class[np.argsort(own[other_class], kind="stable")]
    return LabelNoise(own, own - other, predicted, by_suspicion[: round(share * n)], support, joint, share, interval)


def _probabilities(logits: npt.NDArray[Any], temperature: float) -> Any:
    for start, chunk in row_chunks(logits):
        yield start, softmax(chunk / temperature)


def _share(joint: Confusion, unsure: npt.NDArray[np.int64], rng: np.random.Generator) -> tuple[float, Interval]:
    """The share of rows whose label is another than their class, and its interval.

    Rows that reach no threshold, ``unsure`` (C,) by label, are taken to be as the others of their label. The interval
    is a percentile bootstrap over rows, the thresholds held; never narrower than a share's of so many rows, since where
    no label is suspected no draw has one.
    """
    label = np.concatenate([joint.true, np.arange(joint.classes)])
    wrong = np.concatenate([joint.true != joint.predicted, np.zeros(joint.classes, bool)])
    sure = np.concatenate([np.ones(len(joint.true), bool), np.zeros(joint.classes, bool)])
    counts = np.concatenate([joint.count, unsure])
    kept = counts > 0
    label, wrong, sure, counts = label[kept], wrong[kept], sure[kept], counts[kept]
    n = int(counts.sum())

    def shares(drawn: npt.NDArray[np.int64]) -> Floats:
        """Of counts (k, cells)."""
        order = np.argsort(label, kind="stable")
        starts = np.flatnonzero(np.diff(label[order], prepend=-1))
        of_label, of_sure, of_wrong = (
            np.add.reduceat((drawn * which)[:, order], starts, axis=1) for which in (np.ones_like(sure), sure, wrong)
        )
        found: Floats = (of_label * of_wrong / np.maximum(of_sure, 1)).sum(axis=1) / n
        return found

    step = max(1, DRAWN_AT_ONCE // len(counts))
    drawn = [shares(rng.multinomial(n, counts / n, size=min(step, DRAWS - at))) for at in range(0, DRAWS, step)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    share = float(shares(counts[None])[0])
    least = binomial_interval(share * n, n)
    return share, (min(float(low), least[0]), max(float(high), least[1]))
