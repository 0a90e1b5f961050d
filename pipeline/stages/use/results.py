"""What the commands that use a run hand back: plain values, no work."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.show.steps import ModelStep


@dataclass(frozen=True)
class Prediction:
    """One image: the likeliest class, its probability, and the ``top`` classes as (name, probability).

    ``class_name`` is None where the probability is below the threshold, and where the image cannot be used; then
    ``error`` says why, ``probability`` is None and ``top`` is empty. ``probabilities`` of all classes, in the run's
    order, are there where they were asked for (``all``).
    """

    path: str
    class_name: str | None
    probability: float | None
    top: tuple[tuple[str, float], ...]
    error: str | None = None
    probabilities: Mapping[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: ``path class probability top``, and if there are any ``probabilities``, ``error``."""
        top = [{"class": name, "probability": p} for name, p in self.top]
        plain = {"path": self.path, "class": self.class_name, "probability": self.probability, "top": top}
        more = {"probabilities": self.probabilities, "error": self.error}
        return {**plain, **{name: value for name, value in more.items() if value is not None}}


class Predictions(list[Prediction]):
    """Predictions in the order of the images; ``unusable`` of what was asked for by name gave none."""

    unusable = 0

    @property
    def exit_status(self) -> int:
        """What the command line ends with: 1 where something that was named gave no image."""
        return 1 if self.unusable else 0

    def to_json(self) -> list[dict[str, Any]]:
        """Plain JSON values."""
        return [p.to_json() for p in self]


def class_columns(classes: Iterable[str], fixed: Iterable[str]) -> list[str]:
    """A column for each class by its name; one that is called as a ``fixed`` column is has ``class`` before it."""
    taken, columns = set(fixed), []
    for name in classes:
        column = name
        while column in taken:
            column = f"class {column}"
        taken.add(column)
        columns.append(column)
    return columns


@dataclass(frozen=True)
class ExportResult:
    """The file, its card, and the largest difference from the model at each batch size, as a share of its logits."""

    file: Path
    card: Path
    format: str
    parity: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "file": str(self.file), "card": str(self.card)}


@dataclass(frozen=True)
class RowsResult:
    """The file, whether it holds ``features`` or ``probabilities``, how many rows of each split, and how many values.

    ``scored_before``: how many other runs had been scored on these test rows; None where none were looked at.
    """

    file: Path
    kind: str
    rows: dict[str, int]
    width: int
    scored_before: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "file": str(self.file)}


@dataclass(frozen=True)
class TraceReport:
    """The steps, each with its layers' output shapes, parameter counts and states."""

    trunk: str
    image_size: int
    classes: int
    steps: Sequence[ModelStep]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)
