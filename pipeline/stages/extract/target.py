"""The recipe that is asked for and the file that holds it: the one that is there, or a new one of a telling name.

Features of another kind of device (a GPU's here, where there is none, or a CPU's on a machine with a GPU) differ in
their last digits, so no file mixes two kinds. A finished file of another kind that holds all that is asked for is good
enough to learn from all the same: with ``--device auto`` and ``--engine auto`` it is taken, and new rows are not.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import images, store
from pipeline.base.errors import CacheError, ConfigError
from pipeline.base.machine import kind_of_device, resolve_device
from pipeline.base.precision import choose_precision
from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace
from pipeline.runs.recipe import Recipe, images_from, provenance_of, require_ours
from pipeline.stages.extract import words
from pipeline.stages.extract.calibrate import calibration_from, kept_calibration, new_calibration
from pipeline.stages.extract.donors import key_at
from pipeline.stages.extract.settings import DECODINGS, ExtractSettings
from pipeline.store.find import view_path
from pipeline.trunk import identity
from pipeline.trunk.calibration import Calibration
from pipeline.trunk.identity import TrunkSpec, WeightsInfo
from pipeline.trunk.lookup import find_weights


@dataclass(frozen=True)
class Target:
    """A file to be made, or that is there, and what its rows are made by.

    Attributes:
        out: the file.
        provenance: what its rows are made by: as the recipe says, or by another kind of device than is here.
        needs: why no new row can be computed here, in a sentence for the user; None where it can.
    """

    recipe: Recipe
    out: Path
    provenance: Mapping[str, Any]
    needs: str | None = None

    @property
    def kind(self) -> str:
        """The kind of device that its rows are computed on."""
        return kind_of_device(self.recipe.trunk.device)


@dataclass(frozen=True)
class Beside:
    """A view of the train images of ``cache``, whose file lies beside it."""

    cache: store.Cache
    view: images.View


def targets_of(
    s: ExtractSettings, desk: Workspace, listing: images.Listing, digests: NDArray[np.uint8]
) -> tuple[Target, list[Target]]:
    """The file to make, begun or finished or new; and where it is new, those that another kind of device has made.

    ``digests`` (N, 32), all zero, are filled in where images have to be read for it.

    Raises:
        ConfigError, WeightsError, CacheError: it cannot be, or another thing lies there.
    """
    device, info = resolve_device(s.device), find_weights(s.weights, s.trunk, desk, s.preset)
    info = identity.with_changes(info, s.changes())
    if info.guessed:
        desk.watch.say(words.guessed(info))
    size, layer = info.transform.crop, info.layer(s.layer)
    auto = s.device == "auto" and s.engine == "auto"
    precision, needs = _precision(s, device, auto=auto)
    preferred = identity.choose_engine(
        s.engine, device=device, n_images=len(listing.ids), image_size=size, precision=precision
    )
    # With auto, a file that another installed engine, or another way to decode, has begun or made is gone on with.
    installed = identity.available_engines(device, precision) if s.engine == "auto" else []
    engines = [preferred, *(engine for engine in installed if engine != preferred)]

    trunk = TrunkSpec(info, layer, preferred, precision, device)
    if precision == "int8":
        asked = Recipe(trunk, s.dtype, scaled=s.decode != "exact")
        trunk = replace(trunk, calibration=_calibration(s, desk, listing, asked, digests))
    key_there = functools.cache(key_at)

    def file_of(decoding: str, engine: str) -> tuple[Target, bool]:
        """The target, and whether its file is there."""
        recipe = Recipe(replace(trunk, engine=engine), s.dtype, scaled=decoding == "scaled")
        provenance = recipe.provenance()
        key = store.key_of(provenance)
        path = s.out or (_named_path(desk, listing, s.name) if s.name else _default_path(desk, listing, info, key))
        return Target(recipe, path, provenance, needs), key_there(path) == key

    firsts: list[Target] = []  # of each way to decode, what is preferred
    for decoding in DECODINGS if s.decode == "auto" else (s.decode,):
        for engine in engines:
            target, there = file_of(decoding, engine)
            if there:
                return target, []
            if engine == preferred:
                firsts.append(target)
    own = firsts[0]
    if s.decode != "auto":
        other = DECODINGS[own.recipe.scaled]
        for made, there in (file_of(other, engine) for engine in engines):
            if there and made.out != own.out:
                desk.watch.say(words.decoded_anew(made.out, other))
    return own, _of_other_devices(s, desk, listing, firsts) if auto else []


def _precision(s: ExtractSettings, device: str, *, auto: bool) -> tuple[str, str | None]:
    """The precision, and why the device does not have it, where what another kind of device has made may do."""
    try:
        return choose_precision(s.precision, device, forced=s.force_precision), None
    except ConfigError as error:
        if not auto or s.precision == "int8":  # only CPUs have that, and every machine has one
            raise
        return s.precision, str(error)


def _of_other_devices(
    s: ExtractSettings, desk: Workspace, listing: images.Listing, asked: Sequence[Target]
) -> list[Target]:
    """The files that other kinds of device have begun or made of what is asked for; finished ones first.

    ``asked`` are targets that would do, the one that is preferred first.
    """
    given = s.out or (desk.features / f"{s.name}.h5" if s.name else None)
    caches = [*(_opened([given]) if given else _of_that_name(desk, listing, asked[0].recipe.trunk.info))]
    found: list[Target] = []
    for target in asked:
        for cache in caches:
            if _but_for_the_engine(cache.provenance) != _but_for_the_engine(target.provenance):
                continue
            engine, out = provenance_of(cache)["engine"], cache.path.with_name(cache.path.name.removesuffix(".partial"))
            if engine["device"] != target.kind:
                recipe = target.recipe.computed(engine=engine["name"], device=engine["device"])
                found.append(Target(recipe, out, cache.provenance, words.needs(out, engine, target.kind)))
    return sorted(found, key=lambda target: not target.out.exists())


def _but_for_the_engine(provenance: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in provenance.items() if name != "engine"}


def _opened(paths: Iterable[Path]) -> Iterator[store.Cache]:
    """The caches of features at the paths, finished, or else begun, where there are any."""
    for path in paths:
        with contextlib.suppress(CacheError):  # a damaged one is told of when it is asked for
            cache = store.open_partial(path if path.exists() else store.partial_path(path))
            require_ours(cache)
            yield cache


def target_of_view(s: ExtractSettings, desk: Workspace, beside: Beside) -> Target:
    """The file of a view: all as in the cache that it lies beside, whichever machine has made that.

    Raises:
        WeightsError, CacheError: what the cache was made by is not to be had.
    """
    cache, recipe = beside.cache, replace(Recipe.of_cache(beside.cache, desk), view=beside.view)
    engine, asked = provenance_of(cache)["engine"], resolve_device(s.device)
    own = kind_of_device(asked)
    provenance = {**cache.provenance, "view": beside.view.provenance()}
    out = view_path(cache.path, beside.view.number)
    try:
        recipe = recipe.computed(device=asked if own == engine["device"] else resolve_device(engine["device"]))
        installed = engine["name"] in identity.available_engines(recipe.trunk.device, recipe.trunk.precision)
        here = installed and recipe.provenance() == provenance
    except ConfigError:  # no such device
        here = False
    return Target(recipe, out, provenance, None if here else words.needs(cache.path, engine, own))


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
    long, short = (f"{stem}{key[:8]}" for stem in _stems(listing, info))
    # A network's name may end in that of its weights: once is enough, but for a file that has it twice already.
    stem = long if any(desk.features.glob(f"{glob.escape(long)}*.h5*")) else short
    for number in range(1, 1000):
        path = desk.features / (f"{stem}.h5" if number == 1 else f"{stem}-{number}.h5")
        there = path if path.exists() else store.partial_path(path)
        if not there.exists():
            return path
        if _other_images(store.open_partial(there), listing) is None:
            return path
    raise CacheError(f"{desk.features} has 999 caches named {stem}: name one with {option('out')}")


def _stems(listing: images.Listing, info: WeightsInfo) -> tuple[str, str]:
    """What the file's name begins with, before the key: at length, and with the weights named once."""
    name = info.path.stem if info.name == "file" and info.path else info.name
    weights = re.sub(r"[^A-Za-z0-9]+", "", name)[:24]
    trunk = re.sub(r"[^A-Za-z0-9_]+", "-", info.trunk)
    end = f"{info.transform.crop}px-"
    long = f"{listing.name}-{trunk}-{weights}-{end}".lower()
    return long, f"{listing.name}-{trunk}-{end}".lower() if info.trunk.endswith(f".{info.name}") else long


