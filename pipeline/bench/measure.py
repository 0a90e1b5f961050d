"""What a measurement is: ways run in turns, a figure for each repeat, and the floor that the median is held against.

Knows numbers and time, nothing of what is measured.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.base.watch import Watch


@dataclass(frozen=True)
class Bench:
    """What an entry works with: how many repeats, threads (None: as the libraries choose), and an empty folder.

    ``large`` asks for the sizes that take long, where an entry has such.
    """

    repeats: int
    folder: Path
    watch: Watch
    threads: int | None = None
    large: bool = False

    def alternate(self, what: str, ways: Mapping[str, Callable[[], float]]) -> dict[str, tuple[float, ...]]:
        """Run the ways in turns (A B A B ...), each ``repeats`` times; what each call returned, by way.

        The ways' own preparation and a first, unmeasured call where one is wanted are the entry's business.
        """
        found: dict[str, list[float]] = {name: [] for name in ways}
        with self.watch.track(what, self.repeats * len(ways), unit="runs") as bar:
            for _ in range(self.repeats):
                for name, way in ways.items():
                    found[name].append(way())
                    bar.advance()
        return {name: tuple(values) for name, values in found.items()}


@dataclass(frozen=True)
class Goal:
    """What the median must reach (``floor``) and should reach (``aim``).

    ``sense`` is ``least`` (at least the floor), ``most`` (at most) or ``exactly``; a floor of None is none.
    """

    floor: float | None
    aim: float | None = None
    sense: Literal["least", "most", "exactly"] = "least"

    def reached(self, value: float, bound: float) -> bool:
        """Whether ``value`` satisfies ``bound``; not-a-number never does."""
        if self.sense == "exactly":
            return value == bound
        return value >= bound if self.sense == "least" else value <= bound


@dataclass(frozen=True)
class Figure:
    """One line of the bench: ``each`` is its value in every repeat, ``ways`` the raw repeats that it was made of.

    ``ways`` maps a way to its repeats, in ``ways_unit``: for example ``{"plain eager": (8.1, 8.2)}`` in ``images/s``.
    ``unit`` is empty for a ratio.
    """

    entry: str
    name: str
    each: tuple[float, ...]
    ways: Mapping[str, tuple[float, ...]]
    ways_unit: str = ""
    unit: str = ""
    goal: Goal | None = None
    note: str = ""

    @property
    def value(self) -> float:
        """The median over the repeats."""
        return statistics.median(self.each)

    @property
    def floor_met(self) -> bool | None:
        """Whether the median reaches the floor; None where there is no floor."""
        if self.goal is None or self.goal.floor is None:
            return None
        return self.goal.reached(self.value, self.goal.floor)

    @property
    def aim_met(self) -> bool | None:
        """Whether the median reaches the aim; None where there is no aim."""
        if self.goal is None or self.goal.aim is None:
            return None
        return self.goal.reached(self.value, self.goal.aim)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; a value that is not finite is None."""
        return {
            "entry": self.entry,
            "name": self.name,
            "unit": self.unit or "ratio",
            "median": _plain(self.value),
            "lowest": _plain(min(self.each)),
            "highest": _plain(max(self.each)),
            "repeats": [_plain(v) for v in self.each],
            "ways": {name: [_plain(v) for v in values] for name, values in self.ways.items()},
            "ways_unit": self.ways_unit,
            "floor": self.goal and self.goal.floor,
            "aim": self.goal and self.goal.aim,
            "sense": self.goal and self.goal.sense,
            "floor_met": self.floor_met,
            "aim_met": self.aim_met,
            "note": self.note,
        }


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


Side = tuple[str, Sequence[float]]
"""What a ratio compares: a way's name, and its repeats."""


def ratio(
    entry: str,
    name: str,
    sides: tuple[Side, Side],
    unit: str,
    *,
    goal: Goal | None = None,
    note: str = "",
) -> Figure:
    """The first side ÷ the second, repeat by repeat; both are in ``unit``."""
    above, below = sides
    each = tuple(a / b for a, b in zip(above[1], below[1], strict=True))
    ways = {above[0]: tuple(above[1]), below[0]: tuple(below[1])}
    return Figure(entry, name, each, ways, unit, goal=goal, note=note)


def rate(count: float, work: Callable[[], object]) -> Callable[[], float]:
    """A way that does ``work`` and returns ``count`` per second."""

    def way() -> float:
        return count / seconds(work)

    return way


def seconds(work: Callable[[], object]) -> float:
    """Seconds that one call of ``work`` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
