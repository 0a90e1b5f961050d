"""Stage two, for comparison: what simple methods make of the rows that a head learns from.

Nothing here chooses on val or test: a baseline has fixed settings or, for ridge, chooses on train alone, so its figure
on val is as honest as one on test. Test is scored when asked for, through ``pipeline.stages.score``, as one run.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import HeadError
from pipeline.base.machine import cores
from pipeline.base.spelling import option
from pipeline.base.watch import Tracker
from pipeline.base.workspace import Workspace
from pipeline.heads.baselines import SHUFFLED, BaselineResult, run_baselines
from pipeline.heads.problem import Problem, Split
from pipeline.runs import folder as runs
from pipeline.runs import remarks
from pipeline.runs.folder import cache_record
from pipeline.runs.pixels import labelled, pixel_batches
from pipeline.runs.recipe import geometry_of, provenance_of, require_ours
from pipeline.show.tables import results_table
from pipeline.stages.learn.settings import BaselineSettings
from pipeline.stages.score.ledger import Scorer
from pipeline.stages.score.sealed import open_test, require_test
from pipeline.store import Cache
from pipeline.store.find import find_cache
from pipeline.store.rows import Rows, load_rows

STATISTICS = "image-statistics"
THUMBNAIL = 4  # cells in each direction
BATCH = 64  # images


@dataclass(frozen=True)
class BaselineReport:
    """The baselines' figures: a list of ``name val test macro_f1 seconds converged note``.

    ``test`` and ``macro_f1`` are None unless test was asked for; then ``scored_before`` is how many other runs had been
    scored on these test rows.
    """

    run: Path
    results: list[dict[str, Any]]
    scored_before: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "run": str(self.run)}


def baseline(settings: BaselineSettings, desk: Workspace) -> BaselineReport:
    """Baselines with settings made."""
    cache = find_cache(settings.cache, desk)
    require_ours(cache)
    features = _features(cache, settings, desk)
    remarks.random_features(cache.about, desk.watch)
    remarks.left_out(cache, ("none", "train", "val"), desk.watch, to_learn=True)
    pixels = {}
    if settings.floors:
        pixels = {split: _image_statistics(cache, split, labelled(cache, split), desk) for split in features}
    name, about = cache.path.name.removesuffix(".h5"), cache_record(cache)
    with runs.new_run(desk, stage="baseline", name=name, settings=settings, about=about) as (
        draft,
        folder,
    ):
        before = None
        if settings.test:
            test = open_test(cache, Scorer(folder.name, draft.folder.name), desk)
            before, features["test"] = test.scored_before, test.rows
            if settings.floors:
                pixels["test"] = _image_statistics(cache, "test", test.at, desk)
        record = [dataclasses.asdict(r) for r in _results(cache, features, pixels, settings, desk)]
        draft.write_json("metrics.json", {"results": record, "scored_before": before})
    desk.watch.result(results_table(record, "Baselines, trained on the same rows"))
    return BaselineReport(run=folder, results=record, scored_before=before)


def _features(cache: Cache, settings: BaselineSettings, desk: Workspace) -> dict[str, Rows]:
    """Train and val rows.

    Raises:
        HeadError: no train rows, or none to score.
    """
    found = {split: load_rows(cache, split) for split in ("train", "val")}
    if not len(found["train"]):
        raise HeadError(f"{cache.path.name} has no labelled train rows: extract a source with train images")
    if settings.test:
        require_test(cache)
    elif not len(found["val"]):
        raise HeadError(
            f"{cache.path.name} has no labelled val rows to score on: extract with {option('val_fraction')} "
            "above 0, or "
            f"give {option('test', True)}"
        )
    counts = ", ".join(f"{len(rows):,} {split}" for split, rows in found.items())
    desk.watch.say(f"{cache.path.name}: {counts} rows")
    return found


def _results(
    cache: Cache, features: dict[str, Rows], pixels: dict[str, Rows], settings: BaselineSettings, desk: Workspace
) -> list[BaselineResult]:
    """Every baseline on rows by split; that of the pixels' statistics where there are any."""
    names = (*settings.names, SHUFFLED) if settings.floors else settings.names
    with desk.watch.track("baselines", len(names) + settings.floors, unit="fits") as tracker:
        results = _fit(cache, features, names, settings.max_iter, tracker)
        if pixels:
            (plain,) = _fit(cache, pixels, ("logreg",), settings.max_iter, tracker)
            note = f"mean and deviation of each colour, {THUMBNAIL} × {THUMBNAIL} grey thumbnail; {plain.note}"
            results.append(dataclasses.replace(plain, name=STATISTICS, note=note))
    return results


def _fit(
    cache: Cache, splits: dict[str, Rows], names: tuple[str, ...], max_iter: int, tracker: Tracker
) -> list[BaselineResult]:
    val, test = (
        Split(rows.X, rows.y) if rows is not None and len(rows) else None
        for rows in (splits["val"], splits.get("test"))
    )
    problem = Problem(splits["train"].X, splits["train"].y, len(cache.classes), class_names=cache.classes, val=val)
    results = []
    for result in run_baselines(problem, test, names=names, max_iter=max_iter):
        results.append(result)
        tracker.advance()
    return results


def _image_statistics(cache: Cache, split: str, rows: NDArray[np.int64], desk: Workspace) -> Rows:
    """Of cache rows (n,), which are a split's, the statistics of their images, read anew.

    Raises:
        DataError: an image is gone or has changed.
    """
    geometry = geometry_of(provenance_of(cache))
    parts = [np.zeros((0, 6 + THUMBNAIL**2), np.float32)]
    with desk.watch.track(f"{split} images", len(rows)) as tracker:
        for _, pixels in pixel_batches(cache, rows.tolist(), geometry=geometry, size=BATCH, workers=cores()):
            parts.append(pixel_statistics(pixels))
            tracker.advance(len(pixels))
    return Rows(np.concatenate(parts), cache.labels[rows])


def pixel_statistics(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Of images (n, 3, S, S), S >= 4, each colour's mean and deviation and a 4 × 4 thumbnail of their mean: (n, 22)."""
    whole = pixels.astype(np.float32)
    edges = np.linspace(0, pixels.shape[-1], THUMBNAIL + 1).astype(int)
    grey = np.add.reduceat(np.add.reduceat(whole.mean(axis=1), edges[:-1], axis=1), edges[:-1], axis=2)
    thumbnail = grey / np.outer(np.diff(edges), np.diff(edges))
    return np.concatenate(
        [whole.mean(axis=(2, 3)), whole.std(axis=(2, 3)), thumbnail.reshape(len(pixels), -1)], axis=1, dtype=np.float32
    )
