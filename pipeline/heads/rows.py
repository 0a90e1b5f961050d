"""Rows of features as a solver sees them: read in pieces, standardised, held on a device or read anew each time.

Knows arrays: features (N, D) of any float type, which may be a read-only memory map larger than memory, of which no
pages are kept. Knows nothing of labels or solvers, nor of where the arrays come from.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from pipeline.heads.standardize import Standardization, chunk_rows, copied, identity, row_chunks
from pipeline.heads.threads import by_threads

Array: TypeAlias = npt.NDArray[Any]
T = TypeVar("T")
Chunks: TypeAlias = Iterator[tuple[int, torch.Tensor]]  # (first row's number, rows (n, D))


class StandardRows:
    """Rows (N, D) handed out standardised in one float type on a device, held there or read anew each time.

    Held and read rows have the same bits: each goes through the same two operations.
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
        """Rows of X (N, D), standardised by ``s`` where given; ``resident`` holds them all as ``dtype``."""
        self._X, self._s = X, s
        self._device = device
        self.dtype, self.dim = dtype, X.shape[1]
        self._shift: torch.Tensor | None = None
        self._factor: torch.Tensor | None = None
        if s is not None:
            self._shift = torch.from_numpy(s.mean).to(device, dtype)
            self._factor = torch.from_numpy(1.0 / s.scale).to(device, dtype) if (s.scale != 1).any() else None
        self._held: torch.Tensor | None = None
        if resident:
            held = torch.empty(X.shape, dtype=dtype, device=device)
            for start, chunk in row_chunks(X):
                held[start : start + len(chunk)] = self._standard(chunk)
            self._held = held

    @staticmethod
    def held_bytes(X: Array, dtype: torch.dtype = torch.float32) -> int:
        """Bytes that the rows take when held as ``dtype``."""
        return int(X.size) * dtype.itemsize

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._X)

    def _standard(self, rows: Array, room: torch.Tensor | None = None) -> torch.Tensor:
        x = copied(rows, self.dtype, room=room).to(self._device)
        if self._shift is not None:
            x.sub_(self._shift)
        if self._factor is not None:
            x.mul_(self._factor)
        return x

    def take(self, index: npt.NDArray[np.int64]) -> torch.Tensor:
        """The rows (n, D) at ``index`` (n,), best sorted so that a memory map is read forwards."""
        if self._held is not None:
            return self._held.index_select(0, torch.from_numpy(index).to(self._device))
        return self._standard(self._X[index])

    def chunks(self, start: int = 0, stop: int | None = None) -> Chunks:
        """Rows in order as (first row's number, rows (n, D)); the next rows take the place of those before."""
        if self._held is not None:
            for first, chunk in row_chunks(self._X, start, stop):
                yield first, self._held[first : first + len(chunk)]
            return
        room = torch.empty(min(len(self), chunk_rows(self.dim)), self.dim, dtype=self.dtype)
        for first, chunk in row_chunks(self._X, start, stop):
            yield first, self._standard(chunk, room)

    def undivided(self, mean: torch.Tensor) -> tuple[StandardRows, torch.Tensor]:
        """Rows off a ``mean`` (D,) of these, but not divided by their scales; and what divides them, (D,) float64.

        Read anew each time, for one operation less than these take.
        """
        s = identity(self.dim) if self._s is None else self._s
        centre = Standardization(s.mean + s.scale * mean.double().cpu().numpy(), np.ones(self.dim))
        rows = StandardRows(self._X, centre, self._device, resident=False, dtype=self.dtype)
        return rows, torch.from_numpy(s.scale).to(self._device)

    def by_threads(self, work: Callable[[Chunks], T]) -> list[T]:
        """What ``work`` makes of the chunks of each run of rows, in order; a run for each thread of a processor."""
        if self._device.type != "cpu":
            return [work(self.chunks())]
        return by_threads(len(self), chunk_rows(self.dim), lambda start, stop: work(self.chunks(start, stop)))


class MappedRows:
    """Rows (N, D) of a read-only ``numpy.memmap``; every access gives a copy and lets the map's pages go.

    Kept, they would count as this process's memory. They stay in the system's page cache, from where they are mapped
    again at the cost of a page fault each. Rows picked by number are announced first: the disk reads them together, and
    no more than them.
    """

    def __init__(self, X: Array, pages: mmap.mmap) -> None:
        """X as a view of ``pages``, which hold the file's bytes from the map's first page on."""
        self._X, self._pages = X, pages
        self._start = X.__array_interface__["data"][0] - np.frombuffer(pages, np.uint8, 1).ctypes.data
        self.shape, self.dtype, self.ndim, self.size = X.shape, X.dtype, X.ndim, X.size

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._X)

    def __getitem__(self, at: slice | Array) -> Array:
        """A copy of the rows at a slice or at numbers (n,)."""
        if not isinstance(at, slice):
            self._announce(at)
        rows = np.array(self._X[at])
        self._pages.madvise(mmap.MADV_DONTNEED)
        return rows

    def _announce(self, index: Array) -> None:
        row_bytes = self._X.strides[0]
        for row in index.tolist():
            first = self._start + row * row_bytes
            page = first - first % mmap.PAGESIZE
            self._pages.madvise(mmap.MADV_WILLNEED, page, first + row_bytes - page)


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
