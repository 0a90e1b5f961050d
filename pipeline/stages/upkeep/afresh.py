"""Rows of a cache extracted again, of the images as they are now: how far they are from what is stored."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import images
from pipeline.base.errors import CacheError, ConfigError
from pipeline.base.machine import cores, resolve_device
from pipeline.base.workspace import Workspace
from pipeline.images import Images
from pipeline.runs.recipe import Recipe
from pipeline.stages.upkeep.results import Sample
from pipeline.store import Cache, difference
from pipeline.trunk import identity
from pipeline.trunk.engines.base import TOLERANCE
from pipeline.trunk.frozen import FrozenTrunk


def extracted_afresh(cache: Cache, rows: NDArray[np.int64], now: Images, desk: Workspace) -> Sample:
    """Extract ``rows`` again, of the images as they are ``now``, and compare."""
    ids, (recipe, tolerance) = cache.ids, _recipe_here(cache, desk)
    trunk = FrozenTrunk(recipe.trunk, batch=None, work_dir=desk.engines)
    worst, pending = 0.0, []
    ahead, limits = 2 * trunk.engine.batch, images.Limits(known=cache.digests)
    with (
        images.Loader(now, recipe.geometry(), workers=cores(), ahead=ahead, limits=limits) as loader,
        desk.watch.track("extract afresh", len(rows)) as bar,
    ):
        for loaded in loader.load((row, ids[row]) for row in rows.tolist()):
            if loaded.pixels is None:
                raise CacheError(
                    f"{cache.path}: {now.name(ids[loaded.index])!a} gave features once and fails now "
                    f"({loaded.failure}): the decoder or the file has changed; extract again"
                )
            pending.append((loaded.index, loaded.pixels))
            if len(pending) == trunk.engine.batch or loaded.index == rows[-1]:
                at, pixels = [i for i, _ in pending], np.stack([p for _, p in pending])
                worst = max(worst, _difference(cache.features[at], trunk.features(pixels)))
                bar.advance(len(pending))
                pending = []
    trunk.assert_untouched()
    return Sample(
        len(rows), worst, tolerance, f"{recipe.trunk.engine} on {recipe.trunk.device}, {recipe.trunk.precision}"
    )


def _difference(stored: NDArray[Any], fresh: NDArray[np.float32]) -> float:
    """Largest difference of a feature as a share of the largest fresh feature of its image."""
    reach = np.maximum(np.abs(fresh).max(axis=1), np.finfo(np.float32).tiny)
    return float((np.abs(stored.astype(np.float32) - fresh).max(axis=1) / reach).max())


def _recipe_here(cache: Cache, desk: Workspace) -> tuple[Recipe, float]:
    """The cache's trunk on this machine, and how far a fresh row may be from a stored one.

    Storing rounds by half a unit in the last place (2^-11 of the value in float16, 2^-24 in float32), and the engine
    then and the engine now may each be off by their tolerance (``pipeline.trunk.engines.open``).
    """
    made = Recipe.of_cache(cache, desk)
    recipe = made
    try:
        resolve_device(made.trunk.device)
    except ConfigError:  # this machine has no such GPU
        recipe = recipe.computed(device="cpu", precision="float32", engine="torch")
    if recipe.trunk.engine not in identity.available_engines(recipe.trunk.device, recipe.trunk.precision):
        precision = recipe.trunk.precision
        recipe = recipe.computed(engine="torch", precision="float32" if precision == "int8" else precision)
    for name, then, now in difference(cache.provenance, recipe.provenance()):
        desk.watch.say(f"{name} was {then} when the cache was made and is {now} here")
    rounding = float(np.finfo(cache.dtype.name).eps) / 2
    return recipe, rounding + TOLERANCE[made.trunk.precision] + TOLERANCE[recipe.trunk.precision]
