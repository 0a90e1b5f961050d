"""Batches on their way through a trunk: loaded into slots by threads, computed, and given back in order.

A slot is room for one batch; there are a few of them, which go round. The threads that decode write their images
straight into one while the trunk computes another, on a GPU two at once, so that it never waits for Python. Knows
images and a trunk; nothing of blocks and files.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.base.machine import kind_of_device
from pipeline.images import Geometry, Loaded, Loader, look_ahead
from pipeline.stages.extract.results import Shares
from pipeline.trunk.engines.base import Slot
from pipeline.trunk.frozen import FrozenTrunk

AT_WORK = {"cpu": 1, "cuda": 2, "mps": 1}  # batches that are computed at once: while one ends the next is begun

Job = tuple[int, bytes]  # of an image, its number and id


@dataclass(eq=False)
class Batch:
    """Images of a batch in order, and of those at the places ``good`` the features (n, D) float32."""

    slot: Slot
    opened: int  # which of the trunk's engines the slot is of
    coming: list[Future[Loaded]]
    size: int  # images of a batch of the engine that computes it
    items: list[Loaded] = field(default_factory=list)
    good: list[int] = field(default_factory=list)
    features: NDArray[np.float32] | None = None  # None while it is under way


class Ring:
    """The slots, and the batches in them: each is being loaded, then computed, then given back.

    ``shares`` are added to: the seconds that the trunk's thread waits for images, and those that it computes.
    """

    def __init__(self, trunk: FrozenTrunk, loader: Loader, geometry: Geometry, shares: Shares) -> None:
        self._trunk, self._loader, self._geometry, self._shares = trunk, loader, geometry, shares
        self._loading: deque[Batch] = deque()
        self._running: deque[Batch] = deque()
        self._free: deque[Slot] = deque()
        self._begun = False
        self._at_work = AT_WORK[kind_of_device(trunk.spec.device)]
        self._renew()

    def _renew(self) -> None:
        """From now on slots are of the engine that is in use now; they are made where they are needed."""
        self._opened, self._made = self._trunk.opened, 0
        self._free.clear()
        batch = self._trunk.engine.batch
        self._most = math.ceil(look_ahead(self._geometry, batch) / batch) + self._at_work

    def run(self, blocks: Iterable[Sequence[Job]]) -> Generator[Batch, None, None]:
        """The images of each block in batches that do not cross it, in order, each read as far as there are slots.

        Closing the iterator cancels what has not been started.
        """
        todo = self._cut(blocks)
        try:
            while True:
                while self._has_room() and (jobs := next(todo, None)) is not None:
                    slot = self._free.popleft()
                    coming = [self._loader.begin(*job, slot.places[at]) for at, job in enumerate(jobs)]
                    self._loading.append(Batch(slot, self._opened, coming, len(slot.places)))
                if self._loading and len(self._running) < self._at_work:
                    self._compute(self._loading.popleft())
                elif self._running:
                    batch = self._running.popleft()
                    self._collect(batch)
                    yield batch
                    if batch.opened == self._opened:
                        self._free.append(batch.slot)
                else:
                    return
        finally:
            for batch in self._loading:
                for future in batch.coming:
                    future.cancel()

    def _cut(self, blocks: Iterable[Sequence[Job]]) -> Iterator[Sequence[Job]]:
        for block in blocks:
            at = 0
            while at < len(block):
                size = self._trunk.engine.batch  # may be a smaller one by then
                yield block[at : at + size]
                at += size

    def _has_room(self) -> bool:
        """Whether a slot is free; one more is made where none is and there may be more."""
        if not self._free and self._made < self._most:
            slot = self._trunk.slot()
            if slot is not None:
                self._free.append(slot)
                self._made += 1
            elif self._made > self._at_work:
                self._most = self._made  # these will do
            else:
                self._shrink()
                return self._has_room()
        return bool(self._free)

    def _shrink(self) -> None:
        """Have an engine of half the batch, and slots of it."""
        for batch in self._running:
            self._collect(batch)  # what computes them is about to go
        self._trunk.smaller()
        self._renew()

    def _compute(self, batch: Batch) -> None:
        """Wait for a batch's images, and begin to compute them."""
        began = time.perf_counter()
        batch.items = [future.result() for future in batch.coming]
        ready = time.perf_counter()
        if self._running:
            self._shares.forward += ready - began
        elif self._begun:  # until the first batch is full nothing could have been ready
            self._shares.waiting += ready - began
        self._begun = True
        batch.good = [at for at, item in enumerate(batch.items) if item.pixels is not None]
        places = batch.slot.places
        places[len(batch.items) :] = 0
        for at, item in enumerate(batch.items):
            if item.pixels is None:
                places[at] = 0
        if not batch.good:
            batch.features = np.zeros((0, self._trunk.dim), np.float32)
        elif batch.opened != self._opened:
            self._compute_at_once(batch)
        elif not self._trunk.start(batch.slot):
            self._shrink()
            self._compute_at_once(batch)
        self._running.append(batch)
        self._shares.forward += time.perf_counter() - ready

    def _compute_at_once(self, batch: Batch) -> None:
        """Have the features of a batch that lies in a slot of an engine that has gone."""
        batch.features = self._trunk.features(batch.slot.pixels(batch.good))
        batch.size = self._trunk.engine.batch
        if self._trunk.opened != self._opened:
            self._renew()

    def _collect(self, batch: Batch) -> None:
        """Have a batch's features, which may have to be waited for."""
        began = time.perf_counter()
        if batch.features is None:
            batch.features = self._trunk.finish(batch.slot, batch.good)
        self._shares.forward += time.perf_counter() - began
