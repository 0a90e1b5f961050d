"""Is this file a feature cache that may be read? Asked before anything is allocated.

Every way in which an HDF5 file can lead a reader astray is refused by name: links out of the file,
external storage, virtual datasets, filters, other types, shapes larger than the file, an unfinished or cut file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import h5py
import numpy as np

from pipeline.base.errors import CacheError
from pipeline.base.files import open_regular
from pipeline.base.items import ITEM_STATES
from pipeline.base.records import parse
from pipeline.base.schema import Malformed
from pipeline.store.format import (
    BATCH,
    COLUMNS,
    DATASETS,
    FEATURE_DTYPES,
    FORMAT,
    FORMAT_VERSION,
    GROUPS,
    OPTIONAL,
    TEXTS,
    block_count,
)

CURE = "remove it and extract again"  # of a damaged file: what is there is never written over
SIGNATURE = b"\x89HDF\r\n\x1a\n"
_FIXED = {
    "/items/digest": ("u1", (32,)),
    "/items/size": ("<i8", ()),
    "/items/mtime_ns": ("<i8", ()),
    "/items/state": ("u1", ()),
    "/labels/y": ("<i8", ()),
    "/labels/split": ("u1", ()),
}
CLASSES = "/labels/classes"
_OF_TEXT = ("text", "end")
OF_COLUMNS = "columns_sha256"  # where there are any
_TEXT_ATTRIBUTES = (
    *("format", "provenance", "key", "versions", "created", "about", "ids_sha256", "labels_sha256"),
    OF_COLUMNS,
)


class _About(TypedDict):
    """What the store itself adds to what a cache says of itself: the steps that have changed it."""

    history: NotRequired[list[dict[str, Any]]]


_JSON_ATTRIBUTES: dict[str, Any] = {"provenance": dict[str, Any], "versions": dict[str, str], "about": _About}
_TEXT_LIMIT = 1 << 20  # bytes: no attribute of ours comes near
MAX_MEMBERS, MAX_COLUMNS = 64, 1024  # of a group: listing millions of names takes minutes
_WORDS = 400  # characters of a refusal: names in a file may be long


# h5py reports damage in a file as any of these, depending on where the damage lies.
UNREADABLE = (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeError, OverflowError, MemoryError)


@dataclass(frozen=True)
class Structure:
    """What :func:`read_structure` found: sizes, attributes, and where each dataset's bytes lie."""

    path: Path
    rows: int
    dim: int
    dtype: np.dtype[np.generic]
    block_rows: int
    blocks: int
    classes: int
    attributes: dict[str, str]
    told: dict[str, dict[str, Any]]  # those attributes that are JSON
    places: dict[str, tuple[int, int, int]]  # name -> offset, bytes in all, bytes of one row

    def offset(self, name: str) -> int:
        """Where the dataset's first byte lies in the file."""
        return self.places[name][0]

    def nbytes(self, name: str) -> int:
        """How many bytes the dataset has."""
        return self.places[name][1]

    def row_bytes(self, name: str) -> int:
        """How many bytes one row of the dataset has."""
        return self.places[name][2]


def read_structure(path: Path) -> Structure:
    """Check that ``path`` is laid out as a feature cache, finished or not.

    Raises:
        CacheError: names what is wrong with the file.
    """
    size = file_size(path)
    try:
        with h5py.File(path, "r") as file:
            return _Examiner(path, size, file).structure()
    except CacheError:
        raise
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise CacheError(f"{path} is damaged or cut: {reason}; {CURE}") from error


def file_size(path: Path) -> int:
    """Size in bytes of a file that begins as HDF5 does; a pipe is not waited for.

    Raises:
        CacheError: there is none, or it is no such file.
    """
    try:
        with open(open_regular(path), "rb") as file:
            head = file.read(len(SIGNATURE))
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        unfinished = path.with_name(path.name + ".partial").exists()
        cure = (
            "its extraction is unfinished: run `pipeline extract` again"
            if unfinished
            else "make it with `pipeline extract`"
        )
        raise CacheError(f"no feature cache at {path}: {cure}") from None
    except OSError as error:
        raise CacheError(f"cannot read {path}: {error.strerror}") from error
    if head != SIGNATURE:
        raise CacheError(f"{path} is not an HDF5 file: a feature cache is made with `pipeline extract`")
    return size


