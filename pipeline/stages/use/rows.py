"""`pipeline rows`: a cache's features, or a run's probabilities, row by row as a table for other programs.

Rows are read and written a chunk at a time: what is held is a chunk and the names.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ConfigError, DataError
from pipeline.base.files import make_folder, try_writing, whole, writing
from pipeline.base.machine import resolve_device
from pipeline.base.spelling import option
from pipeline.base.words import many
from pipeline.base.workspace import Workspace
from pipeline.heads.scores.metrics import softmax
from pipeline.runs import folder as runs
from pipeline.runs.network import logits_of_rows, temperature_of
from pipeline.stages.score.answers import opened_rows, require_head
from pipeline.stages.use import tables
from pipeline.stages.use.results import RowsResult
from pipeline.stages.use.settings import RowsSettings
from pipeline.stages.use.target import find_target
from pipeline.store import Cache, Features

CHUNK_BYTES = 16 << 20


@dataclass(frozen=True, eq=False)
class Selection:
    """Rows of a cache by their splits; ``run`` is whose probabilities of them are meant, if it is not the features."""

    cache: Cache
    parts: dict[str, NDArray[np.int64]]
    run: runs.Run | None
    device: str
    desk: Workspace

    def __len__(self) -> int:
        """How many there are."""
        return sum(map(len, self.parts.values()))

    @property
    def about(self) -> tables.About:
        """What the table's columns are."""
        kind, dtype = ("features", self.cache.dtype) if self.run is None else ("probabilities", np.dtype(np.float64))
        width = self.cache.dim if self.run is None else len(self.cache.classes)
        return tables.About(kind, dtype, width, self.cache.classes, len(self))

    def names(self) -> Iterator[tables.Names]:
        """Ids, labels and splits, in the order of :meth:`chunks`."""
        ids, labels = self.cache.ids, self.cache.labels
        for split, rows in self.parts.items():
            for start in range(0, len(rows), tables.NAMES):
                part = rows[start : start + tables.NAMES]
                yield tables.Names([os.fsdecode(ids[row]) for row in part.tolist()], labels[part], split)

    def chunks(self) -> Iterator[tuple[tables.Names, NDArray[Any]]]:
        """Names and values (m, D) or (m, C) of a few rows at a time."""
        ids, labels = self.cache.ids, self.cache.labels
        for split, rows in self.parts.items():
            for part, values in self._values(rows):
                yield tables.Names([os.fsdecode(ids[row]) for row in part.tolist()], labels[part], split), values

    def _values(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        size = max(1, CHUNK_BYTES // (self.cache.dim * 4))
        if self.run is not None:
            temperature = temperature_of(self.run)
            for part, logits in logits_of_rows(self.run, self.cache, rows, size, self.desk, device=self.device):
                yield part, softmax(logits / temperature)
            return
        start = 0
        for values, y in Features(self.cache, rows).batches(size):
            part = rows[start : start + len(y)]
            self.cache.verify(part)
            yield part, values
            start += len(y)


def rows(settings: RowsSettings, desk: Workspace) -> RowsResult:
    """Write the table with settings made."""
    out = settings.out
    assert out is not None
    write = tables.WRITERS[out.suffix]
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        cure = "pip install pyarrow, or give a file that ends in .npz or .csv"
        raise ConfigError(f"{option('out', out)} needs pyarrow: {cure}")
    target = find_target(settings.target, desk)
    run = None if isinstance(target, Cache) else target
    if out.exists():
        raise ConfigError(f"{out} is there already: remove it, or give another {option('out')}")
    with writing(out.parent, ConfigError, f"give another {option('out')}"):
        make_folder(out.parent)
        try_writing(out.parent)
    if run is None:
        assert isinstance(target, Cache)
        cache = target
    else:
        require_head(run)
        cache = runs.cache_of(run)
    # A device that is not there is told of before a look at test rows is put on record; a head needs none.
    device = resolve_device(settings.device) if run is not None and run.stage == "finetune" else settings.device
    parts, before = opened_rows(run, cache, settings.split, desk)
    chosen = Selection(cache, parts, run, device, desk)
    if not len(chosen):
        raise DataError(f"{cache.path.name} has no good rows of {', '.join(settings.split or ('any split',))}")
    follow = desk.watch.track("rows", len(chosen), unit="rows")
    with writing(out.parent, ConfigError, f"give another {option('out')}"), whole(out) as draft, follow as tracker:
        write(draft, chosen.about, chosen.names, chosen.chunks, tracker)
    counts = {split: len(found) for split, found in parts.items()}
    splits = ", ".join(f"{n:,} {split}" for split, n in counts.items())
    about = chosen.about
    desk.watch.result(f"{many(len(chosen), 'row')} ({splits}) with {about.width:,} {about.kind} -> {out}")
    return RowsResult(out, about.kind, counts, about.width, before)
