"""The loop of stage one: images in, finished blocks out.

Decoding runs ahead in threads; the trunk works in the calling thread on batches of one fixed shape that never cross a
block; a finished block is on the disk before the next one begins. So a block's bytes depend on its own images and
settings only: not on what was interrupted, on other blocks, or on how many processes share the work.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import EngineError, WeightsError
from pipeline.base.items import GOOD, ITEM_STATES, STATE_NAMES
from pipeline.base.machine import cores
from pipeline.base.ranks import Ranks
from pipeline.base.watch import Tracker
from pipeline.base.words import many
from pipeline.base.workspace import Workspace
from pipeline.images import MAX_PIXELS, Images, Limits, Loaded, Loader, look_ahead
from pipeline.runs.recipe import Recipe
from pipeline.stages.extract.donors import Origin, find_origin
from pipeline.stages.extract.results import Shares, Work
from pipeline.stages.extract.settings import ExtractSettings
from pipeline.store import Cache, Failure, Writer, append_failures, open_partial, partial_failures_path, partial_path
from pipeline.store.fill import blocks_to_do, one_by_one

if TYPE_CHECKING:  # PyTorch takes seconds to import, and a job that only copies rows needs no trunk
    from pipeline.trunk.frozen import FrozenTrunk


@dataclass
class BlockLoop:
    """One run over the blocks that are still to do; ``trunk`` is None when every row is copied.

    ``target`` is the unfinished file as it is opened for reading, ``loader`` one of the images of its ids.
    """

    writer: Writer
    target: Cache
    origin: Origin
    loader: Loader
    trunk: FrozenTrunk | None
    failures_file: Path
    tracker: Tracker
    shares: Shares = field(default_factory=Shares)
    forwards: int = 0
    failed: int = 0
    computed: list[int] = field(default_factory=list)  # finished blocks with rows of the trunk in them

    def __post_init__(self) -> None:
        self.ids, self.digests = self.target.ids, self.target.digests

    def trusted(self, blocks: Sequence[int]) -> None:
        """Do ``blocks`` in order, and take them back where the engine turns out not to compute the trunk.

        Raises:
            Interrupted: after the block in work, when a stop was asked for.
            EngineError: a check of the engine failed, whether the first, a later or the last.
        """
        try:
            try:
                self.run(blocks)
            finally:
                if self.trunk:
                    self.trunk.assert_untouched()
        except EngineError as error:
            if not self.computed:
                raise
            # The next run opens an engine anew and may find nothing: it must not go on from these.
            self.writer.take_back(self.computed)
            raise EngineError(
                f"{error}; {many(len(self.computed), 'finished block')} of this run came from it: not kept, the same "
                "command makes them again"
            ) from error

    def run(self, blocks: Sequence[int]) -> None:
        """Do ``blocks`` in order; raises Interrupted after the block in work when a stop was asked for."""
        loaded = self.loader.load(self._jobs(blocks))
        with one_by_one(self.writer, blocks) as each:
            for block in each:
                # A block is on the disk before the next one is begun, so that a kill can lose one block and no more;
                # the decoding threads go on meanwhile. One of copied rows alone is not waited for.
                before = self.forwards
                done = self._block(block, loaded)
                fresh = self.forwards > before
                self._commit(*done, sync=fresh)
                if fresh:
                    self.computed.append(block)

    def _jobs(self, blocks: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        for block in blocks:
            start, stop = self.writer.span(block)
            for row in (np.flatnonzero(self.origin.donor[start:stop] < 0) + start).tolist():
                yield row, self.ids[row]

    def _block(
        self, block: int, loaded: Iterator[Loaded]
    ) -> tuple[int, NDArray[Any], NDArray[np.uint8], NDArray[np.uint8], list[Failure]]:
        start, stop = self.writer.span(block)
        fresh = int((self.origin.donor[start:stop] < 0).sum())
        # Copied rows alone stay as they are stored.
        features = np.zeros((stop - start, self.writer.dim), np.float32 if fresh else self.writer.dtype)
        digests = self.digests[start:stop].copy()
        states = np.zeros(stop - start, np.uint8)
        failures = self._copy_donors(start, stop, features, digests, states)
        pending: list[tuple[int, NDArray[np.uint8]]] = []
        for _ in range(fresh):
            began = time.perf_counter()
            item = next(loaded)
            if self.forwards:  # until the first batch is full nothing could have been ready
                self.shares.waiting += time.perf_counter() - began
            self.shares.read += item.read_s
            self.shares.decode += item.decode_s
            self.shares.transform += item.transform_s
            at = item.index - start
            digests[at] = np.frombuffer(item.digest, np.uint8)
            if item.failure is not None:
                states[at] = ITEM_STATES[item.failure.kind]
                failures.append(Failure(self.ids[item.index], item.failure.kind, item.failure.reason, item.digest))
                self.failed += 1
                self.tracker.note(f"{self.failed} failed")
                self.tracker.advance()
                continue
            assert item.pixels is not None
            states[at] = GOOD
            pending.append((at, item.pixels))
            if self.trunk and len(pending) >= self.trunk.engine.batch:
                self._forward(pending, features)
        if pending:
            self._forward(pending, features)
        return block, features, digests, states, failures

    def _copy_donors(
        self,
        start: int,
        stop: int,
        features: NDArray[Any],
        digests: NDArray[np.uint8],
        states: NDArray[np.uint8],
    ) -> list[Failure]:
        failures = []
        for number, donor in enumerate(self.origin.donors):
            at = np.flatnonzero(self.origin.donor[start:stop] == number)
            if not len(at):
                continue
            rows = self.origin.row[start:stop][at]
            features[at] = donor.take(rows)
            states[at] = donor.cache.states[rows]
            digests[at] = donor.cache.digests[rows]
            for place, row in zip(at.tolist(), rows.tolist(), strict=True):
                if states[place] != GOOD:
                    told = donor.reasons.get(donor.cache.ids[row])
                    kind = STATE_NAMES[int(states[place])]
                    reason = told.reason if told else "failed in an earlier run"
                    failures.append(Failure(self.ids[start + place], kind, reason, digests[place].tobytes()))
                    self.failed += 1
        return failures

    def _forward(self, pending: list[tuple[int, NDArray[np.uint8]]], features: NDArray[np.float32]) -> None:
        assert self.trunk is not None
        began = time.perf_counter()
        features[[at for at, _ in pending]] = self.trunk.features(np.stack([pixels for _, pixels in pending]))
        self.shares.forward += time.perf_counter() - began
        self.forwards += len(pending)
        self.tracker.advance(len(pending))
        pending.clear()

    def _commit(
        self,
        block: int,
        features: NDArray[Any],
        digests: NDArray[np.uint8],
        states: NDArray[np.uint8],
        failures: list[Failure],
        *,
        sync: bool,
    ) -> None:
        began = time.perf_counter()
        append_failures(self.failures_file, failures)
        self.writer.write_block(block, features, digests, states, sync=sync)
        self.shares.write += time.perf_counter() - began


def recipe_of_begun(out: Path, desk: Workspace) -> Recipe:
    """What the unfinished file of ``out`` is made by, for a process that did not plan it.

    Raises:
        WeightsError: the weights are not to be had here, or are other ones.
    """
    return Recipe.of_cache(open_partial(partial_path(out)), desk)


def _confirm_weights(writer: Writer, settings: ExtractSettings, desk: Workspace) -> None:
    """Before the first image: the transform that was planned with is still the weights' own.

    Raises:
        WeightsError: it is not; the unfinished file goes, unless it has rows.
    """
    from pipeline.trunk.weights import confirm

    try:
        confirm(settings.weights, settings.trunk, settings.preset, desk)
    except WeightsError:
        if not writer.done.any():
            writer.path.unlink()
        raise


def open_trunk(recipe: Recipe, settings: ExtractSettings, block_rows: int, desk: Workspace) -> FrozenTrunk:
    """The trunk with the batch that is asked for, or one that suits device and images."""
    from pipeline.trunk.frozen import FrozenTrunk, default_batch

    # Batches do not cross blocks: one larger than these would be padded each time.
    batch = settings.batch_size or min(block_rows, default_batch(recipe.trunk.device, recipe.geometry().crop))
    return FrozenTrunk(recipe.trunk, batch=batch, work_dir=desk.engines)


@dataclass(frozen=True)
class Job:
    """An unfinished file that is to be filled: that of ``out``.

    ``images`` lie where they are now; what the rows are is read from the file, so every process sees the same.
    ``trunk`` is that of the recipe, where it is open already.
    """

    out: Path
    images: Images
    recipe: Recipe
    settings: ExtractSettings
    trunk: FrozenTrunk | None = None


def do_blocks(job: Job, *, ranks: Ranks, desk: Workspace) -> Work:
    """Do this process's share of the blocks that the file still misses.

    Raises:
        Interrupted: after the block in work, when a signal came.
        CacheError, DataError, WeightsError: what was finished is kept.
        EngineError: what this run computed is not kept; blocks of earlier runs are.
    """
    out, recipe, settings = job.out, job.recipe, job.settings
    target = open_partial(partial_path(out))
    origin = find_origin(out, target)
    with Writer(out) as writer:
        todo = blocks_to_do(writer, ranks)
        if not writer.done.all() and writer.done.any() and ranks.first:
            desk.watch.say(f"resuming: {int(writer.done.sum())} of {len(writer.done)} blocks are done")
        rows = [row for block in todo for row in range(*writer.span(block))]
        # What is counted, and timed, is what goes through the trunk here: not copied rows, not other processes' rows.
        fresh = int((origin.donor[rows] < 0).sum()) if rows else 0
        if fresh and ranks.first:
            _confirm_weights(writer, settings, desk)
        trunk = (job.trunk or open_trunk(recipe, settings, target.block_rows, desk)) if fresh else None
        workers = settings.workers or cores()
        geometry, limits = recipe.geometry(), Limits(settings.max_pixels or MAX_PIXELS)
        ahead = look_ahead(geometry, trunk.engine.batch if trunk else 1)
        loader = Loader(job.images, geometry, workers=workers, ahead=ahead, limits=limits)
        follow = desk.watch.track("extract", fresh) if fresh else nullcontext(Tracker())
        with loader, follow as tracker:
            failures = partial_failures_path(out, ranks.rank)
            loop = BlockLoop(writer, target, origin, loader, trunk, failures, tracker)
            loop.trusted(todo)
    return Work(loop.forwards, loop.shares, trunk.engine.batch if trunk else None)
