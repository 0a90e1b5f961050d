"""Which column of a manifest is the path, which the label, which the split: named by the user, or guessed.

Knows the words that people head columns with, and those that they call splits. Knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.base.errors import DataError
from pipeline.base.items import NONE, SPLITS
from pipeline.base.spelling import option
from pipeline.images.formats import format_of
from pipeline.images.listing import SPLIT_WORDS
from pipeline.images.sources.table import Table

KINDS = ("path", "label", "split")
NO_COLUMN = "none"
"""What the user names where a manifest has no such column, whatever its columns are called."""

# In tiers: a word of a later one counts where there is none of an earlier.
_WORDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "path": (
        ("path", "file", "filename", "filepath", "image", "imagepath", "imagename", "imagefile", "img", "imgpath"),
        ("imageid", "imgid"),
        ("id", "name"),
    ),
    "label": (("label", "class", "classname", "target", "category", "species"), ("y",)),
    "split": (("split", "set", "subset", "fold", "partition"),),
}
_ALL = {word for tiers in _WORDS.values() for tier in tiers for word in tier}
_NO_SPLIT = ("", SPLITS[NONE], "unassigned")
_INDEX = re.compile(r"(unnamed: \d+)?", re.IGNORECASE)  # as pandas writes and reads it


class NamesColumns(Protocol):
    """Settings that name columns."""

    @property
    def path_column(self) -> str | None: ...  # noqa: D102
    @property
    def label_column(self) -> str | None: ...  # noqa: D102
    @property
    def split_column(self) -> str | None: ...  # noqa: D102


@dataclass(frozen=True)
class Columns:
    """The columns that the user has named; None is guessed, NO_COLUMN is not there."""

    path: str | None = None
    label: str | None = None
    split: str | None = None

    @classmethod
    def of(cls, settings: NamesColumns) -> Columns:
        """Those that settings name."""
        return cls(settings.path_column, settings.label_column, settings.split_column)

    def named(self) -> dict[str, str]:
        """Those that are not guessed, by kind."""
        return {kind: name for kind in KINDS if (name := getattr(self, kind)) is not None}


@dataclass(frozen=True)
class Chosen:
    """The places of the columns in a table, by kind, and of the others; ``headless`` where the first line is a row."""

    places: dict[str, int]
    others: list[int]
    headless: bool = False


def known(columns: Columns) -> Callable[[str], bool]:
    """Whether a column's name says what it is."""
    named = set(columns.named().values())
    return lambda name: name.strip() in named or _plain(name) in _ALL


def choose(where: str, table: Table, columns: Columns, wanted: Collection[str]) -> Chosen:
    """Which columns of the table are the ``wanted`` kinds.

    Raises:
        DataError: none or several could be one, a named one is not there, or a name is there twice.
    """
    header = [name.strip() for name in table.header]
    if not columns.named() and not any(_plain(name) in _ALL for name in header) and any(map(_is_file, header)):
        return _by_cells(where, table, wanted)
    twice = next((name for i, name in enumerate(header) if name and name in header[:i]), None)
    if twice is not None:
        raise DataError(f"{where} line 1: the column {twice!r} is there twice ({_list(header)}): keep one")
    places: dict[str, int] = {}
    for kind in (kind for kind in KINDS if kind in wanted):
        named = getattr(columns, kind)
        place = _guessed(where, table, header, kind, places) if named is None else _named(where, header, kind, named)
        if place is not None:
            places[kind] = place
    taken = set(places.values())
    others = [i for i, name in enumerate(header) if i not in taken and not _INDEX.fullmatch(name)]
    if "label" in wanted and "label" not in places and columns.label is None and others:
        raise DataError(
            f"{where}: no column is known to be the label (columns: {_list(header)}): name it with "
            f"{option('label_column')}, or say {option('label_column', NO_COLUMN)} for images without labels"
        )
    return Chosen(places, others)


def split_of(word: str) -> int | None:
    """The split that a cell names, NONE where it names none; None where it is no word for a split."""
    plain = word.strip().lower()
    return NONE if plain in _NO_SPLIT else SPLIT_WORDS.get(plain)


def _named(where: str, header: Sequence[str], kind: str, name: str) -> int | None:
    found = [i for i, there in enumerate(header) if there == name.strip()]
    found = found or [i for i, there in enumerate(header) if there.lower() == name.strip().lower()]
    if len(found) == 1:
        return found[0]
    if not found and name == NO_COLUMN and kind != "path":
        return None
    raise DataError(f"{where} has no column {name!r} ({option(f'{kind}_column')}): its columns are {_list(header)}")


def _guessed(where: str, table: Table, header: Sequence[str], kind: str, taken: dict[str, int]) -> int | None:
    found: list[int] = []
    for tier in _WORDS[kind]:
        found = found or [i for i, name in enumerate(header) if _plain(name) in tier and i not in taken.values()]
    if kind == "label" and [_plain(header[i]) for i in found] == ["y"] and "x" in map(_plain, header):
        found = []  # a place in the image
    if kind == "split":  # a column of other words (a fold's number, say) is something else, unless it says it is one
        found = [i for i in found if _plain(header[i]) == "split" or any(split_of(r[i]) for _, r in table.rows)]
    if len(found) > 1:
        raise DataError(
            f"{where}: {_list([header[i] for i in found])} could each be the {kind}: say which with "
            f"{option(f'{kind}_column')}"
        )
    if not found and kind == "path":
        raise DataError(
            f"{where}: no column is known to be the image's path (columns: {_list(header)}): name it with "
            f"{option('path_column')}, or head it path"
        )
    return found[0] if found else None


def _by_cells(where: str, table: Table, wanted: Collection[str]) -> Chosen:
    """A table without a line of names: what its first line's cells look like."""
    cells = table.header
    path = [i for i, cell in enumerate(cells) if _is_file(cell)]
    split = [i for i, cell in enumerate(cells) if i not in path and cell and split_of(cell) is not None]
    label = [i for i, cell in enumerate(cells) if cell and i not in (*path, *split)]
    found = {"path": path, "label": label, "split": split}
    if any(len(places) > 1 for places in found.values()):
        raise DataError(
            f"{where} line 1: no names of columns but {_list(cells)}, which could be read in several ways: put a line "
            "in front that names the columns, such as path,label"
        )
    return Chosen({kind: places[0] for kind, places in found.items() if places and kind in wanted}, [], headless=True)


def _is_file(cell: str) -> bool:
    """Whether it looks like the name of an image's file."""
    return format_of(cell.strip().encode("utf-8", "surrogateescape")) is not None


def _plain(name: str) -> str:
    """A column's name without case, spaces and marks between its words."""
    return re.sub(r"[\s_.\-]+", "", name.lower())


def _list(names: Sequence[str]) -> str:
    shown = [name if name.isprintable() and name else repr(name) for name in names[:12]]
    return ", ".join(shown) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
