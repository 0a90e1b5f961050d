"""Rows of a memory map, read without keeping its pages: what was read of a file counts as this process's memory.

Knows arrays and their maps, nothing of what is in them.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

from pipeline.heads.rows import Array


class MappedRows:
    """Rows (N, D) of a read-only ``numpy.memmap``; every access gives a copy and lets the map's pages go (L3, E6).

    The pages stay in the system's page cache, from where they are mapped again at the cost of a page fault each. Rows
    picked by number are announced first: the disk reads them together, and no more than them.
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
