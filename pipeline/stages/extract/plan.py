"""What stage one is asked for, what is there already, and the difference. Runs no trunk and, mostly, reads no image.

The plan of a job is the whole content of the file to be made, rows in order, and for every row either the place in an
earlier file to copy it from or the word that it must be computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import images, store
from pipeline.base.errors import CacheError, ConfigError
from pipeline.base.items import GOOD, TRAIN
from pipeline.base.machine import gpu
from pipeline.base.schema import made
from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace
from pipeline.runs.recipe import About, Gpu, Readable, Recipe, about_of, from_here, images_from, readable_of
from pipeline.stages.extract import words
from pipeline.stages.extract.calibrate import keep_calibration
from pipeline.stages.extract.digests import known_digests, read_digests, same_stats
from pipeline.stages.extract.donors import donor_files, failed_for_a_limit, lacking_rows
from pipeline.stages.extract.settings import ExtractSettings
from pipeline.stages.extract.target import Beside, Target, existing, its_device, target_of_view, targets_of
from pipeline.store.companions import calibration_path
from pipeline.trunk import identity
from pipeline.trunk.calibration import Calibration
from pipeline.trunk.identity import WeightsInfo

BLOCK_ROWS = {"cpu": 128, "cuda": 1024, "mps": 512}  # a few seconds of work each: a kill can lose two


@dataclass(frozen=True)
class Plan:
    """One call of stage one, thought through (make it with :func:`plan_file`).

    Attributes:
        listing: the source's images.
        target: the file to make, and what its rows are made by.
        old: the finished file that was there when this was planned, if any.
        contents: what the finished file must hold.
        notes: what was decided about splits, for the user.
    """

    settings: ExtractSettings
    desk: Workspace
    listing: images.Listing
    target: Target
    old: store.Cache | None
    contents: store.Contents
    notes: tuple[str, ...]

    @property
    def recipe(self) -> Recipe:
        """What is asked for."""
        return self.target.recipe

    @property
    def out(self) -> Path:
        """The file to make."""
        return self.target.out

    def unchanged(self) -> store.Cache | None:
        """The file that is there, if it holds exactly what is asked for; answered without reading any image."""
        if self.old is None or self.settings.rehash or not self._answers(self.old):
            return None
        if self._bounds() is not None and not calibration_path(self.out).exists():
            return None  # found again, and to be put back
        return self.old if same_stats(self.old, self.contents.sizes, self.contents.mtimes_ns).all() else None

    def _answers(self, there: store.Cache) -> bool:
        """Whether a finished file holds what is asked for, and no image failed in it that would be read today."""
        asked: Readable = self.contents.about["readable"]
        return _holds_all(there, self.contents) and not failed_for_a_limit(there, asked).any()

    def looked_again(self) -> Plan:
        """Under the lock: the plan with all digests, where another job has published the file since it was made."""
        unknown = np.asarray(~self.contents.digests.any(axis=1))
        there = existing(self.out, self.contents.provenance) if unknown.any() else None
        if there is None:
            return self
        contents, _ = self._known_of(there)
        return dataclasses.replace(self, contents=self._hashed(contents, np.asarray(~contents.digests.any(axis=1))))

    def holds_all_rows(self) -> bool:
        """Whether the file that is there has every row: it is what is asked for, but for order, labels or splits."""
        return self.old is not None and (self._answers(self.old) or not self.lacking(self.old))

    def lacking(self, there: store.Cache) -> int:
        """How many rows would have to be computed, were there no other earlier file than this one."""
        return lacking_rows(there, self.contents.digests, self.contents.about["readable"])

    def require_computable(self) -> None:
        """Under the lock: see that this machine can compute the rows that are to be computed.

        Raises:
            ConfigError: it cannot, and says which can.
        """
        if self.target.needs is not None:
            there = existing(self.out, self.contents.provenance)
            if there is None or self.lacking(there):
                raise ConfigError(self.target.needs)

    def naming_gpus(self) -> Plan:
        """Under the lock: the plan of a file that says which GPUs have computed its rows, earlier and now."""
        earlier = [store.open_partial(path) for path in (self.out, store.partial_path(self.out)) if path.exists()]
        gpus = [card for cache in earlier for card in about_of(cache).get("gpus", [])]
        if self.target.kind == "cuda" and self.target.needs is None and (self.old is None or self.lacking(self.old)):
            gpus.append(made(gpu(self.recipe.trunk.device), Gpu))
        if not gpus:
            return self
        about = {**self.contents.about, "gpus": [card for at, card in enumerate(gpus) if card not in gpus[:at]]}
        return dataclasses.replace(self, contents=dataclasses.replace(self.contents, about=about))

    def refreshed(self) -> store.Cache | None:
        """Under the lock: the file that is there, if nothing but sizes and times had to be renewed in it."""
        there = existing(self.out, self.contents.provenance)  # another job may have published it while we planned
        if there is None or not self._answers(there):
            return None
        self._keep_bounds()
        store.update_stats(self.out, self.contents.sizes, self.contents.mtimes_ns)
        return there

    def begin(self) -> None:
        """Under the lock: have an unfinished file of this plan, a new one or the one to go on with.

        Images that were replaced since the unfinished file was begun are found by their sizes and times, then hashed.

        Raises:
            CacheError: an unfinished file of other settings is in the way, or nothing can be written.
        """
        partial, contents = store.partial_path(self.out), self.contents
        if partial.exists():
            begun = store.open_partial(partial)
            if begun.key != store.key_of(self.contents.provenance):
                raise CacheError(
                    f"{partial} was begun with other settings: finish it with those"
                    f"{its_device(begun, self.contents.provenance)}, remove it, or give another {option('out')}"
                )
            # A file that could not even be read is tried again: nothing tells whether it has been mended since.
            unread = (begun.states > GOOD) & ~begun.digests.any(axis=1)
            contents, touched = self._known_of(begun)
            contents = self._hashed(contents, touched)
            same = _same(begun, contents) and readable_of(begun) == contents.about["readable"]
            if same and begun.block_rows == contents.block_rows and not unread.any():
                self._keep_bounds()
                store.update_stats(partial, contents.sizes, contents.mtimes_ns)
                return
            self.desk.watch.say("other images or settings than before the interruption: finished rows are reused")
            # Of a finished row the digest is known: by it, it is found again.
            contents = self._hashed(contents, np.asarray(~contents.digests.any(axis=1)))
            store.retire_partial(self.out)
        for note in self.notes if self.recipe.view is None else ():
            self.desk.watch.say(note)
        self._keep_bounds()
        store.create_partial(self.out, contents)

    def _bounds(self) -> Calibration | None:
        """What stands beside the file of what int8 needs: a view's are those of its cache."""
        return self.recipe.trunk.calibration if self.recipe.view is None else None

    def _keep_bounds(self) -> None:
        if (bounds := self._bounds()) is not None:
            keep_calibration(bounds, self.out)

    def _known_of(self, begun: store.Cache) -> tuple[store.Contents, NDArray[np.bool_]]:
        """The contents with the digests of the finished rows of ``begun`` whose files are as they were; which are not.

        The second is (N,) bool: finished there, but of another size or time now, and not hashed yet.
        """
        ids = self.contents.ids
        done = np.repeat(begun.done, begun.block_rows)[: len(begun)]
        at = {item: row for row, item in enumerate(begun.ids) if done[row]}
        rows = np.array([at.get(item, -1) for item in ids], np.int64)
        there = np.flatnonzero(rows >= 0)
        digests, touched = self.contents.digests.copy(), np.zeros(len(ids), np.bool_)
        there = there[~digests[there].any(axis=1)]  # what was read just now is known best
        same = same_stats(begun, self.contents.sizes[there], self.contents.mtimes_ns[there], rows[there])
        same &= not self.settings.rehash
        digests[there[same]] = begun.digests[rows[there[same]]]
        touched[there[~same]] = True
        return dataclasses.replace(self.contents, digests=digests), touched

    def _hashed(self, contents: store.Contents, which: NDArray[np.bool_]) -> store.Contents:
        """The contents with the digests of the items ``which`` (N,) as they are read now."""
        digests = contents.digests.copy()
        ids = [contents.ids[row] for row in np.flatnonzero(which).tolist()]
        digests[which] = read_digests(self.settings, self.desk, self.listing, ids)
        return dataclasses.replace(contents, digests=digests)


