"""The recipe that is asked for and the file that holds it: the one that is there, or a new one of a telling name."""

from __future__ import annotations

import functools
import glob
import re
from pathlib import Path

from pipeline import images, store
from pipeline.base.errors import CacheError
from pipeline.base.machine import resolve_device
from pipeline.base.precision import choose_precision
from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace
from pipeline.runs.recipe import Recipe, images_from
from pipeline.stages.extract import words
from pipeline.stages.extract.donors import key_at
from pipeline.stages.extract.settings import DECODINGS, ExtractSettings
from pipeline.trunk import identity
from pipeline.trunk.identity import TrunkSpec, WeightsInfo
from pipeline.trunk.lookup import find_weights


def recipe_and_file(
    s: ExtractSettings, desk: Workspace, listing: images.Listing, view: images.View | None
) -> tuple[Recipe, Path]:
    """What is asked for, and the file to make: the one that is there, begun or finished, or a new one.

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

    key_there = functools.cache(key_at)

    def file_of(decoding: str, engine: str) -> tuple[Recipe, Path, bool]:
        """The recipe, its file, and whether that is there."""
        trunk = TrunkSpec(info, layer, engine, precision, device)
        recipe = Recipe(trunk, s.dtype, view, scaled=decoding == "scaled")
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
