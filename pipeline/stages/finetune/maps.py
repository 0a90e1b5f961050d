"""The maps before the last stage, computed once and kept: each epoch of ``--train last`` costs that stage alone.

They are kept in the feature cache's own format (a row is the numbers of one image, float16) under a key of their
own, so that checksums, resuming, and writing by several processes are those of the feature cache. A file is known by
its key and by the bytes of its images; labels and splits are not in it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline import store
from pipeline.base.arithmetic import arithmetic
from pipeline.base.errors import CacheError, ConfigError
from pipeline.base.files import make_folder, writing
from pipeline.base.items import GOOD
from pipeline.base.machine import kind_of_device
from pipeline.base.ranks import Ranks
from pipeline.base.spelling import option
from pipeline.base.words import count, shape, size
from pipeline.base.workspace import Workspace
from pipeline.runs.network import normalised
from pipeline.runs.pixels import pixels_of
from pipeline.runs.recipe import Recipe
from pipeline.stages.finetune.start import Attached
from pipeline.store import Cache, key_of, partial_path
from pipeline.store.fill import WriteBehind, blocks_to_do, one_by_one
from pipeline.store.rewrite import tidy
from pipeline.trunk import identity
from pipeline.trunk.cut import shape_of
from pipeline.trunk.families import FAMILIES, parted

DTYPE = np.dtype(np.float16)
CONFIRMED_BYTES = 10e9  # more than this needs --yes
BLOCK_BYTES = 32e6  # of the blocks of which a kill can lose two
BATCH = 32


class PrefixMaps:
    """Where the maps of cache rows ``rows`` lie, or will lie, and how large they are.

    Attributes:
        shape: of one image's maps, (C, H, W) or as the network has them.
        path: the file.
    """

    def __init__(self, front: nn.Module, attached: Attached, rows: NDArray[np.int64], desk: Workspace) -> None:
        cache, recipe = attached.cache, attached.recipe
        self.front, self.recipe, self.cache, self.rows = front, recipe, cache, np.sort(rows)
        self.shape = shape_of(front, recipe.trunk.info.transform.crop)
        before = attached.anatomy.stages[-2].name if len(attached.anatomy.stages) > 1 else "input"
        self.provenance = maps_provenance(recipe, before, self.shape)
        self.key = key_of(self.provenance)
        self.digests = cache.digests[self.rows]
        images = hashlib.sha256(self.digests.tobytes()).hexdigest()
        stem = cache.path.name.removesuffix(".h5")
        self.path = desk.maps / f"{stem}-{before.replace('.', '_')}-{self.key[:8]}-{images[:8]}.h5"

    @property
    def dim(self) -> int:
        """Numbers in a row."""
        return int(np.prod(self.shape))

    @property
    def size(self) -> int:
        """Size of the maps on disk."""
        return len(self.rows) * self.dim * DTYPE.itemsize

    def announce(self, desk: Workspace, *, confirmed: bool) -> None:
        """Say how large the maps are, before anything is written.

        Raises:
            ConfigError: more than 10 GB without ``--yes``, or more than the disk has room for.
        """
        if self.path.exists():
            desk.watch.say(f"maps before the last stage: {self.path}, made before")
            return

        images = f"{count(len(self.rows))} images, {shape(self.shape)} each"
        what = f"the maps before the last stage of {images}, take {size(self.size)}"
        way_out = f"or {option('prefix', False)} to go through the whole trunk in each epoch"
        if self.size > CONFIRMED_BYTES and not confirmed:
            raise ConfigError(f"{what} in {self.path.parent}: give {option('yes', True)} to keep them there, {way_out}")
        with writing(self.path.parent):
            make_folder(self.path.parent)
            free = shutil.disk_usage(self.path.parent).free
        if self.size > free and not self._begun():
            raise ConfigError(f"{what}, and {self.path.parent} has {size(free)} left: free space, {way_out}")
        desk.watch.say(f"{what} ({self.path}; delete it when you are done)")

    def _begun(self) -> bool:
        return partial_path(self.path).exists()

    def make(self, *, ranks: Ranks, device: str, workers: int, desk: Workspace) -> Cache:
        """The maps, computed as far as they are not there yet; every process does its share of the blocks.

        Raises:
            Interrupted: after a signal; finished blocks are kept.
            CacheError, DataError: the disk is full, another process writes them, or an image has changed.
        """
        if not ranks.first:
            if ranks.told()["make"]:
                self._fill(ranks, device, workers, desk.silent())
                ranks.total(0)
            return store.open_cache(self.path)
        with ranks.leading() as announce:
            make = not self.path.exists()
            if make:
                with store.writing_lock(self.path):
                    self._begin()
                    announce({"make": True})
                    self._fill(ranks, device, workers, desk)
                    with store.Writer(self.path) as writer:
                        writer.publish()
                    ranks.total(0)
            cache = store.open_cache(self.path)
            self._require(cache)
            tidy(cache)
            if not make:
                announce({"make": False})
            return cache

    def _require(self, cache: Cache) -> None:
        """Raises CacheError when the file is not of these images and settings, or a row is damaged."""
        if cache.key != self.key or not np.array_equal(cache.digests, self.digests):
            raise CacheError(f"{self.path} holds other maps than its name says: delete it, and it is made again")
        cache.verify()

    def _begin(self) -> None:
        """Have an unfinished file of these maps."""
        partial = store.partial_path(self.path)
        if partial.exists():
            begun = store.open_partial(partial)
            if begun.key == self.key and begun.ids == self._ids():
                return
            partial.unlink()
        n = len(self.rows)
        sizes, times = self.cache.stats
        contents = store.Contents(
            ids=self._ids(),
            digests=self.digests,
            sizes=sizes[self.rows],
            mtimes_ns=times[self.rows],
            labels=np.full(n, -1, np.int64),
            splits=np.zeros(n, np.uint8),
            classes=(),
            dim=self.dim,
            dtype=DTYPE.name,
            block_rows=max(1, int(BLOCK_BYTES / (self.dim * DTYPE.itemsize))),
            provenance=self.provenance,
            about={**self.cache.about, "maps_of": self.cache.path.name},
        )
        store.create_partial(self.path, contents)

    def _ids(self) -> list[bytes]:
        ids = self.cache.ids
        return [ids[row] for row in self.rows.tolist()]

    def _fill(self, ranks: Ranks, device: str, workers: int, desk: Workspace) -> None:
        """Compute this process's share of the blocks that are missing."""
        with store.Writer(self.path) as writer:
            todo = blocks_to_do(writer, ranks)
            spans = [writer.span(block) for block in todo]
            images = self._batches(spans, device, workers)
            follow = desk.watch.track("maps before the last stage", sum(b - a for a, b in spans))

            def write(block: tuple[int, NDArray[np.float32]]) -> None:
                number, maps = block
                first, last = writer.span(number)
                writer.write_block(number, maps, self.digests[first:last], np.full(last - first, GOOD, np.uint8))

            with follow as tracker, one_by_one(writer, todo) as each, WriteBehind(write) as behind:
                for block in each:
                    first, last = writer.span(block)
                    found = np.empty((last - first, self.dim), np.float32)
                    at = 0
                    while at < last - first:
                        part = next(images)
                        found[at : at + len(part)] = part
                        at += len(part)
                        tracker.advance(len(part))
                    behind.add((block, found))
        ranks.total(0)  # every block is on the disk

    def _batches(self, spans: list[tuple[int, int]], device: str, workers: int) -> Iterator[NDArray[np.float32]]:
        """Maps (m, numbers) float32 of the images of the spans, in batches that never cross a block."""
        batches = [
            self.rows[start : min(last, start + BATCH)].tolist()
            for first, last in spans
            for start in range(first, last, BATCH)
        ]
        pixels = pixels_of(self.cache, batches, geometry=self.recipe.geometry(), workers=workers)
        for _, batch in pixels:
            with torch.inference_mode(), arithmetic():
                maps = self.front(normalised(batch, self.recipe.trunk.info, device))
            yield maps.float().contiguous().flatten(1).cpu().numpy()


def maps_provenance(recipe: Recipe, before: str, shape: tuple[int, ...]) -> Mapping[str, Any]:
    """What decides the maps' numbers: the feature cache's fields, with the layer, no pooling, and the plain network."""
    # The cache's own engine need not be installed here.
    told, library = recipe.computed(engine="torch").provenance(), FAMILIES[parted(recipe.trunk.info.trunk)[0]]
    return {
        **told,
        "trunk": {**told["trunk"], "layer": before, "pooling": "none", "shape": list(shape)},
        "dtype": DTYPE.name,
        "precision": "float32",
        "engine": {
            "name": library,
            "version": identity.engine_version("torch"),
            "device": kind_of_device(recipe.trunk.device),
        },
    }
