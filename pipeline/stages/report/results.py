"""What a report hands back: plain values, no work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Lacking:
    """A part that a page does not have, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class ReportResult:
    """The page's ``file``, its ``bytes``, the runs that it is of, and the seconds that it took.

    ``images`` are in it, ``without_room`` had none, ``gone`` are not where they were; ``lacking`` are the parts that it
    does not have. ``pictures`` are files, where they were asked for.
    """

    file: Path
    bytes: int
    runs: tuple[Path, ...]
    seconds: float
    images: int
    without_room: int
    gone: int
    lacking: tuple[Lacking, ...]
    pictures: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        paths = {"file": str(self.file), "runs": [str(run) for run in self.runs]}
        return {**dataclasses.asdict(self), **paths, "pictures": [str(file) for file in self.pictures]}
