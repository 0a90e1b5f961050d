"""The workspace: the folder that holds what stages make, and who hears of it while they do.

The one place that spells the names of its folders. Knows paths; makes none of them, and clears drafts out of them.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.base.files import sweep
from pipeline.base.watch import Watch

VARIABLE = "PIPELINE_WORKSPACE"
DEFAULT = "cache"
_FEATURES, _RUNS = "features", "runs"
HELP = f"folder for features, runs, weights and downloaded data (default: ${VARIABLE}, or {DEFAULT})"


@dataclass(frozen=True)
class Workspace:
    """Where things lie (``root``), and who is told (``watch``): what every stage is handed besides its settings."""

    root: Path
    watch: Watch = field(default_factory=Watch)
    named: bool = True  # by whoever calls: then it holds, whatever else is named by a path

    @classmethod
    def at(cls, root: str | os.PathLike[str] | None, watch: Watch | None = None) -> Workspace:
        """The workspace at ``root``; None means what the environment variable PIPELINE_WORKSPACE says, or ``cache``."""
        named = root or os.environ.get(VARIABLE)
        return cls(Path(named or DEFAULT), watch or Watch(), named=bool(named))

    def holding(self, path: str) -> Workspace:
        """The workspace that a cache or a run lies in which is given by its path, unless a workspace was named.

        What is made of it then lies beside it. Of what is no such path, this workspace.
        """
        place = Path(os.path.abspath(path))
        root = place.parent.parent
        if self.named or place.parent not in (root / _FEATURES, root / _RUNS) or not place.exists():
            return self
        return self if root == Path(os.path.abspath(self.root)) else replace(self, root=root)

    def sweep(self) -> None:
        """Remove the drafts that killed jobs left, wherever a job writes; those of live ones stay."""
        folders = [self.root, *self._folders]
        for place in (self.runs, self.tuning):
            with contextlib.suppress(OSError):
                folders += [place / name for name in os.listdir(place) if name[0] != "."]
        folders += [folder / "chosen" for folder in folders if folder.parent == self.tuning]
        for folder in folders:
            with contextlib.suppress(OSError):  # not there, or not ours to look into: the job itself says what is wrong
                sweep(folder)

    @property
    def _folders(self) -> tuple[Path, ...]:
        return (
            self.features,
            self.runs,
            self.maps,
            self.tuning,
            self.weights,
            self.data,
            self.engines,
            self.bench,
            self.reports,
        )

    def silent(self) -> Workspace:
        """The same place, with nobody listening."""
        return replace(self, watch=Watch())

    @property
    def features(self) -> Path:
        """Feature caches."""
        return self.root / _FEATURES

    @property
    def runs(self) -> Path:
        """What training leaves: a folder for each run."""
        return self.root / _RUNS

    @property
    def tested(self) -> Path:
        """Which runs have been scored on which test rows, a line each; stays when runs are deleted."""
        return self.root / "tested.jsonl"

    @property
    def maps(self) -> Path:
        """Maps before the stage that is fine-tuned."""
        return self.root / "maps"

    @property
    def tuning(self) -> Path:
        """States of fine-tunings that are under way."""
        return self.root / "tuning"

    @property
    def weights(self) -> Path:
        """Downloaded weights, and the identity of all that were used."""
        return self.root / "weights"

    @property
    def data(self) -> Path:
        """Sets of images that were downloaded or made."""
        return self.root / "data"

    @property
    def engines(self) -> Path:
        """Exported engines."""
        return self.root / "engines"

    @property
    def bench(self) -> Path:
        """Records of benchmarks."""
        return self.root / "bench"

    @property
    def reports(self) -> Path:
        """Pages about runs, and what was computed for them."""
        return self.root / "reports"
