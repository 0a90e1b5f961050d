"""What stage one is asked for, what is there already, and the difference. Runs no trunk and, mostly, reads no image.

The plan of a job is the whole content of the file to be made, rows in order, and for every row either the place in an
earlier file to copy it from or the word that it must be computed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import images, store
from pipeline.base.errors import CacheError, ConfigError
from pipeline.base.items import GOOD, TRAIN
from pipeline.base.machine import cores, resolve_device
from pipeline.base.workspace import Workspace
from pipeline.runs.recipe import Recipe
from pipeline.stages.extract.donors import _key_at, donor_files
from pipeline.stages.extract.settings import ExtractSettings
from pipeline.trunk import identity
from pipeline.trunk.identity import TrunkSpec, WeightsInfo
from pipeline.trunk.lookup import find_weights

BLOCK_ROWS = {"cpu": 128, "cuda": 1024}  # a few seconds of work each: what a kill can lose at most


class Plan:
    """One call of stage one: the settings, the images, the trunk, the file.

    Attributes:
        listing: the source's images.
        recipe: what is asked for; ``key`` the cache key that it gives.
        out: the file to make.
        old: the finished file that is there now, if any.
        contents: what the finished file must hold.
        notes: what was decided about splits, for the user.
    """

    def __init__(self, settings: ExtractSettings, desk: Workspace, view: images.View | None = None) -> None:
        self.settings, self.desk, self.view = settings, desk, view
        self.listing = images.list_source(settings.source, desk)
        if self.listing.skipped and view is None:
            desk.watch.say(images.skip_summary(self.listing.skipped))
        if not self.listing.classes and view is None:
            desk.watch.say(
                f"no class folders: {len(self.listing.ids):,} images without labels; heads cannot learn from them"
            )
        self.device = resolve_device(settings.device)
        self.recipe, self.out = self._identity()
        self.provenance = self.recipe.provenance()
        self.key = store.key_of(self.provenance)
        self.old = self._existing()
        self.contents = self._contents()

    def _identity(self) -> tuple[Recipe, Path]:
        s = self.settings
        info = find_weights(s.weights, s.trunk, self.desk)
        if s.image_size is not None:
            info = identity.with_image_size(info, s.image_size)
        n = len(self.listing.ids)
        preferred = identity.choose_engine(s.engine, device=self.device, n_images=n, image_size=info.crop)
        # With --engine auto, a file that another installed engine has already begun or made is gone on with.
        names = [
            preferred,
            *(e for e in identity.available_engines(self.device) if s.engine == "auto" and e != preferred),
        ]
        recipes = [
            Recipe(TrunkSpec(info, s.layer, name, s.precision, self.device), s.dtype, self.view) for name in names
        ]
        keyed = [(recipe, store.key_of(recipe.provenance())) for recipe in recipes]
        found = [(recipe, s.out or self._default_path(info, key), key) for recipe, key in keyed]
        return next(((recipe, path) for recipe, path, key in found if _key_at(path) == key), found[0][:2])

    def _default_path(self, info: WeightsInfo, key: str) -> Path:
        """A telling name, with a number when a folder of the same name that still exists elsewhere has taken it."""
        folder = self.desk.features
        name = info.path.stem if info.name == "file" and info.path else info.name
        weights = re.sub(r"[^A-Za-z0-9]+", "", name)[:24]
        stem = f"{self.listing.name}-{info.trunk}-{weights}-{info.crop}px-{key[:8]}".lower()
        for number in range(1, 1000):
            path = folder / (f"{stem}.h5" if number == 1 else f"{stem}-{number}.h5")
            there = path if path.exists() else store.partial_path(path)
            if not there.exists():
                return path
            home = os.fsencode(store.open_partial(there).about.get("root", ""))
            if home == os.path.realpath(self.listing.root) or not os.path.exists(home):
                return path
        raise CacheError(f"{folder} has 999 caches named {stem}: name one with --out")

    def _existing(self) -> store.Cache | None:
        if not self.out.exists():
            return None
        cache = store.open_cache(self.out)
        if cache.key != self.key:
            fields = "; ".join(
                f"{name}: {theirs!r} there, {mine!r} asked for"
                for name, theirs, mine in store.difference(cache.provenance, self.provenance)
            )
            raise CacheError(
                f"{self.out} was made with other settings ({fields}): give another --out, or these settings"
            )
        return cache

    def _contents(self) -> store.Contents:
        """What the finished file must hold, rows in order (split, id)."""
        listing, s = self.listing, self.settings
        digests = _known_digests(listing, None if s.rehash else self.old)
        unknown = np.flatnonzero(~digests.any(axis=1))
        if len(unknown) and (images.needs_carving(listing) or self.old is not None or donor_files(self.out, self.key)):
            # Content decides the split and what can be reused, so the bytes are read before anything is planned.
            with self.desk.watch.track("hash", len(unknown)) as tracker:
                paths = [listing.path(int(i)) for i in unknown]
                digests[unknown] = images.digest_many(paths, workers=s.workers or cores(), progress=tracker.advance)
        plan = images.assign_splits(
            listing, digests, val_fraction=s.val_fraction, test_fraction=s.test_fraction, seed=s.split_seed
        )
        self.notes = (*listing.notes, *plan.notes)
        order = np.lexsort((np.arange(len(listing.ids)), plan.splits))
        if self.view is not None:  # val and test are never augmented
            order = order[plan.splits[order] == TRAIN]
            if not len(order):
                raise ConfigError("--views needs train images, and the source has none")
        return store.Contents(
            ids=[listing.ids[i] for i in order.tolist()],
            digests=digests[order],
            sizes=listing.sizes[order],
            mtimes_ns=listing.mtimes_ns[order],
            labels=listing.labels[order],
            splits=plan.splits[order],
            classes=listing.classes,
            dim=identity.feature_dim(s.trunk, s.layer),
            dtype=s.dtype,
            block_rows=s.block_rows or BLOCK_ROWS[self.device],
            provenance=self.provenance,
            about={
                "source": listing.source,
                "root": self.images_root,
                "notes": list(self.notes),
                "weights": _lasting_spec(s.weights),
                "pretrained": self.recipe.trunk.info.pretrained,
            },
        )

    @property
    def images_root(self) -> str:
        """The folder that ids are relative to, as the system's own text form of its bytes."""
        return os.fsdecode(os.path.realpath(self.listing.root))

    def unchanged(self) -> bool:
        """Whether the file that is there holds exactly what is asked for; answered without reading any image."""
        if self.old is None or self.settings.rehash or not self._holds_all(self.old):
            return False
        sizes, times = self.old.stats
        return bool((sizes == self.contents.sizes).all() and (times == self.contents.mtimes_ns).all())

    def refresh(self) -> bool:
        """Under the lock: whether nothing but sizes and times had to be renewed."""
        self.old = self._existing()  # another job may have published it while we planned
        if self.old is None or not self._holds_all(self.old):
            return False
        store.update_stats(self.out, self.contents.sizes, self.contents.mtimes_ns)
        return True

    def _holds_all(self, cache: store.Cache) -> bool:
        """The same items with the same bytes, labels and splits; an item whose bytes nobody knows is not the same."""
        return _same(cache, self.contents) and bool((cache.digests == self.contents.digests).all())

    def begin(self) -> bool:
        """Under the lock: have an unfinished file of this plan; returns whether one is resumed.

        Raises:
            CacheError: an unfinished file of other settings is in the way, or nothing can be written.
        """
        partial = store.partial_path(self.out)
        if partial.exists():
            begun = store.open_partial(partial)
            if begun.key != self.key:
                raise CacheError(
                    f"{partial} was begun with other settings: finish it with those, remove it, or give another --out"
                )
            # A file that could not even be read is tried again: nothing tells whether it has been mended since.
            unread = (begun.states > GOOD) & ~begun.digests.any(axis=1)
            if _same(begun, self.contents) and begun.block_rows == self.contents.block_rows and not unread.any():
                return True
            self.desk.watch.say("the source has changed since the interruption: finished rows are reused")
            store.retire_partial(self.out)
        for note in self.notes if self.view is None else ():
            self.desk.watch.say(note)
        store.create_partial(self.out, self.contents)
        return False