class _Examiner:
    def __init__(self, path: Path, size: int, file: h5py.File) -> None:
        self.path, self.size, self.file = path, size, file
        self.told: dict[str, dict[str, Any]] = {}

    def refuse(self, why: str) -> CacheError:
        return CacheError(f"{self.path} is refused: {why if len(why) <= _WORDS else why[:_WORDS] + '...'}")

    def structure(self) -> Structure:
        attributes = self._attributes()
        names = set(self._walk(self.file, ""))
        columns = {name for name in names if name.startswith(f"{COLUMNS}/") and name.count("/") == 3}
        known = DATASETS | GROUPS | OPTIONAL | {COLUMNS} | columns | {f"{c}/{p}" for c in columns for p in _OF_TEXT}
        missing, extra = (DATASETS | GROUPS) - names, names - known
        if missing or extra:
            raise self.refuse(
                f"datasets missing: {sorted(missing) or 'none'}, not of the format: {sorted(extra) or 'none'}"
            )
        places: dict[str, tuple[int, int, int]] = {}
        features = self._dataset("/features", places, ndim=2)
        rows, dim = features.shape
        if features.dtype.name not in FEATURE_DTYPES or features.dtype.byteorder == ">":
            raise self.refuse(f"/features has type {features.dtype}, legal are {', '.join(FEATURE_DTYPES)}")
        if rows < 1 or dim < 1:
            raise self.refuse(f"/features has shape {features.shape}")
        for name, (dtype, tail) in _FIXED.items():
            self._expect(self._dataset(name, places, ndim=1 + len(tail)), (rows, *tail), np.dtype(dtype))
        if h5py.check_enum_dtype(self.file["/items/state"].dtype) != ITEM_STATES:
            raise self.refuse("/items/state is not the format's enum")
        block_rows = self._attribute_number("block_rows")
        if block_rows < 1:
            raise self.refuse(f"block_rows is {block_rows}")
        blocks = block_count(rows, block_rows)
        self._expect(self._dataset("/blocks/state", places, ndim=1), (blocks,), np.dtype("u1"))
        for name in ("/blocks/crc32", "/blocks/items_crc32", "/blocks/stats_crc32"):
            self._expect(self._dataset(name, places, ndim=1), (blocks,), np.dtype("<u4"))
        counts = {name: self._text(name, None if name == CLASSES else rows, places) for name in (*TEXTS, *columns)}
        classes = counts[CLASSES]
        optional = {"/items/group": ("<i8", (rows,)), "/labels/targets": ("u1", (rows, classes))}
        for name, (kind, shape) in {**optional, BATCH: ("<i8", (blocks,))}.items():
            if name in names:
                self._expect(self._dataset(name, places, ndim=len(shape)), shape, np.dtype(kind))
        dtype = np.dtype(features.dtype.name).newbyteorder("<")
        return Structure(self.path, rows, dim, dtype, block_rows, blocks, classes, attributes, self.told, places)

    def _attributes(self) -> dict[str, str]:
        attrs = self.file.attrs
        if "format" not in attrs or self._attribute_text("format") != FORMAT:
            raise self.refuse("it is an HDF5 file but not a feature cache (attribute `format`)")
        version = self._attribute_number("format_version")
        if version != FORMAT_VERSION:
            if version > FORMAT_VERSION:
                raise self.refuse(f"format version {version} is newer than {FORMAT_VERSION}, which this program reads")
            raise self.refuse(f"format version {version} was never released: remove it, and `pipeline extract` again")
        there = [name for name in _TEXT_ATTRIBUTES if name != OF_COLUMNS or name in attrs]
        found = {name: self._attribute_text(name) for name in there}
        if hashlib.sha256(found["provenance"].encode()).hexdigest() != found["key"]:
            raise self.refuse(
                "its settings fingerprint (key) is not that of its settings (provenance): the file is damaged"
            )
        for name, schema in _JSON_ATTRIBUTES.items():
            try:
                self.told[name] = parse(found[name], schema)
            except Malformed as why:
                raise self.refuse(
                    f"attribute {name} is not the JSON object that it was written as ({why}): damaged"
                ) from why
        return found

    def _attribute_number(self, name: str) -> int:
        attribute = h5py.h5a.open(self.file.id, name.encode())
        if attribute.shape != () or not isinstance(attribute.get_type(), h5py.h5t.TypeIntegerID):
            raise self.refuse(f"attribute {name} is not a whole number")
        return int(self.file.attrs[name])

    def _attribute_text(self, name: str) -> str:
        # Fixed-length text lies in the object header, which HDF5 checksums; a reference to a heap is never followed.
        attribute = h5py.h5a.open(self.file.id, name.encode())
        kind = attribute.get_type()
        fixed = isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str()
        if attribute.shape != () or not fixed or kind.get_size() > _TEXT_LIMIT:
            raise self.refuse(f"attribute {name} is not a short text of fixed length")
        return bytes(self.file.attrs[name]).decode()

    def _walk(self, group: h5py.Group, prefix: str) -> Iterator[str]:
        most = MAX_COLUMNS if prefix == COLUMNS else MAX_MEMBERS
        if len(group) > most:
            raise self.refuse(f"{prefix or '/'} has {len(group):,} members, more than the format allows ({most})")
        for name in group:
            full = f"{prefix}/{name}"
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise self.refuse(f"{full} is a link ({type(link).__name__}), which the format does not have")
            yield full
            if full in GROUPS or full == COLUMNS or prefix == COLUMNS:
                inner = group[name]
                if not isinstance(inner, h5py.Group):
                    raise self.refuse(f"{full} is not a group")
                yield from self._walk(inner, full)

    def _dataset(self, name: str, places: dict[str, tuple[int, int, int]], *, ndim: int) -> h5py.Dataset:
        dataset = self.file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise self.refuse(f"{name} is not a dataset")
        plist = dataset.id.get_create_plist()
        if plist.get_layout() == h5py.h5d.VIRTUAL:
            raise self.refuse(f"{name} is a virtual dataset: missing sources would read as fill values")
        if plist.get_external_count():
            raise self.refuse(f"{name} keeps its bytes in another file (external storage)")
        if plist.get_nfilters():
            raise self.refuse(f"{name} has a filter")
        if plist.get_layout() != h5py.h5d.CONTIGUOUS:
            raise self.refuse(f"{name} is not stored contiguously")
        if dataset.ndim != ndim or dataset.maxshape != dataset.shape:
            raise self.refuse(f"{name} has shape {dataset.shape} (at most {dataset.maxshape})")
        row = int(np.prod(dataset.shape[1:], dtype=object)) * dataset.id.get_type().get_size()
        nbytes = int(dataset.shape[0]) * row
        if nbytes:
            offset = dataset.id.get_offset()
            if offset is None or offset + nbytes > self.size:
                raise self.refuse(
                    f"{name} declares {nbytes:,} bytes in a file of {self.size:,}: it is cut, or made to mislead"
                )
            places[name] = (int(offset), nbytes, row)
        else:
            places[name] = (0, 0, row)
        return dataset

    def _expect(self, dataset: h5py.Dataset, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
        if dataset.shape != shape or dataset.dtype.newbyteorder("=") != dtype.newbyteorder("="):
            raise self.refuse(f"{dataset.name} is {dataset.dtype} {dataset.shape}, not {dtype} {shape}")
        self._expect_type(dataset, dtype)

    def _expect_type(self, dataset: h5py.Dataset, dtype: np.dtype[np.generic]) -> None:
        if dataset.dtype.newbyteorder("=") != dtype.newbyteorder("="):
            raise self.refuse(f"{dataset.name} is {dataset.dtype}, not {dtype}")
        if dataset.dtype.byteorder == ">":
            raise self.refuse(f"{dataset.name} is big-endian, which the format does not have")

    def _text(self, name: str, rows: int | None, places: dict[str, tuple[int, int, int]]) -> int:
        """How many texts a group holds; where they end is looked at when they are read."""
        self._expect_type(self._dataset(f"{name}/text", places, ndim=1), np.dtype("u1"))
        end = self._dataset(f"{name}/end", places, ndim=1)
        self._expect(end, end.shape if rows is None else (rows,), np.dtype("<i8"))
        return int(end.shape[0])
