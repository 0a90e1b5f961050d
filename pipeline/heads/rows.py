"""Rows of features as a solver sees them: read in pieces, standardised, held on a device or read anew each time.

Knows arrays: features (N, D) of any float type, which may be a read-only memory map larger than memory, of which no
pages are kept. Knows nothing of labels or solvers, nor of where the arrays come from.
"""

from __future__ import annotations

import copy
import mmap
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from pipeline.heads.staging import Lane, on_device, on_gpu, stored_type
from pipeline.heads.standardize import Standardization, chunk_rows, copied, identity, row_chunks
from pipeline.heads.threads import by_threads

Array: TypeAlias = npt.NDArray[Any]
T = TypeVar("T")
Chunks: TypeAlias = Iterator[tuple[int, torch.Tensor]]  # (first row's number, rows (n, D))

PICKED_ROWS = 1024  # of a sample that are read at once on a processor
GPU_CHUNK_BYTES = 128 << 20  # of one piece as float64 on a GPU: thousands of cores, and 5 us to ask them anything
GPU_CHUNK_ROWS = 1 << 15  # ... of narrow rows, whose logits take more memory than they
KEPT_BYTES = 16 << 20  # of pages, where many runs of rows are read
PAGE_TABLE_BYTES = 2 << 20  # what one page table maps; a page fault maps its neighbours, too, within one table