def plan_file(settings: ExtractSettings, desk: Workspace, beside: Beside | None) -> Plan:
    """List the source, find the trunk's weights and what is there already, and say what the file must hold.

    Raises:
        ConfigError, DataError, WeightsError, CacheError: whatever can be known before the first image is decoded.
    """
    told = desk if beside is None else desk.silent()
    listing = images.list_source(settings.source, told, images.Columns.of(settings))
    if skipped := images.skip_summary(listing.skipped):
        told.watch.say(skipped)
    for warning in listing.warnings:
        told.watch.warn(warning)
    if not listing.classes:
        told.watch.say(words.no_labels(len(listing.ids)))
    elif bare := int((listing.labels < 0).sum()):
        told.watch.say(words.some_without(bare, len(listing)))
    read = np.zeros((len(listing.ids), 32), np.uint8)
    if beside is not None:
        return _plan_of(target_of_view(settings, desk, beside), settings, desk, listing, read)
    own, others = targets_of(settings, desk, listing, read)
    finished = [_plan_of(other, settings, desk, listing, read) for other in others if other.out.exists()]
    for plan in finished:
        if plan.holds_all_rows():
            desk.watch.say(words.served(plan.out, plan.contents.provenance["engine"], own.kind))
            return plan
    if own.needs is not None:
        raise ConfigError(own.needs)
    plan = _plan_of(own, settings, desk, listing, read)
    if others:
        lacking = finished[0].lacking(finished[0].old) if finished and finished[0].old else None
        desk.watch.say(words.not_gone_on_with(others[0].out, others[0].kind, own.kind, lacking))
    return plan


