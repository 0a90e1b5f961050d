"""`pipeline verify`: is a cache what it says it is; and, with its source, does it still say what the images say?

The file alone: structure, checksums of every block, ids and labels, no unwritten, all-zero or non-finite row among the
good. With the source: every image is hashed (sizes and times are a shortcut, never the truth) and compared by name and
content, and a sample of rows is extracted afresh.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline import images
from pipeline.base.errors import CacheError
from pipeline.base.items import GOOD, NONE, PENDING, TRAIN
from pipeline.base.machine import cores
from pipeline.base.spelling import option
from pipeline.base.words import many
from pipeline.base.workspace import Workspace
from pipeline.images import Listing
from pipeline.runs.recipe import about_of, columns_of
from pipeline.stages.upkeep import words
from pipeline.stages.upkeep.results import Sample, VerifyReport
from pipeline.stages.upkeep.settings import VerifySettings
from pipeline.store import Cache
from pipeline.store.check import CURE
from pipeline.store.find import find_cache

SHOWN = 10  # names of each kind of change in the result and on the screen


@dataclass(frozen=True)
class SourceChanges:
    """Where a source and a cache differ, as text paths.

    ``changed`` has other bytes under the same path, ``renamed`` the same bytes under another path ("old -> new"),
    ``relabelled`` another class or split; ``missing`` is in the cache alone and ``new`` in the source alone.
    """

    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)
    relabelled: list[str] = field(default_factory=list)

    def kinds(self) -> dict[str, list[str]]:
        """The kinds of change that there are, with their paths."""
        return {name: paths for name, paths in vars(self).items() if paths}


def verify(settings: VerifySettings, desk: Workspace) -> VerifyReport:
    """Verify with settings made."""
    cache = find_cache(settings.cache, desk)
    wrong = [*_contradictions(cache), *_damage(cache, desk)]
    if wrong:
        desk.watch.result(words.kinds({"wrong": wrong}, str(cache.path)))
        raise CacheError(
            f"{cache.path} is not sound ({len(wrong)} wrong; the first: {wrong[0]}): remove it and extract again"
        )
    report = VerifyReport(cache.path, len(cache), len(cache.done), sum(cache.failed().values()))
    if settings.source is None:
        desk.watch.result(words.sound(report))
        return report
    changes, sample = _compare(cache, settings, desk)
    found = changes.kinds()
    if found:
        desk.watch.result(words.kinds(found, f"{settings.source} against {cache.path}", SHOWN))
    _refuse(cache, settings, found, sample)
    report = dataclasses.replace(
        report,
        source=settings.source,
        changes={name: {"count": len(p), "first": p[:SHOWN]} for name, p in vars(changes).items()},
        sample=sample,
    )
    desk.watch.result(words.sound(report))
    if found:
        desk.watch.warn(f"{words.counted(found)} in {settings.source}; `pipeline extract` brings the cache up to date")
    return report


def _refuse(cache: Cache, settings: VerifySettings, found: Mapping[str, list[str]], sample: Sample | None) -> None:
    if sample is not None and not sample.max_difference <= sample.tolerance:
        raise CacheError(
            f"{cache.path}: rows extracted afresh differ by {sample.max_difference:.1e} of their largest feature, "
            f"{sample.tolerance:.1e} is allowed ({sample.rows} rows, {sample.engine}): remove it and extract again"
        )
    if len(found.get("changed", ())) + len(found.get("missing", ())) == len(cache):
        about = about_of(cache)
        raise CacheError(
            f"{cache.path} is sound, and none of its {many(len(cache), 'image')} is in {settings.source}: it was made "
            f"of {about['source']}, whose images lay in {about['root']}; give what is to be compared with it"
        )
    if found and not settings.allow_changes:
        relabel = set(found) <= {"relabelled", "renamed"}
        cure = f"`pipeline {'relabel' if relabel else 'extract'}` brings it up to date without computing a row twice"
        raise CacheError(
            f"{cache.path} is sound but not what {settings.source} holds now: {words.counted(found)}; {cure}; "
            f"{option('allow_changes', True)} only lists them"
        )


# -- the file alone ---------------------------------------------------------------------------------------------------


def _contradictions(cache: Cache) -> list[str]:
    """What no finished cache may say; what opening a cache refuses is none of these."""
    good = cache.states == GOOD
    ids = cache.ids
    order = list(zip(cache.splits.tolist(), ids, strict=True))
    tests = (
        ("unwritten (pending)", cache.states == PENDING),
        ("good but without its image's digest", good & ~cache.digests.any(axis=1)),
        (
            "out of the order split, id",
            np.array([False, *(b <= a for a, b in itertools.pairwise(order))]),
        ),
    )
    return [
        f"{int(bad.sum()):,} rows are {what}, the first: row {int(np.argmax(bad))}" for what, bad in tests if bad.any()
    ]


def _damage(cache: Cache, desk: Workspace) -> list[str]:
    """Each damaged block in words: all of them, so that one knows whether it is a bit or the disk."""
    found = []
    with desk.watch.track("verify", len(cache), unit="rows") as bar:
        for first in range(0, len(cache), cache.block_rows):
            try:
                cache.verify(np.array([first]))
            except CacheError as error:
                found.append(str(error).removeprefix(f"{cache.path}: ").removesuffix(f": {CURE}"))
                bar.note(f"{len(found)} damaged")
            bar.advance(min(cache.block_rows, len(cache) - first))
    return found


# -- against the source -----------------------------------------------------------------------------------------------


def _compare(cache: Cache, settings: VerifySettings, desk: Workspace) -> tuple[SourceChanges, Sample | None]:
    assert settings.source is not None
    columns = images.Columns.of(settings)
    if not columns.named() and images.is_manifest(settings.source):
        columns = columns_of(cache)
    listing = images.list_source(settings.source, desk, columns)
    with desk.watch.track("hash", len(listing)) as bar:
        digests = images.digest_many(listing.images, listing.ids, workers=cores(), progress=bar.advance)
    at = {item: i for i, item in enumerate(listing.ids)}
    item = np.array([at.get(i, -1) for i in cache.ids], np.int64)
    same = item >= 0
    same[same] = (cache.digests[same] == digests[item[same]]).all(axis=1)
    changes = _changes(cache, listing, digests, item, same)
    rows = _spread(np.flatnonzero(same & (cache.states == GOOD)), settings.sample, settings.seed)
    if not len(rows):
        return changes, None
    from pipeline.stages.upkeep.afresh import extracted_afresh  # here: the file alone needs no PyTorch

    return changes, extracted_afresh(cache, rows, listing.images, desk)


def _changes(
    cache: Cache, listing: Listing, digests: NDArray[np.uint8], item: NDArray[np.int64], same: NDArray[np.bool_]
) -> SourceChanges:
    """``item`` (N,) is each row's place in the listing or -1, ``same`` (N,) whether its bytes are the same there."""
    changes = SourceChanges()
    have = set(cache.ids)
    arrived: dict[bytes, list[int]] = {}
    for i, item_id in enumerate(listing.ids):
        if item_id not in have:
            arrived.setdefault(digests[i].tobytes(), []).append(i)
    known = cache.digests
    for row in np.flatnonzero(~same).tolist():
        name = os.fsdecode(cache.ids[row])
        twins = arrived.get(known[row].tobytes()) if known[row].any() else None
        if item[row] >= 0:
            changes.changed.append(name)
        elif twins:
            changes.renamed.append(f"{name} -> {os.fsdecode(listing.ids[twins.pop(0)])}")
        else:
            changes.missing.append(name)
    changes.new.extend(os.fsdecode(listing.ids[i]) for i in sorted(i for rest in arrived.values() for i in rest))
    given = set(listing.splits.tolist())
    for row in np.flatnonzero(same).tolist():
        i = int(item[row])
        was = cache.classes[cache.labels[row]] if cache.labels[row] >= 0 else None
        now = listing.classes[listing.labels[i]] if listing.labels[i] >= 0 else None
        if was != now or not _split_agrees(int(cache.splits[row]), int(listing.splits[i]), given):
            changes.relabelled.append(os.fsdecode(cache.ids[row]))
    return changes


def _split_agrees(ours: int, theirs: int, given: set[int]) -> bool:
    """A source that names no split claims none; one without val or test had them taken out of its train."""
    return theirs in (NONE, ours) or (theirs == TRAIN and ours not in given)


def _spread(rows: NDArray[np.int64], sample: int, seed: int) -> NDArray[np.int64]:
    """At most ``sample`` of the rows: one drawn from each of as many equal stretches."""
    stretches = np.array_split(rows, min(sample, len(rows))) if sample and len(rows) else []
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(stretch) for stretch in stretches], np.int64)
