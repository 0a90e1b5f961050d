"""Format version 2 of the feature cache: names, types, and the hashes that identify what a file holds.

Knows what a cache file must contain; opens nothing. The layout, in full::

    /features          (N, D) float16 | float32, contiguous, no filter, file offset a multiple of 4096
    /items/id          texts, N: path relative to the source's root, "/"-separated
    /items/digest      (N,32) uint8: SHA-256 of the image file's bytes
    /items/size        (N,)   int64, bytes      } a shortcut for "unchanged",
    /items/mtime_ns    (N,)   int64             } never the truth
    /items/state       (N,)   enum over uint8: ITEM_STATES
    /labels/y          (N,)   int64, -1 = unlabelled
    /labels/split      (N,)   uint8: index into SPLITS
    /labels/classes    texts, C: UTF-8
    /blocks/state      (B,)   uint8: 0 to do, 1 done;  B = ceil(N / block_rows)
    /blocks/crc32      (B,)   uint32: zlib.crc32 of the block's feature bytes
    /blocks/items_crc32  (B,) uint32: of its digests, then its states
    /blocks/stats_crc32  (B,) uint32: of its sizes, then its times
    /items/columns/NAME  texts, N: a column of the manifest that has no meaning here; absent where there is none
    attributes of /    format, format_version, provenance, key, block_rows, versions, created,
                       about, ids_sha256, labels_sha256, columns_sha256 (where there are columns)

Texts are a group of two: ``text`` (L,) uint8, all of them one after another, and ``end`` (n,) int64, where each ends.
What a file may hold besides, known to the reader; only the first is written::

    /blocks/batch      (B,)   int64: images in one forward pass (the fewest), 0 where all rows of the block are copies
    /items/group       (N,)   int64, -1 = none: rows of one group belong on one side of a split
    /labels/targets    (N, C) uint8: several labels an image

Rows are ordered by (split, id), so that a split is one run of rows and is served as a view of the memory map.
"""

from __future__ import annotations

import hashlib
import json
import operator
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

FORMAT = "pipeline-feature-cache"
FORMAT_VERSION = 2
FEATURE_DTYPES = ("float16", "float32")
ALIGNMENT = 4096  # bytes; one page, and exactly one float16 row of 2048
AT_ONCE = 65536  # texts that are looked at together
TEXTS = ("/items/id", "/labels/classes")
DATASETS = {
    "/features",
    "/items/digest",
    "/items/size",
    "/items/mtime_ns",
    "/items/state",
    "/labels/y",
    "/labels/split",
    "/blocks/state",
    "/blocks/crc32",
    "/blocks/items_crc32",
    "/blocks/stats_crc32",
    *(f"{texts}/{part}" for texts in TEXTS for part in ("text", "end")),
}
GROUPS = {"/items", "/labels", "/blocks", *TEXTS}
BATCH = "/blocks/batch"
OPTIONAL = {"/items/group", "/labels/targets", BATCH}
COLUMNS = "/items/columns"


@dataclass(frozen=True)
class Contents:
    """Everything a cache file holds but the features: what :func:`~pipeline.store.create_partial` is given.

    ``ids`` are unique bytes in row order; ``labels`` (N,) int64; ``splits`` (N,) uint8; ``sizes`` and ``mtimes_ns``
    (N,) int64; ``digests`` (N, 32) uint8, all-zero where not known yet; ``about`` is for people (source, split
    notes) and decides nothing; nor do ``columns``, each of N texts.
    """

    ids: Sequence[bytes]
    digests: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    mtimes_ns: NDArray[np.int64]
    labels: NDArray[np.int64]
    splits: NDArray[np.uint8]
    classes: tuple[str, ...]
    dim: int
    dtype: str
    block_rows: int
    provenance: Mapping[str, Any]
    about: Mapping[str, Any]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def key_of(provenance: Mapping[str, Any]) -> str:
    """The cache key: SHA-256 (64 hex digits) of the provenance's canonical JSON."""
    return hashlib.sha256(canonical_json(provenance).encode()).hexdigest()