def _plan_of(
    target: Target, settings: ExtractSettings, desk: Workspace, listing: images.Listing, read: NDArray[np.uint8]
) -> Plan:
    """The plan of one file; what is found of ``read`` (N, 32), digests that are known so far, is put into it."""
    old = existing(target.out, target.provenance)
    digests = known_digests(listing, None if settings.rehash else old)
    just_now = read.any(axis=1)
    digests[just_now] = read[just_now]
    # Content decides the split and what can be reused; else images are hashed when they are decoded.
    if images.needs_carving(listing) or old is not None or _has_donors(target):
        _read_missing(settings, desk, listing, digests)
    read[:] = digests
    splits = images.assign_splits(
        listing,
        digests,
        val_fraction=settings.val_fraction,
        test_fraction=settings.test_fraction,
        seed=settings.split_seed,
    )
    notes = (*listing.notes, *splits.notes)
    contents = _contents(settings, listing, target, digests, splits.splits, notes)
    about = dict(contents.about)
    about["from_here"] = from_here(about["root"], about["weights"], target.out.parent)
    contents = dataclasses.replace(contents, about=about)
    return Plan(settings, desk, listing, target, old, contents, notes)


def _read_missing(s: ExtractSettings, desk: Workspace, listing: images.Listing, digests: NDArray[np.uint8]) -> None:
    """Fill in those of ``digests`` (N, 32) that are all zero and whose images are there."""
    gone = set(listing.missing)
    unknown = np.array([i for i in np.flatnonzero(~digests.any(axis=1)).tolist() if listing.ids[i] not in gone], int)
    if len(unknown):
        digests[unknown] = read_digests(s, desk, listing, [listing.ids[i] for i in unknown])


def _has_donors(target: Target) -> bool:
    key = store.key_of(target.provenance)
    return any(store.digests_at(path, key) is not None for path in donor_files(target.out))


def _contents(
    s: ExtractSettings,
    listing: images.Listing,
    target: Target,
    digests: NDArray[np.uint8],
    splits: NDArray[np.uint8],
    notes: Sequence[str],
) -> store.Contents:
    """What the finished file must hold, rows in order (split, id)."""
    recipe, order = target.recipe, np.lexsort((np.arange(len(listing.ids)), splits))
    if recipe.view is not None:  # val and test are never augmented
        order = order[splits[order] == TRAIN]
        if not len(order):
            raise ConfigError(f"{option('views')} needs train images, and the source has none")
    info = recipe.trunk.info
    about: About = {
        "source": listing.source,
        "root": listing.images.place,
        "notes": list(notes),
        "weights": _lasting_spec(info),
        "pretrained": info.pretrained,
        "readable": {"max_pixels": s.max_pixels or images.MAX_PIXELS, "formats": list(images.readable())},
    }
    if named := images.Columns.of(s).named():
        about["columns"] = named
    return store.Contents(
        ids=[listing.ids[i] for i in order.tolist()],
        digests=digests[order],
        sizes=listing.sizes[order],
        mtimes_ns=listing.mtimes_ns[order],
        labels=listing.labels[order],
        splits=splits[order],
        classes=listing.classes,
        dim=info.dim(recipe.trunk.layer),
        dtype=s.dtype,
        block_rows=s.block_rows or BLOCK_ROWS[target.kind],
        provenance=target.provenance,
        about={**about, **identity.library_version(info.trunk)},
        columns={name: [cells[i] for i in order.tolist()] for name, cells in listing.columns.items()},
    )


def _holds_all(cache: store.Cache, contents: store.Contents) -> bool:
    """The same items with the same bytes, labels and splits."""
    return _same(cache, contents) and bool((cache.digests == contents.digests).all())


def _lasting_spec(info: WeightsInfo) -> str:
    """The weights as a later stage finds them from anywhere: an explicit name, or a file's absolute path."""
    return str(Path(info.spec).resolve()) if info.name == "file" else info.name


def _same(cache: store.Cache, contents: store.Contents) -> bool:
    """The same items, labels and splits in the same order, and no item whose bytes are known on both sides differs.

    A cache whose images have moved is not the same: later stages would look for them where they were.
    """
    if (
        len(cache) != len(contents.ids)
        or cache.classes != contents.classes
        or (cache.labels != contents.labels).any()
        or (cache.splits != contents.splits).any()
        or cache.ids != list(contents.ids)
        or cache.columns != contents.columns
        or not (about_of(cache)["root"] == contents.about["root"] or images_from(cache).there())
    ):
        return False
    theirs, ours = cache.digests, contents.digests
    both = theirs.any(axis=1) & ours.any(axis=1)
    return bool((theirs[both] == ours[both]).all())
