"""`pipeline relabel`: new labels, splits, names or paths for a cache, from a folder or manifest, without the trunk.

A row is known by its image's bytes: a moved or renamed image keeps its row. An item whose file cannot be read just now
is known by its path. What the source has and the cache has not needs the trunk, and is refused; what the cache has and
the source has not is dropped only when asked for, or where it had failed.

A table may name the images by the cache's ids instead, as `pipeline rows` writes it: then images that it does not name
stay as they are, unless they are to be dropped. Where the source gives no splits the cache's stay, too, unless a
division is asked for.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import images
from pipeline.base.errors import CacheError, DataError
from pipeline.base.items import GOOD, NONE, SPLITS, TEST, TRAIN, VAL
from pipeline.base.machine import cores
from pipeline.base.spelling import option
from pipeline.base.words import many, named
from pipeline.base.workspace import Workspace
from pipeline.images import Listing
from pipeline.runs.recipe import from_here, images_from
from pipeline.runs.remarks import tell_of_outdated
from pipeline.stages.extract.settings import ExtractSettings
from pipeline.stages.upkeep import words
from pipeline.stages.upkeep.results import RelabelResult
from pipeline.stages.upkeep.settings import RelabelSettings
from pipeline.store import Cache, Contents
from pipeline.store.find import find_cache
from pipeline.store.rewrite import kept, locked, rewrite


def relabel(settings: RelabelSettings, desk: Workspace) -> RelabelResult:
    """Relabel with settings made."""
    found = find_cache(settings.cache, desk)
    out = settings.out if settings.name is None else desk.features / f"{settings.name}.h5"
    table = None
    if images.is_manifest(settings.source):
        table = images.read_by_id(settings.source, found.ids, images.Columns.of(settings))
    listing = _listed(settings, desk) if table is None else None
    if listing is not None:
        with desk.watch.track("hash", len(listing)) as bar:
            digests = images.digest_many(listing.images, listing.ids, workers=cores(), progress=bar.advance)
    with locked(found, out) as (cache, target):
        copied = 0
        if listing is not None:
            rows, copied = _match(cache, listing, digests)
            missing = _unmatched(cache, rows)
            _refuse(cache, listing, rows, missing, settings, desk)
        else:
            assert table is not None
            listing, rows = _by_id(cache, table, settings, desk)
            missing = _unmatched(cache, rows)
        contents, rows = _contents(cache, listing, rows, settings, target, by_id=table is not None)
        _require_train(contents, listing)
        written = out is not None or not _as_it_is(cache, contents)
        result = _result(cache, contents, rows, [os.fsdecode(i) for i in missing], copied=copied, written=written)
        if not written:
            desk.watch.result(f"nothing to do: {cache.path} has these labels, splits and paths already")
            return result
        for note in result.notes if result.notes != cache.about["notes"] else ():
            desk.watch.say(note)
        given = listing.splits.any() if table is None else any(row.split for row in table.rows)
        if not settings.divides and cache.splits.any() and not given:
            desk.watch.say(words.splits_stay(settings.source, contents.splits, contents.labels))
        made = rewrite(cache, rows, contents, target, desk)
    result = dataclasses.replace(result, cache=made.path, counts=made.counts())
    desk.watch.result(words.relabelled(result))
    tell_of_outdated(made, desk)
    return result


def _listed(settings: RelabelSettings, desk: Workspace) -> Listing:
    """The source's images; what is to be said of them is said."""
    listing = images.list_source(settings.source, desk, images.Columns.of(settings))
    if skipped := images.skip_summary(listing.skipped):
        desk.watch.say(skipped)
    for warning in listing.warnings:
        desk.watch.warn(warning)
    return listing


def _by_id(
    cache: Cache, table: images.NamedRows, settings: RelabelSettings, desk: Workspace
) -> tuple[Listing, NDArray[np.int64]]:
    """The cache's own images as a table changes them, and the row of each.

    Raises:
        DataError: a line in which the label's number was changed and the class was not.
    """
    ids, (sizes, times), columns = cache.ids, cache.stats, cache.columns
    at = {row.id: row for row in table.rows}
    items, rows = [], []
    for row, item in enumerate(ids):
        label = cache.classes[cache.labels[row]] if cache.labels[row] >= 0 else None
        split = NONE if settings.divides else int(cache.splits[row])
        if (told := at.get(item)) is None:
            if settings.drop_missing:
                continue
        else:
            if told.number not in ("", str(cache.labels[row])) and told.label == label:
                raise DataError(
                    f"{settings.source} line {told.line}: label {told.number} and class {told.label!r}, of which the "
                    "cache has the class: write the new one into the column class, by its name"
                )
            label, split = told.label if table.labelled else label, told.split or split
        items.append(images.Item(item, label, split, int(sizes[row]), int(times[row])))
        rows.append(row)
    if unnamed := len(ids) - len(table.rows):
        desk.watch.say(words.unnamed(settings.source, unnamed, dropped=settings.drop_missing))
    place = dict(zip((item.id for item in items), rows, strict=True))
    listing = images.assemble(items, source=cache.about["source"], name="", images=images_from(cache), skipped={})
    order = [place[item] for item in listing.ids]
    kept_aside = {name: [cells[row] for row in order] for name, cells in columns.items()}
    return dataclasses.replace(listing, columns=kept_aside), np.array(order, np.int64)


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


