"""Which bounds int8 computes between: those of the cache that is there, of another one, or new ones.

New ones are found on images of the source that are neither val's nor test's. They decide numbers, so they are part of
the key; they are kept beside the cache, and a source whose images come and go keeps them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import images, store
from pipeline.base.errors import ConfigError, DataError
from pipeline.base.files import write_json
from pipeline.base.items import TEST, VAL
from pipeline.base.machine import cores
from pipeline.base.precision import bits_of_weights
from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace
from pipeline.images import MAX_PIXELS, Limits, Loader
from pipeline.runs.recipe import Recipe, calibration_of, provenance_of
from pipeline.stages.extract import words
from pipeline.stages.extract.digests import read_digests
from pipeline.stages.extract.settings import ExtractSettings
from pipeline.store.companions import calibration_path
from pipeline.store.find import find_cache
from pipeline.trunk.calibration import Calibration

CALIBRATED_ON = 64  # images; 32 give bounds as good and 128 none better
LEAST = 16
_AMONG = 4 * CALIBRATED_ON  # spread over the source; of them those with the lowest digests are taken
_DECIDING = ("trunk", "weights", "transform", "precision", "engine")  # fields by which bounds are those of a network


def calibration_from(spec: str, recipe: Recipe, desk: Workspace) -> Calibration:
    """The bounds of the cache that is named.

    Raises:
        ConfigError: it has none, or those of another network.
        CacheError: there is no such cache, or its bounds are gone.
    """
    cache = find_cache(spec, desk)
    there, asked = provenance_of(cache), recipe.provenance()
    if there["precision"] != "int8":
        raise ConfigError(
            f"{option('calibration', spec)} is a cache of features in {there['precision']}: give one in int8, or none"
        )
    differing = [
        f"{name}: {theirs!r} there, {ours!r} asked for"
        for name, theirs, ours in store.difference(cache.provenance, asked)
        if name.split(".")[0] in _DECIDING
    ]
    if differing:
        raise ConfigError(
            f"{option('calibration', spec)} has the bounds of another network ({'; '.join(differing)}): give another "
            "cache, or none"
        )
    found = calibration_of(cache)
    assert found is not None
    return found


def kept_calibration(caches: Iterable[store.Cache], recipe: Recipe) -> Calibration | None:
    """The bounds of the first of the caches, begun or finished, that has the network's features in int8.

    Raises:
        CacheError: its bounds are gone.
    """
    asked = recipe.provenance()
    for cache in caches:
        if all(cache.provenance.get(name) == asked[name] for name in _DECIDING):
            return calibration_of(cache)
    return None


def new_calibration(
    s: ExtractSettings, desk: Workspace, listing: images.Listing, recipe: Recipe, digests: NDArray[np.uint8]
) -> Calibration:
    """Bounds found now; what is read of ``digests`` (N, 32), all zero at first, is put into them.

    Raises:
        DataError: too few images of the source can be read that are not val's or test's.
        ConfigError, WeightsError: the network cannot be had, or not be exported.
    """
    chosen = _chosen(s, desk, listing, digests)
    geometry, limits, ids = recipe.geometry(), Limits(s.max_pixels or MAX_PIXELS), listing.ids
    pixels: list[NDArray[np.uint8]] = []
    used: list[str] = []
    with Loader(listing.images, geometry, workers=s.workers or cores(), ahead=LEAST, limits=limits) as loader:
        for loaded in loader.load((row, ids[row]) for row in chosen):
            if loaded.pixels is not None and loaded.digest.hex() not in used:
                pixels.append(loaded.pixels)
                used.append(loaded.digest.hex())
            if len(used) == CALIBRATED_ON:
                break
    if len(used) < LEAST:
        raise DataError(
            f"{option('precision', 'int8')} finds its bounds on {LEAST} images or more that are not val's or test's, "
            f"and of {listing.source} {len(used)} can be read: give {option('calibration')} with the cache of another "
            f"source, or {option('precision', 'bfloat16')}"
        )
    from pipeline.trunk.frozen import default_batch, find_bounds

    batch = s.batch_size or default_batch(recipe.trunk.device, geometry.crop)
    with desk.watch.track("calibrate int8", len(pixels)) as bar:
        bounds = find_bounds(recipe.trunk, np.stack(pixels), batch=batch, work_dir=desk.engines, advance=bar.advance)
    desk.watch.say(words.calibrated(len(pixels)))
    return Calibration(bounds, bits_of_weights(), tuple(used))


def _chosen(s: ExtractSettings, desk: Workspace, listing: images.Listing, digests: NDArray[np.uint8]) -> list[int]:
    """Rows to find bounds on, more than are needed; the first of them are taken that can be read."""
    gone = set(listing.missing)
    there = np.array([item not in gone for item in listing.ids])

    def read(rows: NDArray[np.int64]) -> None:
        digests[rows] = read_digests(s, desk, listing, [listing.ids[row] for row in rows.tolist()])

    splits = listing.splits
    if images.needs_carving(listing):
        read(np.flatnonzero(there))
        shares = {"val_fraction": s.val_fraction, "test_fraction": s.test_fraction}
        splits = images.assign_splits(listing, digests, **shares, seed=s.split_seed).splits
    usable = np.flatnonzero(there & ~np.isin(splits, (VAL, TEST)))
    some = np.unique(usable[np.linspace(0, len(usable) - 1, min(_AMONG, len(usable))).round().astype(int)])
    read(some[~digests[some].any(axis=1)])
    found: list[int] = some[np.argsort([digests[row].tobytes() for row in some.tolist()], kind="stable")].tolist()
    return found


def keep_calibration(calibration: Calibration, out: Path) -> None:
    """Put the bounds beside the file that is to be written by them.

    Raises:
        CacheError: the folder cannot be written.
    """
    with store.writing_beside(out):
        write_json(calibration_path(out), dataclasses.asdict(calibration))
