"""Writing a cache: make the whole file first, then only put fixed-size bytes at known places.

The file is created, closed and renamed to ``NAME.h5.partial`` before the first row exists. From then on no HDF5
metadata changes: rows, digests and states go in with positioned writes at the datasets' offsets, a block's checksum and
flag only after its rows are on the disk. A kill can therefore lose the block in work and nothing else, and several
processes can write disjoint blocks of one file.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.base import system
from pipeline.base.errors import CacheError
from pipeline.base.files import move, sync, whole, write_all
from pipeline.base.items import GOOD, ITEM_STATES, PENDING
from pipeline.base.spelling import option
from pipeline.store.check import read_structure
from pipeline.store.format import (
    ALIGNMENT,
    BATCH,
    COLUMNS,
    FORMAT,
    FORMAT_VERSION,
    GROUPS,
    TEXTS,
    Contents,
    block_count,
    block_sums,
    canonical_json,
    column_path,
    columns_sha256,
    finite_and_zero,
    ids_sha256,
    key_of,
    labels_sha256,
    pack,
    packed_column,
    partial_path,
)
from pipeline.store.lock import writing_beside

MOST_ATTRIBUTES = 64
VERSIONED = ("torch", "torchvision", "numpy", "h5py", "pillow")


def stale_partials(cache: Path) -> list[Path]:
    """Unfinished files of earlier listings: nothing resumes them, but their finished rows are still good."""
    return sorted(cache.parent.glob(f"{_glob_safe(cache.name)}.partial.old-*"))


def retire_partial(cache: Path) -> None:
    """Move the unfinished file aside, because the source has changed since; its rows remain usable."""
    taken = {p.name for p in stale_partials(cache)}
    number = next(n for n in range(1, len(taken) + 2) if f"{cache.name}.partial.old-{n}" not in taken)
    move(partial_path(cache), cache.with_name(f"{cache.name}.partial.old-{number}"))


def _glob_safe(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _creation_time() -> str:
    # SOURCE_DATE_EPOCH is the reproducible-builds convention: with it, two runs give the same file to the last bit.
    seconds = float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def create_partial(cache: Path, contents: Contents) -> Path:
    """Create ``cache``'s unfinished file with everything but the features, its space reserved; returns its path.

    Raises:
        CacheError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    partial = partial_path(cache)
    with writing_beside(cache), whole(partial) as draft:
        _write_container(draft, contents)
        structure = read_structure(draft)
        with draft.open("r+b") as file:
            # The file is sparse until now: a full disk is found before the first forward.
            system.reserve(file.fileno(), structure.offset("/features"), structure.nbytes("/features"))
    return partial