def _of_that_name(desk: Workspace, listing: images.Listing, info: WeightsInfo) -> Iterator[store.Cache]:
    """The caches of these images that have such a name, whatever their key, by name."""
    beginnings = dict.fromkeys(_stems(listing, info))
    there = [path for stem in beginnings for path in desk.features.glob(f"{glob.escape(stem)}*.h5*")]
    names = {path.name.removesuffix(".partial") for path in there}
    for cache in _opened(desk.features / name for name in sorted(names) if name.endswith(".h5")):
        if _other_images(cache, listing) is None:
            yield cache


def _other_images(cache: store.Cache, listing: images.Listing) -> str | None:
    """Where the cache's images lie, if they are others than those listed; a moved project's are where they are now."""
    home = images_from(cache)
    return home.place if home.there() and home.place != listing.images.place else None


def existing(out: Path, asked: Mapping[str, Any]) -> store.Cache | None:
    """The finished file at ``out``, if there is one; CacheError if it was not made by what is ``asked`` for."""
    if not out.exists():
        return None
    cache = store.open_cache(out)
    if cache.key != store.key_of(asked):
        fields = "; ".join(
            f"{name}: {theirs!r} there, {mine!r} asked for"
            for name, theirs, mine in store.difference(cache.provenance, asked)
        )
        raise CacheError(
            f"{out} was made with other settings ({fields}): give another {option('out')}, or these settings"
            f"{its_device(cache, asked)}"
        )
    return cache


def its_device(cache: store.Cache, asked: Mapping[str, Any]) -> str:
    """The option that computes on the kind of device that a cache was made on, where another one is ``asked`` for."""
    device = provenance_of(cache)["engine"]["device"]
    return "" if device == asked["engine"]["device"] else f", {option('device', device)} among them"