def pack(texts: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Texts as ``text`` (L,) uint8 and ``end`` (n,) int64."""
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    return np.frombuffer(b"".join(texts), np.uint8), ends


def unpack(text: NDArray[np.uint8], end: NDArray[np.int64]) -> list[bytes]:
    """The texts of :func:`pack`."""
    whole, start, found = text.tobytes(), 0, []
    for stop in end.tolist():
        found.append(whole[start:stop])
        start = stop
    return found


class Texts(Sequence[bytes]):
    """Texts as they are packed, each made when it is asked for: a million of them as objects are hundreds of MB."""

    def __init__(self, text: NDArray[np.uint8], end: NDArray[np.int64]) -> None:
        self._text, self._end = text.tobytes(), end

    def __len__(self) -> int:
        return len(self._end)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        return self._text[self._end[at - 1] if at else 0 : self._end[at]]

    def __iter__(self) -> Iterator[bytes]:
        start = 0
        for first in range(0, len(self), AT_ONCE):
            for stop in self._end[first : first + AT_ONCE].tolist():
                yield self._text[start:stop]
                start = stop

    def __eq__(self, other: object) -> bool:
        """Whether they are the same texts as those of another sequence, in the same order."""
        if isinstance(other, Texts):
            return self._text == other._text and np.array_equal(self._end, other._end)
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} texts>"


def _runs(text: NDArray[np.uint8], end: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Packed texts in runs of AT_ONCE, each packed for itself."""
    for first in range(0, len(end), AT_ONCE):
        some, start = end[first : first + AT_ONCE], int(end[first - 1]) if first else 0
        yield text[start : int(some[-1])], some - start


def repeated(text: NDArray[np.uint8], end: NDArray[np.int64]) -> bool:
    """Whether a text is there twice; none is made as an object but where it seems so."""
    drawn = np.random.default_rng(0).integers(0, 1 << 64, int(np.diff(end, prepend=0).max(initial=0)), np.uint64)
    hashes = np.concatenate([np.zeros(0, np.uint64), *(_hashes(*run, drawn) for run in _runs(text, end))])
    hashes.sort()
    return bool((hashes[1:] == hashes[:-1]).any()) and len(set(unpack(text, end))) < len(end)


def _hashes(text: NDArray[np.uint8], end: NDArray[np.int64], drawn: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """(n,): the same of equal texts, and of others hardly ever.

    The sum, modulo 2^64, of each byte and 1, times the number ``drawn`` for its place (multilinear hashing).
    """
    lengths = np.diff(end, prepend=0)
    place = np.arange(len(text)) - np.repeat(end - lengths, lengths)
    total = np.zeros(1 + len(text), np.uint64)
    np.cumsum((text.astype(np.uint64) + np.uint64(1)) * drawn[place], out=total[1:])
    found: NDArray[np.uint64] = total[end] - total[end - lengths]
    return found


def texts_sha256(text: NDArray[np.uint8], end: NDArray[np.int64]) -> str:
    """SHA-256 of packed texts in order, each preceded by its length (so that no two lists collide)."""
    digest = hashlib.sha256()
    for some, ends in _runs(text, end):
        lengths = np.diff(ends, prepend=0)
        at = (ends - lengths + 8 * np.arange(len(ends)))[:, None] + np.arange(8)
        whole, of_text = np.empty(len(some) + 8 * len(ends), np.uint8), np.ones(len(some) + 8 * len(ends), bool)
        of_text[at] = False
        whole[at], whole[of_text] = lengths.astype("<i8").view(np.uint8).reshape(-1, 8), some
        digest.update(whole.tobytes())
    return digest.hexdigest()


def ids_sha256(ids: Sequence[bytes]) -> str:
    """:func:`texts_sha256` of the ids in row order."""
    return texts_sha256(*pack(ids))


def labels_sha256(labels: NDArray[np.int64], splits: NDArray[np.uint8], classes: Sequence[str]) -> str:
    """SHA-256 of class names, labels and splits: a damaged label is found when the file is opened."""
    digest = hashlib.sha256(canonical_json(list(classes)).encode("utf-8", "surrogatepass"))
    digest.update(np.ascontiguousarray(labels, "<i8").tobytes())
    digest.update(np.ascontiguousarray(splits, "u1").tobytes())
    return digest.hexdigest()


def column_path(name: str) -> str:
    """Where a column lies; a name may have any letters, and HDF5's may have no slash and not be a dot."""
    plain = name.replace("%", "%25").replace("/", "%2F")
    return f"{COLUMNS}/{'%2E' if plain == '.' else plain}"


def column_name(path: str) -> str:
    """The column that lies there."""
    return unquote(path.removeprefix(f"{COLUMNS}/"))


def columns_sha256(columns: Mapping[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]) -> str:
    """SHA-256 of columns: their names in order, and :func:`texts_sha256` of each as it is packed."""
    told = [[name, texts_sha256(*columns[name])] for name in sorted(columns)]
    return hashlib.sha256(canonical_json(told).encode("utf-8", "surrogatepass")).hexdigest()


def packed_column(cells: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """:func:`pack` of texts; bytes that are no UTF-8 are surrogates in them."""
    return pack([cell.encode("utf-8", "surrogateescape") for cell in cells])


def difference(mine: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Where two provenances differ: (dotted field, value in ``mine``, value in ``other``), absent fields as None."""

    def flat(value: Any, prefix: str) -> dict[str, Any]:
        if isinstance(value, Mapping):
            return {k: v for name, inner in value.items() for k, v in flat(inner, f"{prefix}{name}.").items()}
        return {prefix[:-1]: value}

    left, right = flat(mine, ""), flat(other, "")
    return [(k, left.get(k), right.get(k)) for k in sorted({*left, *right}) if left.get(k) != right.get(k)]


def block_count(rows: int, block_rows: int) -> int:
    """How many blocks hold ``rows`` rows."""
    return -(-rows // block_rows)


def block_sums(block_rows: int, *parts: NDArray[Any]) -> NDArray[np.uint32]:
    """(B,): zlib.crc32 of each block's rows of the first part (N, ...), then of the second, ..."""
    starts = range(0, len(parts[0]), block_rows)
    pieces = [[np.ascontiguousarray(part[at : at + block_rows]).tobytes() for part in parts] for at in starts]
    return np.array([zlib.crc32(b"".join(piece)) for piece in pieces], "<u4")


def finite_and_zero(rows: NDArray[np.floating[Any]]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows (n, D) of float16 or float32 are finite throughout, and which are zero throughout, each (n,).

    Without their signs, the bits of floats of one type are in the order of their sizes. numpy reads float16 as whole
    numbers nine times as fast as it does as floats.
    """
    kind: type[np.unsignedinteger[Any]] = np.uint16 if rows.dtype == np.float16 else np.uint32
    infinite = np.array(np.inf, rows.dtype).view(kind)
    largest = (rows.view(kind) & ~np.array(-0.0, rows.dtype).view(kind)).max(axis=1)
    return largest < infinite, largest == 0


def partial_path(cache: Path) -> Path:
    """Where the unfinished file of ``cache`` lies."""
    return cache.with_name(cache.name + ".partial")