def _write_container(path: Path, c: Contents) -> None:
    n, blocks = len(c.ids), block_count(len(c.ids), c.block_rows)
    feature_bytes = n * c.dim * np.dtype(c.dtype).itemsize
    # The format of HDF5 1.8 checksums its metadata; all attributes stay in the root's header (no heap, no index), so
    # that damage to them is found when the file is opened.
    access, creation = h5py.h5p.create(h5py.h5p.FILE_ACCESS), h5py.h5p.create(h5py.h5p.FILE_CREATE)
    access.set_libver_bounds(h5py.h5f.LIBVER_V18, h5py.h5f.LIBVER_V18)
    access.set_alignment(max(1, min(ALIGNMENT, feature_bytes)), ALIGNMENT)
    creation.set_attr_phase_change(MOST_ATTRIBUTES, 0)
    creation.set_obj_track_times(False)  # the clock must not be in the bytes, but for `created`
    with h5py.File(h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_TRUNC, creation, access)) as file:
        timeless = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
        timeless.set_obj_track_times(False)
        for group in sorted(GROUPS):
            h5py.h5g.create(file.id, group.encode(), gcpl=timeless)
        _fixed(file, "/features", (n, c.dim), np.dtype(c.dtype).newbyteorder("<"), None)
        names = [name.encode("utf-8", "surrogatepass") for name in c.classes]
        for place, (texts, end) in zip(TEXTS, (pack(c.ids), pack(names)), strict=True):
            _fixed(file, f"{place}/text", texts.shape, np.dtype("u1"), texts)
            _fixed(file, f"{place}/end", end.shape, np.dtype("<i8"), end)
        columns = {name: packed_column(cells) for name, cells in c.columns.items()}
        for group in (COLUMNS, *sorted(map(column_path, columns))) if columns else ():
            h5py.h5g.create(file.id, group.encode(), gcpl=timeless)
        for name, (texts, end) in sorted(columns.items()):
            _fixed(file, f"{column_path(name)}/text", texts.shape, np.dtype("u1"), texts)
            _fixed(file, f"{column_path(name)}/end", end.shape, np.dtype("<i8"), end)
        state = h5py.enum_dtype(ITEM_STATES, basetype="u1")
        _fixed(file, "/items/digest", (n, 32), np.dtype("u1"), c.digests)
        _fixed(file, "/items/size", (n,), np.dtype("<i8"), c.sizes)
        _fixed(file, "/items/mtime_ns", (n,), np.dtype("<i8"), c.mtimes_ns)
        states = np.full(n, PENDING, "u1")
        _fixed(file, "/items/state", (n,), state, states)
        _fixed(file, "/labels/y", (n,), np.dtype("<i8"), c.labels)
        _fixed(file, "/labels/split", (n,), np.dtype("u1"), c.splits)
        _fixed(file, "/blocks/state", (blocks,), np.dtype("u1"), np.zeros(blocks, "u1"))
        _fixed(file, "/blocks/crc32", (blocks,), np.dtype("<u4"), np.zeros(blocks, "<u4"))
        _fixed(file, BATCH, (blocks,), np.dtype("<i8"), np.zeros(blocks, "<i8"))
        for name, parts in (("items", (c.digests, states)), ("stats", (c.sizes, c.mtimes_ns))):
            _fixed(file, f"/blocks/{name}_crc32", (blocks,), np.dtype("<u4"), block_sums(c.block_rows, *parts))
        text = {
            "format": FORMAT,
            "provenance": canonical_json(c.provenance),
            "key": key_of(c.provenance),
            "versions": canonical_json({name: version(name) for name in VERSIONED}),
            "about": canonical_json(c.about),
            "created": _creation_time(),
            "ids_sha256": ids_sha256(c.ids),
            "labels_sha256": labels_sha256(c.labels, c.splits, c.classes),
            **({"columns_sha256": columns_sha256(columns)} if columns else {}),
        }
        for name, value in text.items():
            blob = value.encode("utf-8", "surrogateescape")
            file.attrs.create(name, blob, dtype=h5py.string_dtype("utf-8", len(blob)))
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["block_rows"] = c.block_rows


