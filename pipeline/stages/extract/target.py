"""The recipe that is asked for and the file that holds it: the one that is there, or a new one of a telling name."""

from __future__ import annotations

import contextlib
import functools
import glob
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import images, store
from pipeline.base.errors import CacheError
from pipeline.base.machine import resolve_device
from pipeline.base.precision import choose_precision
from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace
from pipeline.runs.recipe import Recipe, images_from
from pipeline.stages.extract import words
from pipeline.stages.extract.calibrate import calibration_from, kept_calibration, new_calibration
from pipeline.stages.extract.donors import key_at
from pipeline.stages.extract.settings import DECODINGS, ExtractSettings
from pipeline.trunk import identity
from pipeline.trunk.calibration import Calibration
from pipeline.trunk.identity import TrunkSpec, WeightsInfo
from pipeline.trunk.lookup import find_weights


def recipe_and_file(
    s: ExtractSettings,
    desk: Workspace,
    listing: images.Listing,
    view: images.View | None,
    digests: NDArray[np.uint8],
) -> tuple[Recipe, Path]:
    """What is asked for, and the file to make: the one that is there, begun or finished, or a new one.

    ``digests`` (N, 32), all zero, are filled in where images have to be read for it.

    Raises:
        ConfigError, WeightsError, CacheError: it cannot be, or another thing lies there.
    """
    device, info = resolve_device(s.device), find_weights(s.weights, s.trunk, desk, s.preset)
    info = identity.with_changes(info, s.changes())
    if info.guessed and view is None:
        desk.watch.say(words.guessed(info))
    size, layer = info.transform.crop, info.layer(s.layer)
    precision = choose_precision(s.precision, device, forced=s.force_precision)
    preferred = identity.choose_engine(
        s.engine, device=device, n_images=len(listing.ids), image_size=size, precision=precision
    )
    # With auto, a file that another installed engine, or another way to decode, has begun or made is gone on with.
    installed = identity.available_engines(device, precision) if s.engine == "auto" else []
    engines = [preferred, *(engine for engine in installed if engine != preferred)]

    trunk = TrunkSpec(info, layer, preferred, precision, device)
    if precision == "int8":
        asked = Recipe(trunk, s.dtype, view, scaled=s.decode != "exact")
        trunk = replace(trunk, calibration=_calibration(s, desk, listing, asked, digests))
    key_there = functools.cache(key_at)

    def file_of(decoding: str, engine: str) -> tuple[Recipe, Path, bool]:
        """The recipe, its file, and whether that is there."""
        recipe = Recipe(replace(trunk, engine=engine), s.dtype, view, scaled=decoding == "scaled")
        key = store.key_of(recipe.provenance())
        path = s.out or (_named_path(desk, listing, s.name) if s.name else _default_path(desk, listing, info, key))
        return recipe, path, key_there(path) == key

    first: tuple[Recipe, Path] | None = None
    for decoding in DECODINGS if s.decode == "auto" else (s.decode,):
        for engine in engines:
            recipe, path, there = file_of(decoding, engine)
            if there:
                return recipe, path
            first = first or (recipe, path)
    assert first is not None
    if s.decode != "auto" and view is None:
        other = DECODINGS[first[0].scaled]
        for _, made, there in (file_of(other, engine) for engine in engines):
            if there and made != first[1]:
                desk.watch.say(words.decoded_anew(made, other))
    return first


def _calibration(
    s: ExtractSettings, desk: Workspace, listing: images.Listing, recipe: Recipe, digests: NDArray[np.uint8]
) -> Calibration:
    """The bounds of the cache that is named, else of what is there of these images, else new ones."""
    if s.calibration is not None:
        return calibration_from(s.calibration, recipe, desk)
    kept = None if s.recalibrate else kept_calibration(_caches_of(s, desk, listing), recipe)
    return kept or new_calibration(s, desk, listing, recipe, digests)


def _caches_of(s: ExtractSettings, desk: Workspace, listing: images.Listing) -> Iterator[store.Cache]:
    """The caches of these images, begun or finished: first of the name that was given, then the last made."""
    named = s.out or (desk.features / f"{s.name}.h5" if s.name else None)
    there = [path for path in desk.features.glob("*.h5*") if path.name.endswith((".h5", ".h5.partial"))]
    latest = sorted(there, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    own = [] if named is None else [path for path in (named, store.partial_path(named)) if path.exists()]
    for path in [*own, *latest]:
        with contextlib.suppress(CacheError):  # a damaged one is told of when it is asked for
            cache = store.open_partial(path)
            if images_from(cache).place == listing.images.place:
                yield cache


def _named_path(desk: Workspace, listing: images.Listing, name: str) -> Path:
    """The file of the name that was asked for; CacheError where it is that of images that lie elsewhere."""
    path = desk.features / f"{name}.h5"
    there = path if path.exists() else store.partial_path(path)
    if there.exists():
        taken = store.open_partial(there)
        if (elsewhere := _other_images(taken, listing)) is not None:
            raise CacheError(f"{path} is of the images at {elsewhere}: give another {option('name')}")
    return path


def _default_path(desk: Workspace, listing: images.Listing, info: WeightsInfo, key: str) -> Path:
    """A telling name, with a number when a folder of the same name that still exists elsewhere has taken it."""
    name = info.path.stem if info.name == "file" and info.path else info.name
    weights = re.sub(r"[^A-Za-z0-9]+", "", name)[:24]
    trunk = re.sub(r"[^A-Za-z0-9_]+", "-", info.trunk)
    end = f"{info.transform.crop}px-{key[:8]}"
    stem = f"{listing.name}-{trunk}-{weights}-{end}".lower()
    # A network's name may end in that of its weights: once is enough, but for a file that has it twice already.
    if info.trunk.endswith(f".{info.name}") and not any(desk.features.glob(f"{glob.escape(stem)}*.h5*")):
        stem = f"{listing.name}-{trunk}-{end}".lower()
    for number in range(1, 1000):
        path = desk.features / (f"{stem}.h5" if number == 1 else f"{stem}-{number}.h5")
        there = path if path.exists() else store.partial_path(path)
        if not there.exists():
            return path
        if _other_images(store.open_partial(there), listing) is None:
            return path
    raise CacheError(f"{desk.features} has 999 caches named {stem}: name one with {option('out')}")


def _other_images(cache: store.Cache, listing: images.Listing) -> str | None:
    """Where the cache's images lie, if they are others than those listed; a moved project's are where they are now."""
    home = images_from(cache)
    return home.place if home.there() and home.place != listing.images.place else None


def existing(out: Path, recipe: Recipe) -> store.Cache | None:
    """The finished file at ``out``, if there is one; CacheError if it is of another recipe."""
    if not out.exists():
        return None
    cache, asked = store.open_cache(out), recipe.provenance()
    if cache.key != store.key_of(asked):
        fields = "; ".join(
            f"{name}: {theirs!r} there, {mine!r} asked for"
            for name, theirs, mine in store.difference(cache.provenance, asked)
        )
        raise CacheError(
            f"{out} was made with other settings ({fields}): give another {option('out')}, or these settings"
        )
    return cache
