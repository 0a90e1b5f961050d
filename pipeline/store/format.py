"""Format version 1 of the feature cache: names, types, and the two hashes that identify what a file holds.

Knows what a cache file must contain; opens nothing. The layout, in full::

    /features          (N, D) float16 | float32, contiguous, no filter, file offset a multiple of 4096
    /items/id          (N,)   variable-length bytes: path relative to the source's root, "/"-separated
    /items/digest      (N,32) uint8: SHA-256 of the image file's bytes
    /items/size        (N,)   int64, bytes      } a shortcut for "unchanged",
    /items/mtime_ns    (N,)   int64             } never the truth
    /items/state       (N,)   enum over uint8: ITEM_STATES
    /labels/y          (N,)   int64, -1 = unlabelled
    /labels/split      (N,)   uint8: index into SPLITS
    /labels/classes    (C,)   variable-length UTF-8
    /blocks/state      (B,)   uint8: 0 to do, 1 done;  B = ceil(N / block_rows)
    /blocks/crc32      (B,)   uint32: zlib.crc32 of the block's feature bytes
    attributes of /    format, format_version, provenance, key, block_rows, versions, created,
                       about, ids_sha256, labels_sha256

Rows are ordered by (split, id), so that a split is one run of rows and is served as a view of the memory map.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = "pipeline-feature-cache"
FORMAT_VERSION = 1
FEATURE_DTYPES = ("float16", "float32")
ALIGNMENT = 4096  # bytes; one page, and exactly one float16 row of 2048
DATASETS = {
    "/features",
    "/items/id",
    "/items/digest",
    "/items/size",
    "/items/mtime_ns",
    "/items/state",
    "/labels/y",
    "/labels/split",
    "/labels/classes",
    "/blocks/state",
    "/blocks/crc32",
}
GROUPS = {"/items", "/labels", "/blocks"}


@dataclass(frozen=True)
class Contents:
    """Everything a cache file holds but the features: what :func:`~pipeline.store.create_partial` is given.

    ``ids`` are unique bytes in row order; ``labels`` (N,) int64; ``splits`` (N,) uint8; ``sizes`` and ``mtimes_ns``
    (N,) int64; ``digests`` (N, 32) uint8, all-zero where not known yet; ``about`` is for people (source, split
    notes) and decides nothing.
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


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def key_of(provenance: Mapping[str, Any]) -> str:
    """The cache key: SHA-256 (64 hex digits) of the provenance's canonical JSON."""
    return hashlib.sha256(canonical_json(provenance).encode()).hexdigest()


def ids_sha256(ids: Sequence[bytes]) -> str:
    """SHA-256 of the ids in row order, each preceded by its length (so that no two lists collide)."""
    digest = hashlib.sha256()
    for item in ids:
        digest.update(len(item).to_bytes(8, "little"))
        digest.update(item)
    return digest.hexdigest()


def labels_sha256(labels: NDArray[np.int64], splits: NDArray[np.uint8], classes: Sequence[str]) -> str:
    """SHA-256 of class names, labels and splits: a damaged label is found when the file is opened."""
    digest = hashlib.sha256(canonical_json(list(classes)).encode("utf-8", "surrogatepass"))
    digest.update(np.ascontiguousarray(labels, "<i8").tobytes())
    digest.update(np.ascontiguousarray(splits, "u1").tobytes())
    return digest.hexdigest()


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


def partial_path(cache: Path) -> Path:
    """Where the unfinished file of ``cache`` lies."""
    return cache.with_name(cache.name + ".partial")
