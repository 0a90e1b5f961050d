"""What a stage shows: tables, curves and the like, as plain values.

Knows text, numbers and what they mean (a role), not how they look: ``pipeline.show`` draws them, on a terminal or as a
picture. Text may come from outside (a path, a class name): who draws it makes every byte of it legible.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["", "head", "best", "dim", "good", "bad", "frozen", "trained"]


@dataclass(frozen=True)
class Part:
    """A piece of text and what it is among the others."""

    text: str
    role: Role = ""


@dataclass(frozen=True)
class Bar:
    """A name and a share in [0, 1], drawn as a bar; those of one column begin at one place."""

    name: str
    share: float


Cell = str | Part | Bar | tuple[str | Part, ...]


@dataclass(frozen=True)
class Column:
    """A table's column: its heading, and what its cells are.

    ``fit`` says what gives way where there is little room: nothing (``whole``), or the cell goes on in the next line,
    broken between a name's parts (``name``), anywhere (``fold``: paths) or between words (``wrap``).
    """

    heading: str = ""
    right: bool = False
    fit: Literal["whole", "name", "fold", "wrap"] = "whole"
    role: Role = ""


def figures(*headings: str) -> list[Column]:
    """Columns of numbers."""
    return [Column(heading, right=True) for heading in headings]


@dataclass(frozen=True)
class Table:
    """Rows of as many cells as there are columns, under a title; below them a caption of one or more lines."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Step:
    """One of a few steps: what is done, in a word and in a sentence, and rows about it."""

    title: str
    detail: str
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Steps:
    """Numbered steps one under the other, each with a small table of the same columns."""

    columns: Sequence[Column]
    steps: Sequence[Step]


@dataclass(frozen=True)
class Curve:
    """Series of a value for each ``x``; a value that is not finite is missing.

    ``chosen`` is the x that was chosen, by the last of the series. ``shares`` says that the values are shares in
    [0, 1]; ``log_x`` that the x are spread by their logarithm. ``bands`` are what some of the series, by name, lie
    between, (low, high) for each x; ``dots`` the series that are known at single places, which are to be seen.
    """

    series: Mapping[str, Sequence[float]]
    x: Sequence[float]
    x_label: str
    y_label: str
    title: str = ""
    chosen: float | None = None
    shares: bool = False
    log_x: bool = False
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    dots: Collection[str] = ()


@dataclass(frozen=True)
class Matrix:
    """How often a classifier took which class for which: ``cells`` are (true class, predicted class, images).

    Each pair is there once, and none of 0: of thousands of classes few are confused with each other.
    """

    cells: Sequence[tuple[int, int, int]]
    classes: Sequence[str]


@dataclass(frozen=True)
class Heading:
    """A line that opens a part of a longer output."""

    text: str


Value = Table | Steps | Curve | Matrix | Heading


@dataclass(frozen=True)
class Scatter:
    """Points of a plane: ``x`` and ``y`` of each, the number of its ``group``, and whether it is ``marked``.

    ``groups`` are the groups' names. What the axes mean is nothing: near is alike. A picture, for no terminal.
    """

    x: Sequence[float]
    y: Sequence[float]
    group: Sequence[int]
    groups: Sequence[str]
    marked: Sequence[bool]
    title: str = ""


@dataclass(frozen=True)
class Bin:
    """Answers that claim about the same probability: its mean, the share that is right with its interval, how many."""

    claimed: float
    right: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True)
class Reliability:
    """How often answers are right that claim a probability; on the diagonal where they are as sure as they may be."""

    bins: Sequence[Bin]
    title: str = ""


Drawing = Curve | Scatter | Reliability
"""What is drawn as a picture with axes."""