def _lasting_spec(weights: str) -> str:
    """The weights as given, a file's path made absolute, so that a later stage finds them from anywhere."""
    return str(Path(weights).resolve()) if Path(weights).is_file() else weights


def _same(cache: store.Cache, contents: store.Contents) -> bool:
    """The same items, labels and splits in the same order, and no item whose bytes are known on both sides differs."""
    if (
        len(cache) != len(contents.ids)
        or cache.classes != contents.classes
        or (cache.labels != contents.labels).any()
        or (cache.splits != contents.splits).any()
        or cache.ids != list(contents.ids)
    ):
        return False
    theirs, ours = cache.digests, contents.digests
    both = theirs.any(axis=1) & ours.any(axis=1)
    return bool((theirs[both] == ours[both]).all())


def _known_digests(listing: images.Listing, old: store.Cache | None) -> NDArray[np.uint8]:
    """(N, 32) digests of the items whose path, size and time are those of ``old``; zeros for the others."""
    digests = np.zeros((len(listing.ids), 32), np.uint8)
    if old is None:
        return digests
    sizes, times = old.stats
    at = {item: row for row, item in enumerate(old.ids)}
    rows = np.array([at.get(item, -1) for item in listing.ids], np.int64)
    same = rows >= 0
    same[same] = (sizes[rows[same]] == listing.sizes[same]) & (times[rows[same]] == listing.mtimes_ns[same])
    digests[same] = old.digests[rows[same]]
    return digests
