"""What stage one hands back: plain values, no work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ExtractResult:
    """What stage one did; ``cache`` is the file, ``new`` went through the trunk, ``reused`` were copied."""

    cache: Path
    key: str
    rows: int
    new: int
    reused: int
    failed: int
    seconds: float
    counts: dict[str, int]
    skipped: dict[str, int]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    batch: int | None = None
    shares: dict[str, float] | None = None
    images_per_second: float | None = None
    views: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "cache": str(self.cache)}


@dataclass
class Shares:
    """Busy seconds of each part of the job; ``waiting`` is the trunk's time without images.

    ``write`` is what its thread waits for the disk; the writing itself goes on beside it.
    """

    read: float = 0.0
    decode: float = 0.0
    transform: float = 0.0
    forward: float = 0.0
    write: float = 0.0
    waiting: float = 0.0


@dataclass(frozen=True)
class Work:
    """What one process did: images through the trunk, busy seconds, and the batch size in use at the end."""

    forwards: int
    shares: Shares
    batch: int | None
