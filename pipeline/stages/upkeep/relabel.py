"""`pipeline relabel`: new labels, splits, names or paths for a cache, from a folder or manifest, without the trunk.

A row is known by its image's bytes: a moved or renamed image keeps its row. An item whose file cannot be read just now
is known by its path. What the source has and the cache has not needs the trunk, and is refused; what the cache has and
the source has not is dropped only when asked for.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline import images
from pipeline.base.errors import CacheError
from pipeline.base.machine import cores
from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace
from pipeline.images import Listing
from pipeline.runs.recipe import from_here
from pipeline.stages.upkeep import words
from pipeline.stages.upkeep.results import RelabelResult
from pipeline.stages.upkeep.settings import RelabelSettings
from pipeline.store import Cache, Contents
from pipeline.store.find import find_cache
from pipeline.store.rewrite import kept, locked, rewrite


def relabel(settings: RelabelSettings, desk: Workspace) -> RelabelResult:
    """Relabel with settings made."""
    found = find_cache(settings.cache, desk)
    listing = images.list_source(settings.source, desk, images.Columns.of(settings))
    if skipped := images.skip_summary(listing.skipped):
        desk.watch.say(skipped)
    for warning in listing.warnings:
        desk.watch.warn(warning)
    with desk.watch.track("hash", len(listing)) as bar:
        digests = images.digest_many(listing.images, listing.ids, workers=cores(), progress=bar.advance)
    with locked(found, settings.out) as (cache, target):
        rows, copied = _match(cache, listing, digests)
        missing = _unmatched(cache, rows)
        _refuse(cache, listing, rows, missing, settings, desk)
        contents, rows = _contents(cache, listing, rows, settings)
        written = settings.out is not None or not _as_it_is(cache, contents)
        result = _result(cache, contents, rows, missing, copied=copied, written=written)
        if not written:
            desk.watch.result(f"nothing to do: {cache.path} has these labels, splits and paths already")
            return result
        for note in result.notes:
            desk.watch.say(note)
        made = rewrite(cache, rows, contents, target, desk)
    result = dataclasses.replace(result, cache=made.path, counts=made.counts())
    desk.watch.result(words.relabelled(result))
    return result


def _match(cache: Cache, listing: Listing, digests: NDArray[np.uint8]) -> tuple[NDArray[np.int64], int]:
    """For each item of the listing the cache's row of it, or -1; and how many took a row that another had taken.

    Same path and bytes first, then same bytes under another path, copies in the order of their paths; an unreadable
    file takes the row of its path.
    """
    theirs = cache.digests
    at = {item: row for row, item in enumerate(cache.ids)}
    rows = np.array([at.get(item, -1) for item in listing.ids], np.int64)
    rows[(rows >= 0) & digests.any(axis=1) & (theirs[rows] != digests).any(axis=1)] = -1
    taken = set(rows.tolist())
    first: dict[bytes, int] = {}
    free: dict[bytes, list[int]] = {}
    for row in np.flatnonzero(theirs.any(axis=1)).tolist():
        content = theirs[row].tobytes()
        first.setdefault(content, row)
        if row not in taken:
            free.setdefault(content, []).append(row)
    copied = 0
    for i in np.flatnonzero(rows < 0).tolist():
        content = digests[i].tobytes()
        if spare := free.get(content):
            rows[i] = spare.pop(0)
        elif content in first:
            rows[i] = first[content]
            copied += 1
    return rows, copied


def _unmatched(cache: Cache, rows: NDArray[np.int64]) -> list[str]:
    """Paths of the rows that no item of the source has taken."""
    left = np.setdiff1d(np.arange(len(cache)), rows)
    return [os.fsdecode(cache.ids[row]) for row in left.tolist()]


def _refuse(
    cache: Cache,
    listing: Listing,
    rows: NDArray[np.int64],
    missing: Sequence[str],
    settings: RelabelSettings,
    desk: Workspace,
) -> None:
    """Raise where the source and the cache do not hold the same images; nothing has been written yet."""
    have = set(cache.ids)
    lacking = [listing.ids[i] for i in np.flatnonzero(rows < 0).tolist()]
    kinds = {
        "changed": [os.fsdecode(item) for item in lacking if item in have],
        "new": [os.fsdecode(item) for item in lacking if item not in have],
        "missing": [] if settings.drop_missing else [m for m in missing if os.fsencode(m) not in set(lacking)],
    }
    if not any(kinds.values()):
        return
    title = f"{settings.source} against {cache.path}"
    desk.watch.result(words.kinds({kind: names for kind, names in kinds.items() if names}, title))
    if lacking:
        raise CacheError(
            f"{len(lacking):,} images of {settings.source} are not in {cache.path} (the first: "
            f"{os.fsdecode(lacking[0])!a}): they need the trunk: run `pipeline extract` on this source"
        )
    raise CacheError(
        f"{len(missing):,} images of {cache.path} are not in {settings.source} (the first: {missing[0]!a}): give them "
        f"there, or {option('drop_missing', True)} to drop their rows"
    )


def _contents(
    cache: Cache, listing: Listing, rows: NDArray[np.int64], settings: RelabelSettings
) -> tuple[Contents, NDArray[np.int64]]:
    """What the new file says, in the order (split, id) of every cache, and the old row of each of its rows."""
    plan = images.assign_splits(
        listing,
        cache.digests[rows],
        val_fraction=settings.val_fraction,
        test_fraction=settings.test_fraction,
        seed=settings.split_seed,
    )
    order = np.lexsort((np.arange(len(listing)), plan.splits))
    root, folder = listing.images.place, (settings.out or cache.path).parent
    contents = kept(cache, rows[order], f"relabel: {settings.source}")
    before = {name: told for name, told in contents.about.items() if name != "columns"}
    about = {
        **before,
        "source": listing.source,
        "root": root,
        "notes": [*listing.notes, *plan.notes],
        "from_here": from_here(root, contents.about["weights"], folder),
    }
    if named := images.Columns.of(settings).named():
        about["columns"] = named
    changed = dataclasses.replace(
        contents,
        ids=[listing.ids[i] for i in order.tolist()],
        sizes=listing.sizes[order],
        mtimes_ns=listing.mtimes_ns[order],
        labels=listing.labels[order],
        splits=plan.splits[order],
        classes=listing.classes,
        about=about,
        columns={name: [cells[i] for i in order.tolist()] for name, cells in listing.columns.items()},
    )
    return changed, rows[order]


def _as_it_is(cache: Cache, contents: Contents) -> bool:
    """Whether the cache says all of it already: items, labels, splits, and where the images lie."""
    places = ("source", "root", "notes", "columns", "from_here")
    if len(cache) != len(contents.ids) or any(cache.about.get(p) != contents.about.get(p) for p in places):
        return False
    pairs = (
        (cache.stats[0], contents.sizes),
        (cache.stats[1], contents.mtimes_ns),
        (cache.labels, contents.labels),
        (cache.splits, contents.splits),
        (cache.digests, contents.digests),
    )
    return (
        cache.classes == contents.classes
        and cache.ids == list(contents.ids)
        and cache.columns == contents.columns
        and all(bool((mine == theirs).all()) for mine, theirs in pairs)
    )


def _result(
    cache: Cache,
    contents: Contents,
    rows: NDArray[np.int64],
    missing: Sequence[str],
    *,
    copied: int,
    written: bool,
) -> RelabelResult:
    """Classes are compared by name: a number means another class once a class has come or gone."""
    before = np.array([*cache.classes, None], dtype=object)[cache.labels[rows]]  # -1 is the last: no class
    after = np.array([*contents.classes, None], dtype=object)[contents.labels]
    return RelabelResult(
        cache=cache.path,
        rows=len(rows),
        relabelled=int((before != after).sum()),
        resplit=int((cache.splits[rows] != contents.splits).sum()),
        renamed=sum(cache.ids[row] != item for row, item in zip(rows.tolist(), contents.ids, strict=True)),
        copied=copied,
        dropped=list(missing),
        classes=list(contents.classes),
        counts=cache.counts(),
        notes=list(contents.about["notes"]),
        written=written,
    )
