"""Settings of the bench, and the names of its entries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.base import settings as st
from pipeline.base.errors import ConfigError

ENTRIES = (
    "trunk",
    "decode",
    "extract",
    "rerun",
    "read",
    "exact-one",
    "exact-path",
    "exact-cv",
    "evals",
    "batched",
    "epoch",
    "prefix",
    "finetune",
    "memory",
    "growth",
    "gpu-trunk",
    "gpu-extract",
    "gpu-heads",
    "gpu-finetune",
)
GPU_ENTRIES = tuple(name for name in ENTRIES if name.startswith("gpu-"))  # skipped where there is no GPU
ALL, GPU = "all", "gpu"


@dataclass(frozen=True)
class BenchSettings:
    """Settings of the bench."""

    entries: tuple[str, ...] = st.argument(
        f"what to measure: {', '.join(ENTRIES)}; {GPU} is all of those of a GPU", default=(ALL,), metavar="ENTRY"
    )
    repeats: int = st.option(5, "how often each way is run; the ways take turns", minimum=1)
    threads: int | None = st.option(None, "threads of the trunk; by default as many as PyTorch takes", minimum=1)
    large: bool = st.option(
        False, "growth: a cache of 300,000 rows, too (about 6 GB of disk); extract: 6,400 photographs; takes long"
    )
    out: Path | None = st.option(None, "folder for the JSON record; by default bench/ under the workspace")

    def __post_init__(self) -> None:
        st.check(self)
        for name in self.entries:
            if name not in (ALL, GPU, *ENTRIES):
                raise ConfigError(
                    f"bench entry {name!r} is not known: choose from {', '.join(ENTRIES)}{st.meant(name, ENTRIES)}"
                )

    @property
    def chosen(self) -> tuple[str, ...]:
        """The entries to run, each once, in the order of ENTRIES."""
        asked = {*self.entries, *(GPU_ENTRIES if GPU in self.entries else ())}
        return tuple(name for name in ENTRIES if name in asked or ALL in asked)