def _unmatched(cache: Cache, rows: NDArray[np.int64]) -> list[bytes]:
    """Ids of the rows that no item of the source has taken."""
    left = np.setdiff1d(np.arange(len(cache)), rows)
    return [cache.ids[row] for row in left.tolist()]


def _refuse(
    cache: Cache,
    listing: Listing,
    rows: NDArray[np.int64],
    unmatched: Sequence[bytes],
    settings: RelabelSettings,
    desk: Workspace,
) -> None:
    """Raise where the source and the cache do not hold the same images; nothing has been written yet.

    An image that failed has no features to lose: it is not missed.
    """
    have, failed = set(cache.ids), {cache.ids[row] for row in np.flatnonzero(cache.states != GOOD).tolist()}
    missing = [os.fsdecode(item) for item in unmatched if item not in failed]
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
            f"{many(len(lacking), 'image')} of {settings.source} not in {cache.path} (the first: "
            f"{os.fsdecode(lacking[0])!a}): what is new needs the trunk: run `pipeline extract` on this source"
        )
    raise CacheError(
        f"{many(len(missing), 'image')} of {cache.path} not in {settings.source} (the first: {missing[0]!a}): give all "
        f"there, or {option('drop_missing', True)} to drop their rows"
    )


def _contents(
    cache: Cache, listing: Listing, rows: NDArray[np.int64], settings: RelabelSettings, target: Path, *, by_id: bool
) -> tuple[Contents, NDArray[np.int64]]:
    """What the new file says, in the order (split, id) of every cache, and the old row of each of its rows."""
    splits, notes = _splits(cache, listing, rows, settings, by_id=by_id)
    order = np.lexsort((np.arange(len(listing)), splits))
    root, folder = listing.images.place, target.parent
    contents = kept(cache, rows[order], f"relabel: {settings.source}")
    about = {**contents.about, "notes": notes}
    if not by_id:
        about = {name: told for name, told in about.items() if name != "columns"} | {"source": listing.source}
        if columns := images.Columns.of(settings).named():
            about["columns"] = columns
    if not by_id or not os.path.samefile(folder, cache.path.parent):  # else all lies where it lay
        about |= {"root": root, "from_here": from_here(root, contents.about["weights"], folder)}
    changed = dataclasses.replace(
        contents,
        ids=[listing.ids[i] for i in order.tolist()],
        sizes=listing.sizes[order],
        mtimes_ns=listing.mtimes_ns[order],
        labels=listing.labels[order],
        splits=splits[order],
        classes=listing.classes,
        about=about,
        columns={name: [cells[i] for i in order.tolist()] for name, cells in listing.columns.items()},
    )
    return changed, rows[order]


def _splits(
    cache: Cache, listing: Listing, rows: NDArray[np.int64], settings: RelabelSettings, *, by_id: bool
) -> tuple[NDArray[np.uint8], list[str]]:
    """Each image's split, and how the splits came about in words."""
    if not settings.divides and cache.splits.any() and (by_id or not listing.splits.any()):
        return (listing.splits if by_id else cache.splits[rows]), list(cache.about["notes"])
    shares = {
        name: getattr(ExtractSettings if getattr(settings, name) is None else settings, name)
        for name in ("val_fraction", "test_fraction")
    }
    seed = ExtractSettings.split_seed if settings.split_seed is None else settings.split_seed
    plan = images.assign_splits(listing, cache.digests[rows], **shares, seed=seed)
    return plan.splits, [*listing.notes, *plan.notes]


def _require_train(contents: Contents, listing: Listing) -> None:
    """Raises DataError where a class would be in val or test alone: no head could learn it."""
    of = {
        s: {contents.classes[y] for y in contents.labels[contents.splits == s].tolist() if y >= 0}
        for s in range(1, len(SPLITS))
    }
    if of[TRAIN] and (lacking := sorted((of[VAL] | of[TEST]) - of[TRAIN])):
        raise DataError(
            f"{named(lacking)} would have no train images in the splits that stay: give splits in {listing.source}, "
            f"or {option('val_fraction')} to divide anew"
        )


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
