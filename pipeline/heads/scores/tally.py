"""The figures that heads are chosen by, of many heads in one pass over the rows; log-losses in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.base.errors import HeadError
from pipeline.heads.artifact import Head
from pipeline.heads.choice import METRICS
from pipeline.heads.scores.metrics import shares
from pipeline.heads.standardize import copied, row_chunks

COLUMNS = 1 << 14  # logits of a row that are made together: heads x classes
NUMBERS = 1 << 22  # logits that are held together: 32 MB as float64

Linear = tuple[npt.NDArray[Any], npt.NDArray[Any]]  # a head's weight (C, D) and bias (C,), for raw features


class Tally:
    """Counts and losses of F heads for C classes, added up from rows in any order and any number of pieces."""

    def __init__(self, heads: int, classes: int) -> None:
        self.rows = 0
        self._classes = classes
        self._right, self._guesses = (np.zeros((heads, classes), np.int64) for _ in range(2))
        self._support, self._loss = np.zeros(classes, np.int64), np.zeros(heads)

    def add(self, logits: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> None:
        """Logits (n, C) of a tally's only head for rows with labels (n,); of equal ones the first class is meant.

        Raises:
            HeadError: logits that are not finite.
        """
        self._count(y)
        size = max(1, NUMBERS // self._classes)
        for start in range(0, len(y), size):
            self._add(0, torch.from_numpy(logits[start : start + size])[:, None], y[start : start + size])

    def add_linear(self, heads: Sequence[Linear], X: npt.NDArray[Any], y: npt.NDArray[np.int64]) -> None:
        """What each of the F heads says of rows X (n, D) with labels (n,): a pass over the rows for all that fit in.

        Raises:
            HeadError: logits that are not finite.
        """
        self._count(y)
        together = max(1, COLUMNS // self._classes)
        for first in range(0, len(heads), together):
            group = heads[first : first + together]
            weight, bias = (np.concatenate(part).astype(np.float32) for part in zip(*group, strict=True))
            by_class, shift = torch.from_numpy(weight.T), torch.from_numpy(bias)
            size = max(1, NUMBERS // len(bias))
            for start, chunk in row_chunks(X):
                for at in range(0, len(chunk), size):
                    rows = copied(chunk[at : at + size])
                    logits = torch.addmm(shift, rows, by_class).view(len(rows), len(group), -1)
                    self._add(first, logits, y[start + at : start + at + len(rows)])

    def figures(self) -> list[dict[str, float]]:
        """Each head's figures by name, ``METRICS`` of them, as :func:`~.metrics.classification_report` has them."""
        there, found = self._support > 0, []
        for right, guesses, loss in zip(self._right, self._guesses, self._loss.tolist(), strict=True):
            f1 = shares(2.0 * right, self._support + guesses)
            told = {
                "log_loss": loss / self.rows,
                "accuracy": float(right.sum() / self.rows),
                "balanced_accuracy": float(shares(right, self._support)[there].mean()),
                "macro_f1": float(f1[there].mean()),
            }
            found.append({name: told[name] for name in METRICS})
        return found

    def _count(self, y: npt.NDArray[np.int64]) -> None:
        self.rows += len(y)
        self._support += np.bincount(y, minlength=self._classes)

    def _add(self, first: int, logits: torch.Tensor, y: npt.NDArray[np.int64]) -> None:
        """Logits (m, f, C) of the heads from number ``first`` on."""
        m, f, classes = logits.shape
        here, of_head = slice(first, first + f), np.arange(f) * classes
        guess = logits.argmax(dim=2).numpy()  # (m, f)
        own = torch.from_numpy(y)[:, None, None].expand(m, f, 1)
        exact = logits.double()
        losses = torch.logsumexp(exact, dim=2) - exact.gather(2, own)[..., 0]
        if not torch.isfinite(exact).all():
            raise HeadError("logits are NaN or infinite: the head or the features are damaged")
        self._loss[here] += losses.sum(dim=0).numpy()
        hit = guess == y[:, None]
        for counts, places in ((self._guesses, guess + of_head), (self._right, (guess + of_head)[hit])):
            counts[here] += np.bincount(places.ravel(), minlength=f * classes).reshape(f, classes)


def linear_figures(heads: Sequence[Linear], X: npt.NDArray[Any], y: npt.NDArray[np.int64]) -> list[dict[str, float]]:
    """The figures by name of each of the heads on rows X (n, D) with labels (n,)."""
    tally = Tally(len(heads), len(heads[0][1]))
    tally.add_linear(heads, X, y)
    return tally.figures()


def head_figures(head: Head, X: npt.NDArray[Any], y: npt.NDArray[np.int64]) -> dict[str, float]:
    """The figures by name of a head of any kind on rows X (n, D) with labels (n,), a piece of them at a time."""
    tally = Tally(1, len(head.classes))
    for start, chunk in row_chunks(X):
        tally.add(head.logits(chunk), y[start : start + len(chunk)])
    return tally.figures()[0]
