"""A CSV manifest as a source: ``path,label[,split]``, paths relative to the manifest.

Knows the table and whether the files exist. Opens no image.
"""

from __future__ import annotations

import csv
import functools
import os
import stat
import time
from collections.abc import Iterator

from pipeline.base.errors import DataError
from pipeline.base.files import open_regular
from pipeline.base.items import NONE, SPLITS
from pipeline.base.workspace import Workspace
from pipeline.images.listing import (
    LEGAL_FORMS,
    MANIFEST_FORM,
    SPLIT_WORDS,
    Images,
    Item,
    Listing,
    assemble,
    shown_source,
)
from pipeline.images.sources.files import Files, lasting_time, path_of, real_name

FORM = MANIFEST_FORM
COLUMNS = ("path", "label", "split")

ENDING = ".csv"


def images(spec: str, place: str) -> Images:
    """The files below the place, and what the manifest that lies there names elsewhere."""
    manifest = os.path.join(os.fsencode(place), os.path.basename(os.fsencode(spec)))

    @functools.cache
    def named() -> frozenset[bytes]:
        try:
            return frozenset(_path_of(row) for _, row in _rows(shown_source(spec), manifest))
        except DataError:
            return frozenset()  # not there any more, or damaged: then nobody says so

    return Files(place, lambda item: item in named())


def claims(spec: str) -> bool:
    """A file that is there, whatever its ending: a wrong one is told of."""
    return os.path.isfile(path_of(spec))


def listing(spec: str, desk: Workspace) -> Listing:
    """The images that the manifest names, under its own name without the ending.

    Raises:
        DataError: a file of another ending.
    """
    path = path_of(spec)
    stem, ending = os.path.splitext(real_name(path))
    if ending.lower() != ENDING:
        raise DataError(f"source {shown_source(spec)} is a file but not a .csv manifest: {LEGAL_FORMS}")
    return list_manifest(spec, path, name=stem)


def list_manifest(source: str, manifest: bytes, *, name: str) -> Listing:
    """The images that the manifest's rows name; an empty label is unlabelled, an empty split is none.

    Raises:
        DataError: not a readable UTF-8 CSV, an unknown column or split, a missing or repeated file; with line number.
    """
    images = Files(os.path.dirname(manifest) or b".", outside=lambda _: True)
    named = shown_source(source)
    items: dict[bytes, tuple[int, Item]] = {}
    began = time.time_ns()
    for line, row in _rows(named, manifest):
        item = _item(f"{named} line {line}", images, row, began)
        if item.id in items:
            raise DataError(
                f"{named} line {line}: {row['path']!r} is already on line {items[item.id][0]}: list it once"
            )
        items[item.id] = (line, item)
    _check_splits(named, items)
    return assemble((item for _, item in items.values()), source=source, name=name, images=images, skipped={})


def _rows(source: str, manifest: bytes) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number of the record's end, column -> cell) for each record that is not empty."""
    try:
        # surrogateescape: a path need not be UTF-8, and its bytes must come back exactly
        with open(open_regular(manifest), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = _header(source, next(reader, []))
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise DataError(
                        f"{source} line {reader.line_num}: {len(cells)} cells under {len(header)} columns "
                        f"({','.join(header)}): put a path or label that holds a comma in double quotes"
                    )
                yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{source} line {reader.line_num}: not a well-formed CSV ({error})") from error
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from error


def _header(source: str, cells: list[str]) -> list[str]:
    header = [cell.strip().lower() for cell in cells]
    unknown = [cell for cell in header if cell not in COLUMNS]
    if unknown or "path" not in header:
        wrong = f"unknown column {unknown[0]!r}" if unknown else "no column 'path'"
        raise DataError(f"{source} line 1: {wrong}: the first line must be path,label or path,label,split")
    if len(set(header)) != len(header):
        raise DataError(f"{source} line 1: a column is there twice ({','.join(header)}): keep one")
    return header


def _item(where: str, images: Files, row: dict[str, str], began: int) -> Item:
    if not row["path"]:
        raise DataError(f"{where}: the path is empty")
    word = row.get("split", "").strip().lower()
    if word not in SPLIT_WORDS and word not in ("", SPLITS[NONE]):
        raise DataError(f"{where}: unknown split {row['split']!r}: use train, val, test or leave it empty")
    path = _path_of(row)
    try:
        status = os.stat(images.path(path))
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(
            f"{where}: file {row['path']!r} not found ({reason}): paths are relative to the manifest"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{where}: {row['path']!r} is not a file: give one image a line")
    label = row.get("label", "").strip().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return Item(path, label or None, SPLIT_WORDS.get(word, NONE), status.st_size, lasting_time(status, began))


def _path_of(row: dict[str, str]) -> bytes:
    """One spelling for one file, so that a/b.png and ./a//b.png count as the same."""
    return os.path.normpath(row["path"].encode("utf-8", "surrogateescape"))


def _check_splits(source: str, items: dict[bytes, tuple[int, Item]]) -> None:
    """All labelled rows name a split, or none does: a half-filled column has no clear meaning."""
    labelled = [(line, item.split) for line, item in items.values() if item.label is not None]
    bare = [line for line, split in labelled if split == NONE]
    if bare and len(bare) < len(labelled):
        raise DataError(
            f"{source} line {bare[0]}: no split on this row ({len(bare):,} of {len(labelled):,} labelled rows): "
            "fill the split column for all labelled rows or for none"
        )