def _fixed(
    file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[np.generic], data: NDArray[np.generic] | None
) -> None:
    """A contiguous dataset of fixed-size elements, with its place in the file allocated at once."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)
    kind, space = h5py.h5t.py_create(dtype, logical=True), h5py.h5s.create_simple(shape)
    dataset = h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, space, plist))
    if data is not None and data.size:
        dataset[...] = data


class Writer:
    """Puts finished blocks into an unfinished cache, in any order, from any number of processes.

    Attributes:
        done: (B,) bool: the blocks whose flag and checksum say that they are whole.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.path = partial_path(cache)
        self.structure = s = read_structure(self.path)
        self.rows, self.dim, self.dtype, self.block_rows = s.rows, s.dim, s.dtype, s.block_rows
        self._fd = os.open(self.path, os.O_RDWR)
        self.done = self._finished_blocks()

    def _finished_blocks(self) -> NDArray[np.bool_]:
        flags = np.frombuffer(self._read("/blocks/state"), "u1")
        sums, of_items = (np.frombuffer(self._read(f"/blocks/{name}"), "<u4") for name in ("crc32", "items_crc32"))
        done: NDArray[np.bool_] = flags == 1
        for block in np.flatnonzero(done):
            # A power cut may have kept the flag and lost the rows: a block counts only if its bytes say so.
            start, stop = self.span(int(block))
            offset, length = self._place("/features", start, stop)
            done[block] = zlib.crc32(_pread(self._fd, length, offset)) == sums[block]
        done &= block_sums(self.block_rows, self.digests(), self.states()) == of_items
        return done

    def span(self, block: int) -> tuple[int, int]:
        """First row and one past the last row of a block."""
        start = block * self.block_rows
        return start, min(self.rows, start + self.block_rows)

    def write_block(
        self,
        block: int,
        features: NDArray[np.generic],
        digests: NDArray[np.uint8],
        states: NDArray[np.uint8],
        *,
        batch: int = 0,
        sync: bool = True,
    ) -> None:
        """Write one block: ``features`` (m, D), ``digests`` (m, 32), ``states`` (m,); failed rows are zeroed.

        ``batch`` images at most went through the trunk at once; 0: all rows are copies.

        With ``sync`` it is on the disk when this returns. Without, for rows that are quickly had again, a power cut can
        lose it: its checksum says so then.

        Raises:
            CacheError: a good row is not finite in the cache's dtype or is all zero, or the disk is full.
        """
        start, stop = self.span(block)
        good = states == GOOD
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(features, dtype=self.dtype)
        stored[~good] = 0
        finite, zero = finite_and_zero(stored)
        if not finite.all():
            row, peak = start + int(np.argmin(finite)), float(np.abs(np.nan_to_num(features[~finite])).max())
            cure = (
                f"extract with {option('dtype', 'float32')}"
                if self.dtype == np.float16
                else "the weights give infinite features"
            )
            raise CacheError(f"row {row}: a feature (largest {peak:.4g}) does not fit {self.dtype.name}; {cure}")
        if (zero & good).any():
            row = start + int(np.argmax(zero & good))
            raise CacheError(f"row {row}: all {self.dim} features are zero; the trunk's weights are not sound")
        payload, told = stored.tobytes(), (np.ascontiguousarray(part, "u1") for part in (digests, states))
        items = [part.tobytes() for part in told]
        with writing_beside(self.cache):
            self._write("/features", start, stop, payload)
            self._write("/items/digest", start, stop, items[0])
            self._write("/items/state", start, stop, items[1])
            if BATCH in self.structure.places:  # not in files from before it was written
                self._write(BATCH, block, block + 1, np.array([batch], "<i8").tobytes())
            if sync:
                system.sync_data(self._fd)
            for name, sealed in (("crc32", payload), ("items_crc32", b"".join(items))):
                self._write(f"/blocks/{name}", block, block + 1, np.array([zlib.crc32(sealed)], "<u4").tobytes())
            self._write("/blocks/state", block, block + 1, b"\x01")
            if sync:
                system.sync_data(self._fd)
        self.done[block] = True

    def take_back(self, blocks: Sequence[int]) -> None:
        """Have finished ``blocks`` count as not done: their rows are not to be trusted.

        Raises:
            CacheError: the file cannot be written.
        """
        with writing_beside(self.cache):
            for block in blocks:
                self._write("/blocks/state", block, block + 1, b"\x00")
            system.sync_data(self._fd)
        self.done[list(blocks)] = False

    def states(self) -> NDArray[np.uint8]:
        """(N,) uint8: the items' states as they stand in the file now."""
        return np.frombuffer(self._read("/items/state"), "u1").copy()

    def digests(self) -> NDArray[np.uint8]:
        """(N, 32) uint8: the items' digests as they stand in the file now."""
        return np.frombuffer(self._read("/items/digest"), "u1").reshape(-1, 32).copy()

    def publish(self) -> None:
        """Give the finished file its name, in one step.

        Raises:
            CacheError: a block is not done, or an item is still pending.
        """
        flags = np.frombuffer(self._read("/blocks/state"), "u1")
        if not flags.all() or (self.states() == PENDING).any():
            raise CacheError(f"{self.path} is not finished: {int((flags == 0).sum())} of {len(flags)} blocks are to do")
        with writing_beside(self.cache):
            sync(self.path)
            move(self.path, self.cache)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _place(self, name: str, start: int, stop: int) -> tuple[int, int]:
        row = self.structure.row_bytes(name)
        return self.structure.offset(name) + start * row, (stop - start) * row

    def _write(self, name: str, start: int, stop: int, payload: bytes) -> None:
        offset, length = self._place(name, start, stop)
        if len(payload) != length:
            raise CacheError(f"{name}: {len(payload)} bytes for rows {start}..{stop}, expected {length}")
        write_all(self._fd, payload, offset)

    def _read(self, name: str) -> bytes:
        return _pread(self._fd, self.structure.nbytes(name), self.structure.offset(name))


def _pread(fd: int, length: int, offset: int) -> bytes:
    parts = []
    while length:
        part = system.read_at(fd, min(length, 1 << 30), offset)
        if not part:
            raise CacheError(f"the file ends {length} bytes early: it was cut while in use")
        parts.append(part)
        length, offset = length - len(part), offset + len(part)
    return b"".join(parts)


def update_stats(cache: Path, sizes: NDArray[np.int64], mtimes_ns: NDArray[np.int64]) -> None:
    """Refresh sizes and times of a finished cache in place: they are a shortcut, never part of what the file says.

    To be called under the writing lock, for files whose digests were found unchanged.
    """
    structure = read_structure(cache)
    with writing_beside(cache), cache.open("r+b") as file:
        # Sums last: where a kill comes in between, a block's sizes and times count as unknown and its files are hashed.
        sums = block_sums(structure.block_rows, sizes, mtimes_ns)
        named = (
            ("/items/size", sizes, "<i8"),
            ("/items/mtime_ns", mtimes_ns, "<i8"),
            ("/blocks/stats_crc32", sums, "<u4"),
        )
        for name, values, kind in named:
            write_all(file.fileno(), np.ascontiguousarray(values, kind).tobytes(), structure.offset(name))
        system.sync_data(file.fileno())
