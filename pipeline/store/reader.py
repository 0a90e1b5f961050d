"""Reading a cache: checked when it is opened, mapped into memory, served one split at a time.

Knows arrays and ids; nothing of images or networks. Features come through one read-only memory map: nothing is copied,
any number of processes read at once, and nothing is locked.  h5py is used for the structure only and never kept open,
so that a :class:`Cache` pickles and survives fork, spawn and forkserver.
"""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import CacheError
from pipeline.base.items import GOOD, SPLITS, STATE_NAMES
from pipeline.store.check import CURE, OF_COLUMNS, Structure, read_structure
from pipeline.store.format import (
    COLUMNS,
    Texts,
    block_sums,
    column_name,
    columns_sha256,
    finite_and_zero,
    labels_sha256,
    repeated,
    texts_sha256,
    unpack,
)

Matrix = NDArray[np.floating[Any]]


class Cache:
    """A feature cache opened for reading (make it with :func:`open_cache`).

    Attributes:
        path: the file.
        key: SHA-256 (hex) of the provenance.
        provenance: everything that decides a row's numbers.
        about: for people: the source, its root, how it was split.
        classes: class names; ``labels`` index into them.
        labels: (N,) int64, -1 = unlabelled.
        splits: (N,) uint8, index into ``SPLITS``.
        states: (N,) uint8, ``ITEM_STATES``.
        done: (B,) bool, which blocks are whole (all of them, unless opened by :func:`open_partial`).
    """

    def __init__(self, structure: Structure) -> None:
        s = self._structure = structure
        self.path, self.dim, self.dtype = s.path, s.dim, s.dtype
        self.key = s.attributes["key"]
        self.provenance: dict[str, Any] = s.told["provenance"]
        self.about: dict[str, Any] = s.told["about"]
        self.created, self.versions = s.attributes["created"], s.told["versions"]
        self.labels = self._array("/labels/y", "<i8")
        self.splits = self._array("/labels/split", "u1")
        self.states = self._array("/items/state", "u1")
        self.done = self._array("/blocks/state", "u1") == 1
        self.classes = self._class_names()
        self._features: Matrix | None = None
        self._digests: NDArray[np.uint8] | None = None
        self._ids: Texts | None = None
        self._check()

    def __len__(self) -> int:
        """Number of rows, good or not."""
        return self._structure.rows

    def __repr__(self) -> str:
        counts = ", ".join(f"{v} {k}" for k, v in self.counts().items() if v)
        shape = f"{len(self)} x {self.dim} {self.dtype.name}"
        return f"<Cache {self.path.name}: {shape}, {len(self.classes)} classes, {counts}>"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_features": None, "_digests": None, "_ids": None}

    def _array(self, name: str, dtype: str) -> NDArray[Any]:
        s = self._structure
        with s.path.open("rb") as file:
            file.seek(s.offset(name))
            return np.frombuffer(file.read(s.nbytes(name)), dtype)

    def _texts(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Texts as they are packed; each ends within them, behind the one before."""
        text, end = self._array(f"{name}/text", "u1"), self._array(f"{name}/end", "<i8")
        if (np.diff(end, prepend=0) < 0).any() or (int(end[-1]) if len(end) else 0) != len(text):
            raise CacheError(f"{self.path}: {name} does not end where it says: damaged; {CURE}")
        return text, end

    def _class_names(self) -> tuple[str, ...]:
        try:
            names = tuple(name.decode("utf-8", "surrogatepass") for name in unpack(*self._texts("/labels/classes")))
        except UnicodeDecodeError as error:
            raise CacheError(f"{self.path}: class names are damaged: {error}; {CURE}") from error
        if len(set(names)) < len(names):
            raise CacheError(f"{self.path}: a class name is there twice: damaged; {CURE}")
        return names

    def _check(self) -> None:
        """Of all that is small: does it say what was written, and can that be?"""
        if labels_sha256(self.labels, self.splits, self.classes) != self._structure.attributes["labels_sha256"]:
            raise CacheError(f"{self.path}: labels, splits or class names do not match their checksum: damaged; {CURE}")
        lowest, highest, split = int(self.labels.min()), int(self.labels.max()), int(self.splits.max())
        if not -1 <= lowest <= highest < max(1, len(self.classes)) or split >= len(SPLITS):
            raise CacheError(f"{self.path}: a label or split is none that there is: damaged; {CURE}")
        if int(self.states.max()) not in STATE_NAMES:
            raise CacheError(f"{self.path}: an item has state {int(self.states.max())}: damaged; {CURE}")
        self.digests  # noqa: B018 - reading them checks them, and the states

    @property
    def block_rows(self) -> int:
        """Rows of one block."""
        return self._structure.block_rows

    @property
    def ids(self) -> Texts:
        """N times bytes, each item's path relative to the source's root: read on first use, and checked then.

        Raises:
            CacheError: they are damaged, or one is there twice.
        """
        if self._ids is None:
            try:
                self._ids = self._read_ids()
            except MemoryError as error:  # a file may have holes of any size
                raise CacheError(f"{self.path} has more item ids than memory has room for; {CURE}") from error
        return self._ids

    def _read_ids(self) -> Texts:
        text, end = self._texts("/items/id")
        if texts_sha256(text, end) != self._structure.attributes["ids_sha256"]:
            raise CacheError(f"{self.path}: item ids do not match their checksum: damaged, or replaced while open")
        if repeated(text, end):
            raise CacheError(f"{self.path}: an item's id is there twice: damaged; {CURE}")
        return Texts(text, end)

    @property
    def digests(self) -> NDArray[np.uint8]:
        """(N, 32) uint8: SHA-256 of each image file's bytes; all zero where the file vanished before it was read.

        Read and checked once, together with the states.
        """
        if self._digests is None:
            self._digests = self._read_digests()
        return self._digests

    def _read_digests(self) -> NDArray[np.uint8]:
        digests = self._array("/items/digest", "u1").reshape(-1, 32)
        wrong = block_sums(self.block_rows, digests, self.states) != self._array("/blocks/items_crc32", "<u4")
        if (wrong & self.done).any():
            raise CacheError(
                f"{self.path}: digests or states of block {int(np.argmax(wrong & self.done))} do not match their "
                f"checksum: damaged, or replaced while open; {CURE}"
            )
        # A block that a kill has cut short in an unfinished file: of its images nothing is known.
        if wrong.any():
            digests = np.where(np.repeat(wrong, self.block_rows)[: len(digests), None], np.uint8(0), digests)
        digests.setflags(write=False)
        return digests

    @property
    def columns(self) -> dict[str, list[str]]:
        """Name of a column of the manifest that has no meaning here -> N texts; read when asked for, and checked."""
        within = [name for name in self._structure.places if name.startswith(f"{COLUMNS}/")]
        paths = sorted({name.rpartition("/")[0] for name in within})
        packed = {column_name(path): self._texts(path) for path in paths}
        if packed and columns_sha256(packed) != self._structure.attributes.get(OF_COLUMNS):
            raise CacheError(f"{self.path}: the manifest's columns do not match their checksum: damaged; {CURE}")
        return {
            name: [cell.decode("utf-8", "surrogateescape") for cell in unpack(*texts)] for name, texts in packed.items()
        }

    @property
    def stats(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sizes (N,) in bytes and modification times (N,) in ns, both int64; -1 where they are damaged.

        They are a shortcut alone: a file whose size and time are not known is hashed.
        """
        sizes, times = self._array("/items/size", "<i8"), self._array("/items/mtime_ns", "<i8")
        wrong = block_sums(self.block_rows, sizes, times) != self._array("/blocks/stats_crc32", "<u4")
        unknown = np.repeat(wrong, self.block_rows)[: len(sizes)]
        return np.where(unknown, -1, sizes), np.where(unknown, -1, times)

    @property
    def features(self) -> Matrix:
        """(N, D) float16 or float32: all rows, as a read-only memory map."""
        if self._features is None:
            s = self._structure
            self._features = np.memmap(s.path, s.dtype, mode="r", offset=s.offset("/features"), shape=(s.rows, s.dim))
        return self._features

    @property
    def content(self) -> str:
        """SHA-256 (hex) of which items the cache holds, their bytes, labels, splits and classes."""
        whole = hashlib.sha256()
        for name in ("ids_sha256", "labels_sha256"):
            whole.update(self._structure.attributes[name].encode())
        whole.update(self.digests.tobytes())
        return whole.hexdigest()

    def counts(self) -> dict[str, int]:
        """Good rows in each split, in the order of ``SPLITS``."""
        return dict(zip(SPLITS, self._counts.sum(axis=0).tolist(), strict=True))

    def class_counts(self) -> dict[str, dict[str, int]]:
        """Good rows of each class in each split, both in their order."""
        found = self._counts[1:].tolist()
        return {name: dict(zip(SPLITS, row, strict=True)) for name, row in zip(self.classes, found, strict=True)}

    def unlabelled(self) -> int:
        """Good rows without a label."""
        return int(self._counts[0].sum())

    @functools.cached_property
    def _counts(self) -> NDArray[np.int64]:
        """Good rows (1 + C, splits), those without a label first: one pass over the rows, however many classes."""
        good = self.states == GOOD
        cell = (self.labels[good] + 1) * len(SPLITS) + self.splits[good]
        of_all = (1 + len(self.classes)) * len(SPLITS)
        return np.bincount(cell, minlength=of_all).reshape(-1, len(SPLITS))

    def failed(self) -> dict[str, int]:
        """How many items failed, by kind."""
        found = np.bincount(self.states, minlength=1 + max(STATE_NAMES))
        return {name: int(found[state]) for state, name in STATE_NAMES.items() if state != GOOD and found[state]}

    def rows(self, split: str) -> NDArray[np.int64]:
        """Indices (n,) int64 of the good rows of a split, ascending."""
        if split not in SPLITS:
            raise CacheError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
        return np.flatnonzero((self.splits == SPLITS.index(split)) & (self.states == GOOD))

    def features_at(self, rows: NDArray[np.int64]) -> Matrix:
        """The features (n, D) at ``rows`` (n,), read-only: a view of the map where they are one run of it."""
        if is_one_run(rows):
            first = int(rows[0]) if len(rows) else 0
            return self.features[first : first + len(rows)]
        copied = np.take(np.asarray(self.features), rows, axis=0, mode="clip")  # (brackets take four times as long)
        copied.setflags(write=False)
        return copied

    def split(self, split: str) -> Features:
        """The good rows of one split ("train", "val", "test", or "none" for items without a split)."""
        return Features(self, self.rows(split))

    def verify(self, rows: NDArray[np.int64] | None = None, *, progress: Callable[[int], None] | None = None) -> None:
        """Check the checksums of the blocks that hold ``rows``, and what the rows may never be; by default all and ids.

        Raises:
            CacheError: the first block that is damaged, or row that is all zero, not finite, or denies its state.
        """
        if rows is None:
            self.ids  # noqa: B018 - reading them checks them
        size = self.block_rows
        wanted = np.arange(len(self.done)) if rows is None else np.unique(rows // size)
        sums = self._array("/blocks/crc32", "<u4")
        for block in wanted.tolist():
            start, stop = block * size, min(len(self), (block + 1) * size)
            part = np.asarray(self.features[start:stop])
            if zlib.crc32(part.data) != int(sums[block]):
                raise CacheError(f"{self.path}: block {block} (rows {start} to {stop - 1}) is damaged: {CURE}")
            good = self.states[start:stop] == GOOD
            finite, zero = finite_and_zero(part)
            if (good == zero).any():
                row = start + int(np.argmax(good == zero))
                what = "a good item is all zero" if zero[row - start] else "a failed item has features"
                raise CacheError(f"{self.path}: row {row}: {what}; {CURE}")
            if not finite.all():
                raise CacheError(f"{self.path}: a row of block {block} is not finite: {CURE}")
            if progress:
                progress(stop - start)


def is_one_run(rows: NDArray[np.int64]) -> bool:
    """Whether different numbers (n,), or none, are consecutive and ascend."""
    return len(rows) == 0 or (int(rows[-1] - rows[0]) + 1 == len(rows) and bool((np.diff(rows) == 1).all()))


class Features:
    """The rows of one split; a map-style dataset for ``torch.utils.data.DataLoader``.

    ``X`` is a view of the cache's memory map when the rows are one run (always, unless an image inside the split
    failed; then it is a copy made on first use). Items are ``(features (D,), label)``.
    """

    def __init__(self, cache: Cache, rows: NDArray[np.int64]) -> None:
        self.cache, self.rows = cache, rows
        self.classes = cache.classes
        self.y: NDArray[np.int64] = cache.labels[rows]
        self._X: Matrix | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<Features {len(self)} x {self.cache.dim} {self.cache.dtype.name} of {self.cache.path.name}>"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_X": None}

    @property
    def contiguous(self) -> bool:
        """Whether the rows are one run of the file, so that ``X`` copies nothing."""
        return is_one_run(self.rows)

    @property
    def X(self) -> Matrix:
        """(n, D) float16 or float32, read-only."""
        if self._X is None:
            self._X = self.cache.features_at(self.rows)
        return self._X

    @property
    def ids(self) -> list[bytes]:
        """(n,) bytes: the items' paths."""
        ids = self.cache.ids
        return [ids[row] for row in self.rows.tolist()]

    def __getitem__(self, index: int) -> tuple[NDArray[Any], int]:
        row = self.rows[index]
        return np.array(self.cache.features[row]), int(self.y[index])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[NDArray[Any], int]]:
        places = np.asarray(indices)
        features, rows = np.asarray(self.cache.features), self.rows[places]
        # Rows lie far apart, and each costs a page-table walk. One number of each first: those walks overlap, and the
        # copying finds its pages known (a fifth faster). take copies whole rows, where fancy indexing goes through an
        # iterator; clip spares it a second, buffered copy (rows are in range: they come out of self.rows).
        features[rows, 0]
        picked = np.take(features, rows, axis=0, mode="clip")
        return list(zip(picked, self.y[places].tolist(), strict=True))

    def batches(self, size: int) -> Iterator[tuple[Matrix, NDArray[np.int64]]]:
        """Batches ``(X (<=size, D), y)`` in row order, read one by one: pages of a map would stay in memory."""
        structure = self.cache._structure
        with structure.path.open("rb") as file:
            for start in range(0, len(self), size):
                rows = self.rows[start : start + size]
                first, last = int(rows[0]), int(rows[-1]) + 1
                file.seek(structure.offset("/features") + first * structure.row_bytes("/features"))
                run: Matrix = np.fromfile(file, structure.dtype, (last - first) * structure.dim)
                run = run.reshape(-1, structure.dim)
                yield (run if last - first == len(rows) else run[rows - first]), self.y[start : start + size]


def open_cache(path: str | Path, *, verify: bool = False) -> Cache:
    """Open a finished feature cache; ``verify`` also reads every row and id, and checks their checksums.

    Raises:
        CacheError: there is none, it is unfinished, damaged, hostile, or of another format version.
    """
    cache = open_partial(Path(path))
    if not cache.done.all():
        todo = int((~cache.done).sum())
        raise CacheError(
            f"{path} is not finished: {todo} of {len(cache.done)} blocks are missing; run `pipeline extract` again"
        )
    if verify:
        cache.verify()
    return cache


def open_partial(path: Path) -> Cache:
    """Open an unfinished cache; only rows of blocks that are ``done`` may be used.

    Raises:
        CacheError: there is none, it is damaged, hostile, or of another format version.
    """
    structure = read_structure(path)
    try:
        return Cache(structure)
    except MemoryError as error:  # a file may have holes of any size
        raise CacheError(f"{path} declares {structure.rows:,} rows, more than memory has room for") from error
