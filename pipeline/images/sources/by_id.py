"""A table that names the images of a cache by its ids, as ``pipeline rows`` writes it, instead of by their files.

Knows tables and ids; nothing of a cache, and looks at no image.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.base.errors import DataError
from pipeline.base.items import ROW_COLUMNS
from pipeline.images.listing import SPLIT_WORDS, shown
from pipeline.images.sources.columns import Chosen, Columns, choose, known, split_of
from pipeline.images.sources.files import path_of
from pipeline.images.sources.manifest import clean, spellings
from pipeline.images.sources.table import Table, read_table


class NamedRow(NamedTuple):
    """What a line says of the image ``id``; ``number`` is its label's, where the table is one of ``pipeline rows``."""

    line: int
    id: bytes
    label: str | None
    split: int
    number: str


@dataclass(frozen=True)
class NamedRows:
    """The lines of a table, one for each image; ``labelled`` says that there is a column of labels."""

    rows: list[NamedRow]
    labelled: bool


def read_by_id(spec: str, ids: Collection[bytes], columns: Columns) -> NamedRows | None:
    """What a table says of the images ``ids``; None where it names files: paths that lead somewhere from its folder.

    Raises:
        DataError: not a readable table; in one of ids: an unknown column, split or id, or two lines of one id.
    """
    path = path_of(spec)
    named = shown(path)
    table = read_table(named, path, known(columns))
    of_rows = tuple(table.header[: len(ROW_COLUMNS)]) == ROW_COLUMNS and not columns.named()
    chosen = _of_rows() if of_rows else choose(named, table, columns, ("path", "label", "split"))
    lines = [(1, table.header), *table.rows] if chosen.headless else table.rows
    there = set(ids)
    found = [_id(table, cells[chosen.places["path"]], there) for _, cells in lines]
    if not of_rows:
        folder = os.path.dirname(path) or b"."
        written = (way for _, cells in lines for way in spellings(table.text, cells[chosen.places["path"]])[:1])
        if not found or None in found or any(os.path.isfile(os.path.join(folder, way)) for way in written):
            return None
    rows: dict[bytes, NamedRow] = {}
    for (line, cells), item in zip(lines, found, strict=True):
        cell = {kind: cells[place] for kind, place in chosen.places.items()}
        if item is None:
            raise DataError(f"{named} line {line}: the cache has no image {cell['path']!r}: take the line out")
        split = split_of(cell.get("split", ""))
        if split is None:
            raise DataError(
                f"{named} line {line}: unknown split {cell['split']!r}: use {', '.join(SPLIT_WORDS)}, or leave it empty"
            )
        number = cells[ROW_COLUMNS.index("label")].strip() if of_rows else ""
        row = NamedRow(line, item, clean(cell.get("label", "")) or None, split, number)
        if (before := rows.setdefault(item, row))[2:] != row[2:]:
            raise DataError(
                f"{named} line {line}: {shown(item)!r} is already on line {before.line} with another label or split: "
                "list it once"
            )
    return NamedRows(list(rows.values()), of_rows or "label" in chosen.places)


def _of_rows() -> Chosen:
    """The columns of a table of ``pipeline rows``: its label is a number, the class is its name."""
    place = {name: i for i, name in enumerate(ROW_COLUMNS)}
    return Chosen({"path": place["id"], "label": place["class"], "split": place["split"]}, [])


def _id(table: Table, cell: str, ids: Collection[bytes]) -> bytes | None:
    return next((way for way in (table.text.raw(cell), *spellings(table.text, cell)) if way in ids), None)
