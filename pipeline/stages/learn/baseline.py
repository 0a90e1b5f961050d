"""Stage two, for comparison: what simple methods make of the rows that a head learns from.

Nothing here chooses on val or test: a baseline has fixed settings or, for ridge, chooses on train alone, so both are
scored side by side.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base import settings as st
from pipeline.base.errors import HeadError
from pipeline.base.items import SPLITS
from pipeline.base.machine import cores
from pipeline.base.watch import Tracker
from pipeline.base.workspace import Workspace
from pipeline.heads.baselines import SHUFFLED, BaselineResult, run_baselines
from pipeline.heads.problem import Problem, Split
from pipeline.images import Geometry
from pipeline.runs import folder as runs
from pipeline.runs.folder import cache_record
from pipeline.runs.pixels import pixel_batches
from pipeline.show.tables import results_table
from pipeline.stages.learn.settings import BaselineSettings
from pipeline.store import Cache
from pipeline.store.find import find_cache
from pipeline.store.rows import Rows, load_rows

STATISTICS = "image-statistics"
THUMBNAIL = 4  # cells in each direction
BATCH = 64  # images


@dataclass(frozen=True)
class BaselineReport:
    """The baselines' figures: a list of ``name val test macro_f1 seconds converged note``."""

    run: Path
    results: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"run": str(self.run), "results": self.results}


def baseline(settings: BaselineSettings, desk: Workspace) -> BaselineReport:
    """Baselines with settings made."""
    cache = find_cache(settings.cache, desk)
    splits = {name: load_rows(cache, name) for name in SPLITS[1:]}
    if not len(splits["train"]):
        raise HeadError(f"{cache.path.name} has no labelled train rows: extract a source with train images")
    desk.watch.say(
        f"{cache.path.name}: " + ", ".join(f"{len(rows):,} {name}" for name, rows in splits.items()) + " rows"
    )
    statistics = _image_statistics(cache, desk) if settings.floors else None
    names = (*settings.names, SHUFFLED) if settings.floors else settings.names
    with desk.watch.track("baselines", len(names) + settings.floors, unit="fits") as tracker:
        results = _fit(cache, splits, names, settings.max_iter, tracker)
        if statistics is not None:
            (plain,) = _fit(cache, statistics, ("logreg",), settings.max_iter, tracker)
            note = f"mean and deviation of each colour, {THUMBNAIL} × {THUMBNAIL} grey thumbnail; {plain.note}"
            results.append(dataclasses.replace(plain, name=STATISTICS, note=note))
    record = [dataclasses.asdict(r) for r in results]
    desk.watch.show(results_table(record, "Baselines, trained on the same rows"))
    name = cache.path.name.removesuffix(".h5")
    with runs.new_run(desk, stage="baseline", name=name, settings=st.record(settings), about=cache_record(cache)) as (
        draft,
        folder,
    ):
        draft.write_json("metrics.json", {"results": record})
    return BaselineReport(run=folder, results=record)


def _fit(
    cache: Cache, splits: dict[str, Rows], names: tuple[str, ...], max_iter: int, tracker: Tracker
) -> list[BaselineResult]:
    val, test = (Split(rows.X, rows.y) if len(rows) else None for rows in (splits["val"], splits["test"]))
    problem = Problem(splits["train"].X, splits["train"].y, len(cache.classes), class_names=cache.classes, val=val)
    results = []
    for result in run_baselines(problem, test, names=names, max_iter=max_iter):
        results.append(result)
        tracker.advance()
    return results


def _image_statistics(cache: Cache, desk: Workspace) -> dict[str, Rows]:
    """Of each split's labelled good rows the statistics of their images, read anew.

    Raises:
        DataError: an image is gone or has changed.
    """
    transform = cache.provenance["transform"]
    geometry = Geometry(
        resize=transform["resize"], crop=transform["crop"], interpolation=transform["interpolation"], view=None
    )
    found = {}
    for split in SPLITS[1:]:
        rows = cache.rows(split)
        rows = rows[cache.labels[rows] >= 0]
        batches = pixel_batches(cache, rows.tolist(), geometry=geometry, size=BATCH, workers=cores())
        parts = [np.zeros((0, 6 + THUMBNAIL**2), np.float32)]
        with desk.watch.track(f"{split} images", len(rows)) as tracker:
            for _, pixels in batches:
                parts.append(pixel_statistics(pixels))
                tracker.advance(len(pixels))
        found[split] = Rows(np.concatenate(parts), cache.labels[rows])
    return found


def pixel_statistics(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Of images (n, 3, S, S), S >= 4, each colour's mean and deviation and a 4 × 4 thumbnail of their mean: (n, 22)."""
    whole = pixels.astype(np.float32)
    edges = np.linspace(0, pixels.shape[-1], THUMBNAIL + 1).astype(int)
    grey = np.add.reduceat(np.add.reduceat(whole.mean(axis=1), edges[:-1], axis=1), edges[:-1], axis=2)
    thumbnail = grey / np.outer(np.diff(edges), np.diff(edges))
    return np.concatenate(
        [whole.mean(axis=(2, 3)), whole.std(axis=(2, 3)), thumbnail.reshape(len(pixels), -1)], axis=1, dtype=np.float32
    )
