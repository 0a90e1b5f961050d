"""The loop of stage one: images in, finished blocks out.

Images are decoded in threads, straight into the batches that the trunk computes, which have one fixed shape and never
cross a block (``ring``); a finished block is written by another thread while the next is computed. So a block's bytes
depend on its own images and settings only: not on what was interrupted, on other blocks, or on how many processes share
the work.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import EngineError, WeightsError
from pipeline.base.items import GOOD, ITEM_STATES, STATE_NAMES
from pipeline.base.machine import cores
from pipeline.base.ranks import Ranks
from pipeline.base.watch import Tracker, Watch
from pipeline.base.words import many
from pipeline.base.workspace import Workspace
from pipeline.images import MAX_PIXELS, Geometry, Images, Limits, Loader
from pipeline.runs.recipe import Recipe
from pipeline.stages.extract import words
from pipeline.stages.extract.donors import Origin, find_origin
from pipeline.stages.extract.results import Shares, Work
from pipeline.stages.extract.settings import ExtractSettings
from pipeline.store import Cache, Failure, Writer, append_failures, open_partial, partial_failures_path, partial_path
from pipeline.store.fill import WriteBehind, blocks_to_do, one_by_one

if TYPE_CHECKING:  # PyTorch takes seconds to import, and a job that only copies rows needs no trunk
    from pipeline.stages.extract.ring import Batch, Job, Ring
    from pipeline.trunk.frozen import FrozenTrunk


@dataclass(eq=False)
class Block:
    """What a block is to hold: features (m, D), digests (m, 32) and states (m,) of its rows, and what failed.

    ``batch``: images in one forward pass, the fewest; 0 where all rows are copies.
    """

    number: int
    features: NDArray[Any]
    digests: NDArray[np.uint8]
    states: NDArray[np.uint8]
    failures: list[Failure]
    batch: int = 0


@dataclass
class BlockLoop:
    """One run over the blocks that are still to do; ``ring`` is None when every row is copied.

    ``target`` is the unfinished file as it is opened for reading; ``watch`` is told where memory does not do.
    """

    writer: Writer
    target: Cache
    origin: Origin
    trunk: FrozenTrunk | None
    ring: Ring | None
    failures_file: Path
    tracker: Tracker
    watch: Watch
    shares: Shares
    forwards: int = 0
    failed: int = 0
    computed: list[int] = field(default_factory=list)  # finished blocks with rows of the trunk in them

    def __post_init__(self) -> None:
        self.ids, self.digests = self.target.ids, self.target.digests
        self._at_once = self.trunk.engine.batch if self.trunk else 0

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
        none: tuple[Batch, ...] = ()
        batches = self.ring.run(self._jobs(blocks)) if self.ring else (batch for batch in none)
        # A block is on the disk before the next but one is begun, so that a kill can lose two blocks and no more; those
        # behind them are being decoded meanwhile.
        # (outermost what hears of a stop: the last block is waited for even then)
        with one_by_one(self.writer, blocks) as each, WriteBehind(self._write) as behind, closing(batches):
            for number in each:
                block = self._block(number, batches)
                began = time.perf_counter()
                behind.add(block)
                self.shares.write += time.perf_counter() - began

    def _jobs(self, blocks: Sequence[int]) -> Iterator[list[Job]]:
        for block in blocks:
            start, stop = self.writer.span(block)
            yield [(row, self.ids[row]) for row in self._fresh(start, stop)]

    def _fresh(self, start: int, stop: int) -> list[int]:
        """Those of the rows that are computed."""
        rows: list[int] = (np.flatnonzero(self.origin.donor[start:stop] < 0) + start).tolist()
        return rows

    def _block(self, number: int, batches: Iterator[Batch]) -> Block:
        start, stop = self.writer.span(number)
        fresh = len(self._fresh(start, stop))
        # Copied rows alone stay as they are stored.
        features = np.zeros((stop - start, self.writer.dim), np.float32 if fresh else self.writer.dtype)
        block = Block(number, features, self.digests[start:stop].copy(), np.zeros(stop - start, np.uint8), [])
        self._copy_donors(start, stop, block)
        while fresh:
            batch = next(batches)
            self._take(batch, start, block)
            fresh -= len(batch.items)
        return block

    def _take(self, batch: Batch, start: int, block: Block) -> None:
        """Put a batch's rows into its block, whose first row is ``start``."""
        assert self.trunk is not None
        at = np.array([item.index - start for item in batch.items])
        block.digests[at] = np.frombuffer(b"".join(item.digest for item in batch.items), np.uint8).reshape(-1, 32)
        for place, item in zip(at.tolist(), batch.items, strict=True):
            self.shares.read += item.read_s
            self.shares.decode += item.decode_s
            self.shares.transform += item.transform_s
            if item.failure is not None:
                block.states[place] = ITEM_STATES[item.failure.kind]
                failure = Failure(self.ids[item.index], item.failure.kind, item.failure.reason, item.digest)
                block.failures.append(failure)
                self.failed += 1
                self.tracker.note(f"{self.failed} failed")
        block.states[at[batch.good]] = GOOD
        block.features[at[batch.good]] = batch.features
        self.forwards += len(batch.good)
        self.tracker.advance(len(batch.items))
        if batch.size != self._at_once:
            self._at_once = batch.size
            self.watch.say(words.fewer_at_once(batch.size))
        block.batch = min(block.batch or batch.size, batch.size)

    def _copy_donors(self, start: int, stop: int, block: Block) -> None:
        for number, donor in enumerate(self.origin.donors):
            at = np.flatnonzero(self.origin.donor[start:stop] == number)
            if not len(at):
                continue
            rows = self.origin.row[start:stop][at]
            block.features[at] = donor.take(rows)
            block.states[at] = donor.cache.states[rows]
            block.digests[at] = donor.cache.digests[rows]
            for place, row in zip(at.tolist(), rows.tolist(), strict=True):
                if block.states[place] != GOOD:
                    told = donor.reasons.get(donor.cache.ids[row])
                    kind = STATE_NAMES[int(block.states[place])]
                    reason = told.reason if told else "failed in an earlier run"
                    failure = Failure(self.ids[start + place], kind, reason, block.digests[place].tobytes())
                    block.failures.append(failure)
                    self.failed += 1

    def _write(self, block: Block) -> None:
        """Put a block on the disk; one of copied rows alone, which are quickly had again, is not waited for."""
        append_failures(self.failures_file, block.failures)
        if block.batch:
            self.computed.append(block.number)
        self.writer.write_block(
            block.number, block.features, block.digests, block.states, batch=block.batch, sync=block.batch > 0
        )


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
class Task:
    """An unfinished file that is to be filled: that of ``out``.

    ``images`` lie where they are now; what the rows are is read from the file, so every process sees the same.
    ``trunk`` is that of the recipe, where it is open already.
    """

    out: Path
    images: Images
    recipe: Recipe
    settings: ExtractSettings
    trunk: FrozenTrunk | None = None


def do_blocks(job: Task, *, ranks: Ranks, desk: Workspace) -> Work:
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
        loader, shares = Loader(job.images, geometry, workers=workers, limits=limits), Shares()
        follow = desk.watch.track("extract", fresh) if fresh else nullcontext(Tracker())
        with loader, follow as tracker:
            failures, ring = partial_failures_path(out, ranks.rank), _ring(trunk, loader, geometry, shares)
            loop = BlockLoop(writer, target, origin, trunk, ring, failures, tracker, desk.watch, shares)
            loop.trusted(todo)
    return Work(loop.forwards, shares, trunk.engine.batch if trunk else None)


def _ring(trunk: FrozenTrunk | None, loader: Loader, geometry: Geometry, shares: Shares) -> Ring | None:
    if trunk is None:
        return None
    from pipeline.stages.extract.ring import Ring

    return Ring(trunk, loader, geometry, shares)
