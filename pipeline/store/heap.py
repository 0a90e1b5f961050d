"""Variable-length strings of an HDF5 file, read without HDF5's own heap reader.

HDF5 keeps such strings in *global heap collections*, the only part of our files that HDF5 does not checksum: a damaged
one sent the library into an endless loop, or had it allocate gigabytes. Here every length and address is held against
the file's size before it is followed. The layout is that of the HDF5 File Format Specification, III.E "Global Heap":
a string is 16 bytes in its dataset (length u32, address of the collection u64, index in it u32), a collection is
``GCOL``, version 1, 3 reserved bytes, its size (u64), then objects: index u16, references u16, 4 reserved bytes, size
u64, the bytes, padded to a multiple of 8; index 0 is the free space at the end.
"""

from __future__ import annotations

import os

import numpy as np

from pipeline.base.errors import CacheError

REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
HEADER = 16  # bytes, of a collection and of an object alike
LONGEST = 1 << 16  # bytes; no path is as long


def read_strings(path: str | os.PathLike[str], offset: int, count: int) -> list[bytes]:
    """The ``count`` strings whose references lie at ``offset``.

    Raises:
        CacheError: a length, address or index that does not fit the file.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        references = np.frombuffer(os.pread(file.fileno(), count * REFERENCE.itemsize, offset), REFERENCE)
        if len(references) != count:
            raise CacheError(f"{path} is damaged: it ends within its references to text; extract again")
        filled = references[references["length"] > 0]
        if (filled["length"] > LONGEST).any() or (filled["address"] > size - HEADER).any():
            raise CacheError(f"{path} is damaged: a text is declared longer than any path, or outside of the file")
        heaps = {int(a): _collection(path, file.fileno(), int(a), size) for a in np.unique(filled["address"])}
    found = []
    for length, address, index in references.tolist():
        if not length:
            found.append(b"")
            continue
        blob, objects = heaps[address]
        start, stored = objects.get(index, (0, -1))
        if length > stored:
            raise CacheError(f"{path} is damaged: a text is not where its reference says; extract again")
        found.append(blob[start : start + length])
    return found


def _collection(path: object, fd: int, address: int, file_size: int) -> tuple[bytes, dict[int, tuple[int, int]]]:
    """A heap collection's bytes, and where in them each object lies: index -> (start, size)."""
    head = os.pread(fd, HEADER, address)
    size = int.from_bytes(head[8:], "little")
    if head[:5] != b"GCOL\x01" or not HEADER <= size <= file_size - address:
        raise CacheError(f"{path} is damaged: no heap of text at byte {address}; extract again")
    blob, at = os.pread(fd, size, address), HEADER
    objects: dict[int, tuple[int, int]] = {}
    while at + HEADER <= size:
        index, length = int.from_bytes(blob[at : at + 2], "little"), int.from_bytes(blob[at + 8 : at + 16], "little")
        if index == 0:
            break
        if at + HEADER + length > size:
            raise CacheError(f"{path} is damaged: a text reaches beyond its heap; extract again")
        objects[index] = (at + HEADER, length)
        at += HEADER + -(-length // 8) * 8
    return blob, objects
