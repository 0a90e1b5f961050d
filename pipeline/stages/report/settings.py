"""Settings of a report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.base import settings as st
from pipeline.base.errors import ConfigError
from pipeline.base.settings import LATEST, RUN_HELP
from pipeline.base.spelling import option

ENDINGS = (".html", ".htm")
MOST = 8  # runs that can be looked at side by side
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class ReportSettings:
    """Settings of the page."""

    runs: tuple[str, ...] = st.argument(
        f"{RUN_HELP}; several to see them side by side", default=(LATEST,), metavar="RUN", made=True
    )
    out: Path | None = st.option(
        None,
        "the file to write, FILE.html; by default in the workspace's reports, named as the runs are",
        metavar="FILE",
    )
    max_mb: float = st.option(
        8.0, "how large the file may be, in megabytes: images that have no room are named without being shown", above=0
    )
    pictures: Path | None = st.option(
        None,
        "also write each picture as a file of its own into this folder, charts as SVG, matrices as PNG",
        metavar="DIR",
    )
    seed: int = st.option(
        0, "seed of the map of features (its sample, its layout) and of the interval of wrong labels", minimum=0
    )
    device: str = st.device()

    def __post_init__(self) -> None:
        st.check(self)
        if not math.isfinite(self.max_mb):
            raise ConfigError(f"{option('max_mb', self.max_mb)}: it must be a number of megabytes")
        if self.out is not None and self.out.suffix not in ENDINGS:
            raise ConfigError(f"{option('out', self.out)} must end in .html")
        if len(self.runs) > MOST:
            raise ConfigError(f"{len(self.runs)} runs: give {MOST} at most, more cannot be looked at side by side")

    @property
    def limit(self) -> int:
        """The most bytes that the file may have."""
        return int(self.max_mb * MEGABYTE)