class StandardRows:
    """Rows (N, D) handed out standardised in one float type on a device, held there or read anew each time.

    Held and read rows have the same bits: each goes through the same two operations, a subtraction and a product.
    ``resident`` says which they are. A processor holds them standardised; a GPU holds them as they are stored, mostly
    float16, and standardises a piece when it is asked for, which takes it less time than to read twice the bytes.
    """

    def __init__(
        self,
        X: Array,
        s: Standardization | None,
        device: torch.device,
        *,
        resident: bool,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Rows of X (N, D), standardised by ``s`` where given; ``resident`` holds them all."""
        self._X, self._device = X, device
        self.dim, self.resident = int(X.shape[1]), resident
        self._standardise_by(s, dtype)
        self._held: torch.Tensor | None = None
        if resident:
            on_card = on_gpu(device)
            held = torch.empty(X.shape, dtype=stored_type(X) if on_card else dtype, device=device)
            for start, piece in self._sent(0, len(X)) if on_card else self._read(0, len(X)):
                held[start : start + len(piece)] = piece
            self._held = held

    def _standardise_by(self, s: Standardization | None, dtype: torch.dtype) -> None:
        self._s, self.dtype = s, dtype
        self._shift = self._factor = None
        if s is not None:
            self._shift = on_device(s.mean, self._device, dtype)
            self._factor = on_device(1.0 / s.scale, self._device, dtype) if (s.scale != 1).any() else None

    def otherwise(self, s: Standardization | None, dtype: torch.dtype) -> StandardRows:
        """The same rows, standardised by another ``s`` or of another type; what a GPU holds of them is shared."""
        rows = copy.copy(self)
        rows._standardise_by(s, dtype)
        if not on_gpu(self._device):
            rows._held, rows.resident = None, False
        return rows

    @staticmethod
    def held_bytes(X: Array, device: torch.device, dtype: torch.dtype = torch.float32) -> int:
        """Bytes that the rows take when held on a device: as ``dtype`` on a processor, as they are stored on a GPU."""
        kind = stored_type(X) if on_gpu(device) else dtype
        return int(X.size) * int(kind.itemsize)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._X)

    @property
    def stored_bytes(self) -> int:
        """Bytes of a row as it is stored."""
        return int(self.dim * self._X.dtype.itemsize)

    @property
    def device(self) -> torch.device:
        """Where the rows are handed out."""
        return self._device

    @property
    def _piece_rows(self) -> int:
        """Rows of a piece on a GPU."""
        return max(1, min(GPU_CHUNK_ROWS, GPU_CHUNK_BYTES // (8 * self.dim)))

    def _standard(self, x: torch.Tensor) -> torch.Tensor:
        """Rows standardised in place."""
        if self._shift is not None:
            x.sub_(self._shift)
        if self._factor is not None:
            x.mul_(self._factor)
        return x

    def _read(self, start: int, stop: int) -> Chunks:
        """Runs of standardised rows of this machine's memory, which take each other's place, on any device."""
        room = torch.empty(min(len(self), chunk_rows(self.dim)), self.dim, dtype=self.dtype)
        for first, chunk in row_chunks(self._X, start, stop):
            yield first, self._standard(copied(chunk, self.dtype, room=room).to(self._device))

    def _sent(self, start: int, stop: int) -> Chunks:
        """Runs of rows as they are stored, on a GPU: slices of what it holds, or two pieces that take turns."""
        size = self._piece_rows
        pieces = [(first, min(first + size, stop)) for first in range(start, stop, size)]
        if self._held is not None:
            yield from ((first, self._held[first:end]) for first, end in pieces)
        elif lane := self.lane(min(size, stop - start)):
            yield from ((first, lane.send(self._X[first:end])) for first, end in pieces)

    def take(self, at: torch.Tensor) -> torch.Tensor:
        """The rows (n, D) at int64 ``at`` (n,) on the device; where they are a memory map's, ascending: see ``pool``.

        On a GPU they must be held.
        """
        if self._held is None:
            return self._standard(copied(self._stored(at.cpu().numpy()), self.dtype).to(self._device))
        found = self._held.index_select(0, at)
        return self._standard(found.to(self.dtype)) if on_gpu(self._device) else found

    def _stored(self, index: npt.NDArray[np.int64]) -> Array:
        # (of an array np.take is four times as quick as the index in brackets)
        return self._X[index] if isinstance(self._X, MappedRows) else np.take(self._X, index, axis=0)

    def lane(self, n: int) -> Lane | None:
        """What pieces of at most n rows go to a GPU by; None where the device is none."""
        return Lane(n, self.dim, stored_type(self._X), self._device) if on_gpu(self._device) else None

    def pool(self, index: npt.NDArray[np.int64], lane: Lane | None) -> StandardRows:
        """The rows at ascending ``index`` alone, numbered from 0, as they are stored; not of held rows.

        They lie in memory, or on a GPU, where they came by the lane: until the next but one are sent.
        """
        pool = copy.copy(self)
        if lane is None:
            pool._X = self._stored(index)
        else:
            pool._held, pool.resident = lane.send(self._stored(index)), True
        return pool

    def announce(self, index: npt.NDArray[np.int64]) -> None:
        """Have the disk read the rows at ascending ``index`` meanwhile, where they are those of a memory map."""
        if isinstance(self._X, MappedRows):
            self._X.announce(index)

    def chunks(self, start: int = 0, stop: int | None = None) -> Chunks:
        """Rows in order as (first row's number, rows (n, D)); the next rows take the place of those before."""
        stop = len(self) if stop is None else stop
        if on_gpu(self._device):
            room = torch.empty(min(stop - start, self._piece_rows), self.dim, dtype=self.dtype, device=self._device)
            for first, piece in self._sent(start, stop):
                yield first, self._standard(room[: len(piece)].copy_(piece))
        elif self._held is not None:
            for first, chunk in row_chunks(self._X, start, stop):
                yield first, self._held[first : first + len(chunk)]
        else:
            yield from self._read(start, stop)

    def picked(self, places: npt.NDArray[np.int64]) -> Chunks:
        """The rows at ascending ``places`` (n,) in pieces, as (number of its first place, rows)."""
        size = self._piece_rows if on_gpu(self._device) else PICKED_ROWS
        lane = self.lane(min(size, len(places))) if self._held is None else None
        at = torch.from_numpy(places) if self._held is None else on_device(places, self._device)
        for first in range(0, len(at), size):
            some = at[first : first + size]
            if lane is None:
                yield first, self.take(some)
            else:
                yield first, self._standard(lane.send(self._stored(some.numpy())).to(self.dtype, copy=True))

    def weighted_sum(self, weight: torch.Tensor, off: torch.Tensor | None = None) -> torch.Tensor:
        """The sum (D,) of all rows under weights (N,), or of the squares of what they are ``off`` a mean (D,)."""

        def work(chunks: Chunks) -> torch.Tensor:
            total = torch.zeros(self.dim, dtype=self.dtype, device=self._device)
            for start, piece in chunks:
                total += weight[start : start + len(piece)] @ (piece if off is None else (piece - off).square_())
            return total

        return torch.stack(self.by_threads(work)).sum(dim=0)

    def undivided(self, mean: torch.Tensor) -> tuple[StandardRows, torch.Tensor]:
        """Rows off a ``mean`` (D,) of these, but not divided by their scales; and what divides them, (D,) float64.

        On a processor read anew each time, for one operation less than these take.
        """
        s = identity(self.dim) if self._s is None else self._s
        centre = Standardization(s.mean + s.scale * mean.double().cpu().numpy(), np.ones(self.dim))
        return self.otherwise(centre, self.dtype), on_device(s.scale, self._device)

    def by_threads(self, work: Callable[[Chunks], T]) -> list[T]:
        """What ``work`` makes of the chunks of each run of rows, in order; a run for each thread of a processor."""
        if self._device.type != "cpu":
            return [work(self.chunks())]
        return by_threads(len(self), chunk_rows(self.dim), lambda start, stop: work(self.chunks(start, stop)))


class MappedRows:
    """Rows (N, D) of a read-only ``numpy.memmap``; every access gives a copy and lets the map's pages go.

    Kept, they would count as this process's memory. They stay in the system's page cache, from where they are mapped
    again at the cost of a page fault each.
    """

    def __init__(self, X: Array, pages: mmap.mmap) -> None:
        """X as a view of ``pages``, which hold the file's bytes from the map's first page on."""
        self._X, self._pages = X.view(np.ndarray), pages  # (every slice of a memmap costs its bookkeeping)
        self._base = np.frombuffer(pages, np.uint8, 1).ctypes.data
        self._start = X.__array_interface__["data"][0] - self._base
        self.shape, self.dtype, self.ndim, self.size = X.shape, X.dtype, X.ndim, X.size

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._X)

    def __getitem__(self, at: slice | npt.NDArray[np.int64]) -> Array:
        """A copy of the rows at a slice or at ascending numbers (n,), each run of them read at once."""
        if isinstance(at, slice):
            first, end, _ = at.indices(len(self))
            rows = np.array(self._X[first:end])
            self._let_go(first, end)
            return rows
        rows, place, kept = np.empty((len(at), self.shape[1]), self.dtype), 0, 0
        for first, end in runs(at):
            rows[place : place + end - first] = self._X[first:end]
            place += end - first
            if (place - kept) * self._X.strides[0] >= KEPT_BYTES or place == len(at):
                self._let_go(int(at[kept]), end)
                kept = place
        return rows

    def announce(self, index: npt.NDArray[np.int64]) -> None:
        """Have the disk read the rows at ascending ``index`` (n,), and no more than them, without waiting for it."""
        for first, end in runs(index):
            begin, stop = self._bytes(first, end)
            self._pages.madvise(mmap.MADV_WILLNEED, begin - begin % mmap.PAGESIZE, stop - begin + begin % mmap.PAGESIZE)

    def _bytes(self, first: int, end: int) -> tuple[int, int]:
        """Where rows ``first`` to ``end`` begin and end in the map."""
        row_bytes = self._X.strides[0]
        return self._start + first * row_bytes, self._start + end * row_bytes

    def _let_go(self, first: int, end: int) -> None:
        """Let go the pages of rows ``first`` to ``end``, and what else their page tables map: no others are looked at.

        A call for the whole map would look through all of it each time, and reading it would take its square.
        """
        if first >= end:
            return
        begin, stop = (self._base + at for at in self._bytes(first, end))
        begin = max(begin - begin % PAGE_TABLE_BYTES - self._base, 0)
        stop = min(stop + -stop % PAGE_TABLE_BYTES - self._base, len(self._pages))
        self._pages.madvise(mmap.MADV_DONTNEED, begin, stop - begin)


def runs(index: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """The runs of consecutive numbers in ascending ``index`` (n,), each as (first, last + 1)."""
    if not len(index):
        return
    ends = np.flatnonzero(np.diff(index) != 1)
    firsts, lasts = index[np.append(0, ends + 1)], index[np.append(ends, len(index) - 1)]
    yield from zip(firsts.tolist(), (lasts + 1).tolist(), strict=True)


def unkept(X: Array) -> Array:
    """X as :class:`MappedRows` where it is a view of a read-only memory map, otherwise X itself.

    A map that can be written to is left as it is: of a copy-on-write one, letting pages go would lose what was written.
    """
    owner: Any = X
    while isinstance(owner, np.ndarray):
        if isinstance(owner, np.memmap) and owner.mode != "r":
            return X
        owner = owner.base
    rows_in_order = X.ndim == 2 and X.flags.c_contiguous and not X.flags.writeable
    if not (isinstance(owner, mmap.mmap) and hasattr(owner, "madvise") and rows_in_order):
        return X
    return MappedRows(X, owner)  # type: ignore[return-value]  # it has what the solvers use of an array
