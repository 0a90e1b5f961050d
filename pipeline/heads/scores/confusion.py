"""Which class was taken for which: a confusion matrix as the cells of it that are not 0.

Of N rows no more than N cells are, however many classes there are: 10,000 of them make 100,000,000 cells in all. Knows
counts only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

DENSE = 100  # classes up to which a record holds all cells, row by row


class Cells(TypedDict):
    """A confusion in a record: of each cell that is not 0 its class, the predicted one, and how many rows."""

    true: list[int]
    predicted: list[int]
    count: list[int]


@dataclass(frozen=True, eq=False)
class Confusion:
    """The cells (k,) of a matrix (C, C) that are not 0, ascending: true class, predicted class, and rows."""

    classes: int  # C
    true: Counts
    predicted: Counts
    count: Counts

    @classmethod
    def of(cls, y: npt.NDArray[Any], predicted: npt.NDArray[Any], classes: int) -> Confusion:
        """Of labels and predicted classes (N,), 0 ... classes - 1."""
        cells, count = np.unique(y.astype(np.int64) * classes + predicted, return_counts=True)
        return cls(classes, *np.divmod(cells, max(1, classes)), count.astype(np.int64))

    @classmethod
    def of_table(cls, table: npt.ArrayLike) -> Confusion:
        """Of a matrix (C, C) of counts, true class by row, predicted class by column."""
        counts = np.asarray(table, np.int64)
        true, predicted = np.nonzero(counts)
        return cls(len(counts), true.astype(np.int64), predicted.astype(np.int64), counts[true, predicted])

    @property
    def rows(self) -> int:
        """How many rows were counted."""
        return int(self.count.sum())

    @property
    def right(self) -> Counts:
        """(C,): rows of each class that are predicted as it."""
        hit = self.true == self.predicted
        return self._summed(self.true[hit], self.count[hit])

    @property
    def support(self) -> Counts:
        """(C,): rows of each class."""
        return self._summed(self.true, self.count)

    @property
    def guesses(self) -> Counts:
        """(C,): rows that are predicted as each class."""
        return self._summed(self.predicted, self.count)

    def _summed(self, classes: Counts, count: Counts) -> Counts:
        found = np.zeros(self.classes, np.int64)
        np.add.at(found, classes, count)
        return found

    def table(self) -> Counts:
        """The matrix (C, C)."""
        found = np.zeros((self.classes, self.classes), np.int64)
        found[self.true, self.predicted] = self.count
        return found

    def record(self) -> list[list[int]] | Cells:
        """As plain JSON values: up to DENSE classes the matrix row by row, beyond them its cells."""
        if self.classes <= DENSE:
            rows: list[list[int]] = self.table().tolist()
            return rows
        return {"true": self.true.tolist(), "predicted": self.predicted.tolist(), "count": self.count.tolist()}


def confusion_from(record: list[list[int]] | Cells, classes: int) -> Confusion | None:
    """What :meth:`Confusion.record` gave of so many classes; None where it can have given no such thing.

    Records from before there were cells hold the matrix, of however many classes.
    """
    if isinstance(record, list):
        square = len(record) == classes and all(len(row) == classes and min(row) >= 0 for row in record)
        return Confusion.of_table(np.array(record, np.int64).reshape(classes, classes)) if square else None
    true, predicted, count = (np.array(record[name], np.int64) for name in ("true", "predicted", "count"))
    if not len(true) == len(predicted) == len(count):
        return None
    within = all(((part >= 0) & (part < classes)).all() for part in (true, predicted))
    places = true * classes + predicted
    once = (np.diff(places) > 0).all()
    return Confusion(classes, true, predicted, count) if within and once and (count > 0).all() else None
