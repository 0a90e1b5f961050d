"""A CSV manifest as a source: a row for each image with its path, label and split, paths relative to the manifest.

Knows how people write paths, and whether the files exist. Opens no image.
"""

from __future__ import annotations

import functools
import os
import stat
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pipeline.base.errors import DataError
from pipeline.base.items import NONE
from pipeline.base.spelling import option
from pipeline.base.words import many
from pipeline.base.workspace import Workspace
from pipeline.images.formats import format_of
from pipeline.images.listing import (
    LEGAL_FORMS,
    MANIFEST_FORM,
    SPLIT_WORDS,
    Images,
    Item,
    Listing,
    assemble,
    shown,
    shown_source,
)
from pipeline.images.sources.columns import KINDS, Chosen, Columns, choose, known, split_of
from pipeline.images.sources.files import Files, lasting_time, path_of, real_name
from pipeline.images.sources.table import DELIMITERS, Table, Text, all_cells, read_table, read_text

FORM = MANIFEST_FORM

ENDINGS = (".csv", ".tsv", ".txt")

KEPT_AT_MOST, _SHOWN = 256, 12  # columns
_DEPTH = 3  # folders below the manifest's own in which images are looked for
_GUESSED = Columns()


class Row(NamedTuple):
    """One image of a manifest: ``path`` relative to the manifest's folder; ``status`` None where there is no file."""

    line: int
    path: bytes
    label: str | None
    split: int
    others: tuple[str, ...]
    status: os.stat_result | None


@dataclass(frozen=True)
class Manifest:
    """A manifest as it is understood. ``images`` reads what the rows' paths name.

    ``others`` are the names of the columns that have no meaning here; ``said`` is what was guessed, in lines for
    the user.
    """

    images: Images
    rows: list[Row]
    others: tuple[str, ...]
    said: tuple[str, ...]

    def missing(self) -> list[Row]:
        """The rows whose file is not there."""
        return [row for row in self.rows if row.status is None]


def images(spec: str, place: str) -> Images:
    """The files below the place, and what the manifest that lies there names elsewhere."""
    manifest = os.path.join(os.fsencode(place), os.path.basename(os.fsencode(spec)))

    @functools.cache
    def named() -> frozenset[bytes]:
        try:
            text = read_text(shown_source(spec), manifest)
        except DataError:
            return frozenset()  # not there any more, or damaged: then nobody says so
        return frozenset(path for cell in all_cells(text) for path in spellings(text, cell))

    # Whichever column the paths were in then, they are among the cells; some stand there without the file's ending.
    return Files(place, lambda item: item in named() or os.path.splitext(item)[0] in named())


def claims(spec: str) -> bool:
    """A file that is there, whatever its ending: a wrong one is told of."""
    return os.path.isfile(path_of(spec))


def listing(spec: str, desk: Workspace, columns: Columns = _GUESSED) -> Listing:
    """The images that the manifest names, under its own name without the ending; what was guessed is told.

    A file that is not there is an item without bytes, and gives no row later on.

    Raises:
        DataError: a file of another ending, or as :func:`read`; no row, or no file of any.
    """
    path = path_of(spec)
    named, (stem, ending) = shown_source(spec), os.path.splitext(real_name(path))
    if ending.lower() not in ENDINGS:
        endings = ", ".join(ENDINGS)
        raise DataError(f"source {named} is a file but no manifest, which would end in {endings}: {LEGAL_FORMS}")
    began = time.time_ns()
    found = read(path, columns)
    for line in found.said:
        desk.watch.say(line)
    _check_splits(named, found.rows)
    listed = assemble(
        (_item(row, began) for row in found.rows), source=spec, name=stem, images=found.images, skipped={}
    )
    missing = found.missing()
    return replace(
        listed,
        missing=tuple(sorted(row.path for row in missing)),
        warnings=_warnings(named, found, missing),
        columns=_kept_aside(found, listed.ids),
    )


def read(path: bytes, columns: Columns = _GUESSED, wanted: Collection[str] = KINDS) -> Manifest:
    """The rows of the manifest at ``path``, each image once, in its order; of the kinds of columns only ``wanted``.

    An empty label is none, an empty split is NONE. A row whose file is not there is a row all the same.

    Raises:
        DataError: not a readable table; a column that is needed is not known, or several could be it; an unknown
            split; an empty path; two rows of one image that differ; no row, or no file of any. With line number.
    """
    named = shown(path)
    table = read_table(named, path, known(columns))
    chosen = choose(named, table, columns, wanted)
    lines = [(1, table.header), *table.rows] if chosen.headless else table.rows
    if not lines:
        raise DataError(f"{named} has a line of column names ({', '.join(table.header)}) and no row below it")
    written = [cells[chosen.places["path"]] for _, cells in lines]
    if (empty := next((line for (line, _), cell in zip(lines, written, strict=True) if not cell.strip()), 0)) > 0:
        raise DataError(f"{named} line {empty}: the path is empty")
    folder = os.path.dirname(path) or b"."
    finder = _Finder(named, folder, table.text)
    finder.settle(written)
    rows: dict[bytes, Row] = {}
    repeated = 0
    for line, cells in lines:
        row = _row(f"{named} line {line}", line, cells, chosen, finder)
        if (before := rows.get(row.path)) is None:
            rows[row.path] = row
        elif before[2:4] == row[2:4]:
            repeated += 1
        else:
            raise DataError(
                f"{named} line {line}: {shown(row.path)!r} is already on line {before.line} with another label or "
                "split: list it once"
            )
    others = tuple(clean(table.header[i]) for i in chosen.others)
    said = _said(named, table, chosen, others, [*finder.notes(), *_repeats(repeated)])
    found = Manifest(Files(folder, outside=lambda _: True), list(rows.values()), others, said)
    _refuse_empty(named, found)
    return found


class _Finder:
    """Where the paths of one manifest lead: as they are written, or by the nearest reading of them that has a file.

    People leave out a file's ending, write backslashes, and keep the manifest beside the folder that its paths are
    relative to. :meth:`notes` says which of it was met.
    """

    def __init__(self, named: str, folder: bytes, text: Text) -> None:
        self.named, self._folder, self._text = named, folder, text
        self._below: dict[str, bytes] = {}  # cell -> the folder that its path is relative to
        self._where, self._endings, self._backslashes = "", set[str](), False
        self._stems: dict[bytes, dict[bytes, list[bytes]]] = {}

    def settle(self, cells: Sequence[str]) -> None:
        """Decide what the paths are relative to: the manifest's folder, where any of them leads to a file from there.

        Raises:
            DataError: they lead to files from several folders below it, and a path from more than one of them.
        """
        if any(status is not None and stat.S_ISREG(status.st_mode) for _, status in map(self.find, cells)):
            return
        index = self._files_below()
        places = {cell: self._places(cell, index) for cell in cells}
        counts = Counter(place for found in places.values() for place in found)
        if not counts:
            return
        for cell, found in places.items():
            if len(found) > 1:
                listed = " and ".join(f"{shown(place)}/" for place in sorted(found)[:3])
                raise DataError(
                    f"{self.named}: {shown(os.fsencode(cell))!r} could be in {listed}: write the folder into the "
                    "column of paths"
                )
        common = counts.most_common(1)[0][0]
        self._below = {cell: next(iter(found), common) for cell, found in places.items()}
        more = f" and {len(counts) - 1} other folders" if len(counts) > 1 else ""
        self._where = f"the files are in {shown(common)}/{more}"

    def find(self, cell: str) -> tuple[bytes, os.stat_result | None]:
        """The path relative to the manifest's folder, and its status; None where nothing is there by any reading.

        Raises:
            DataError: there are files of several endings.
        """
        below = self._below.get(cell, b"")
        paths = [os.path.normpath(os.path.join(below, path)) for path in spellings(self._text, cell)]
        folders = []
        for path in paths:
            status = self._status(path)
            if status is not None and stat.S_ISREG(status.st_mode):
                if path != paths[0] and b"\\" in paths[0]:
                    self._backslashes = True
                return path, status
            if status is not None:
                folders.append((path, status))
        for path in paths:
            for whole in self._with_ending(path):
                status = self._status(whole)
                if status is not None and stat.S_ISREG(status.st_mode):
                    self._endings.add(shown(whole[len(path) :]))
                    return whole, status
        return folders[0] if folders else (paths[0], None)

    def notes(self) -> list[str]:
        """How paths had to be read, in words."""
        found = [self._where] if self._where else []
        if self._endings:
            found.append(f"endings are added to paths ({', '.join(sorted(self._endings))})")
        if self._backslashes:
            found.append("backslashes in paths are taken as separators")
        return found

    def _status(self, path: bytes) -> os.stat_result | None:
        try:
            return os.stat(os.path.join(self._folder, path))
        except (OSError, ValueError):  # whoever reads it will be told why
            return None

    def _with_ending(self, path: bytes) -> list[bytes]:
        """The images that are called so, but for their ending.

        Raises:
            DataError: there are several.
        """
        if format_of(path) is not None:
            return []
        folder, stem = os.path.split(path)
        if folder not in self._stems:
            self._stems[folder] = _stems(os.path.join(self._folder, folder))
        found = self._stems[folder].get(stem, [])
        if len(found) > 1:
            listed = " and ".join(shown(name) for name in sorted(found)[:3])
            raise DataError(
                f"{self.named}: {shown(path)!r} could be {listed}: write the ending into the column of paths"
            )
        return [os.path.join(folder, name) for name in found]

    def _files_below(self) -> dict[bytes, set[bytes]]:
        """Name of an image, with and without its ending -> the folders below the manifest's that have one."""
        index: dict[bytes, set[bytes]] = {}
        todo = [(name, 1) for name in _folders(self._folder)]
        while todo:
            folder, depth = todo.pop()
            path = os.path.join(self._folder, folder)
            if depth < _DEPTH:
                todo.extend((os.path.join(folder, name), depth + 1) for name in _folders(path))
            for stem, names in _stems(path).items():
                for name in (stem, *names):
                    index.setdefault(name, set()).add(folder)
        return index

    def _places(self, cell: str, index: dict[bytes, set[bytes]]) -> set[bytes]:
        """The folders below the manifest's that the path of ``cell`` leads to a file from."""
        found = set()
        for path in spellings(self._text, cell):
            inner, name = os.path.split(path)
            for folder in index.get(name, ()):
                if not inner or (b"/" + folder).endswith(b"/" + inner):
                    found.add(folder[: len(folder) - len(inner)].rstrip(b"/") if inner else folder)
        return found


def _folders(path: bytes) -> list[bytes]:
    try:
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if not e.name.startswith(b".") and e.is_dir())
    except OSError:  # what cannot be looked into has no files for us
        return []


def _stems(folder: bytes) -> dict[bytes, list[bytes]]:
    """Name without ending -> the images of a folder that are called so."""
    found: dict[bytes, list[bytes]] = {}
    try:
        names = os.listdir(folder)
    except OSError:
        return found
    for name in names:
        if format_of(name) is not None:
            found.setdefault(os.path.splitext(name)[0], []).append(name)
    return found


def spellings(text: Text, cell: str) -> list[bytes]:
    """What a cell can mean as a path, the most literal first; one spelling for one file, so that ./a is a."""
    stripped = cell.strip()
    if stripped == cell and cell.isascii() and "\\" not in cell:  # nearly all
        return [os.path.normpath(cell.encode())]
    texts = [cell, stripped, stripped.replace("\\", "/")]
    ways = [way for text_ in texts for way in (text.raw(text_), text_.encode("utf-8", "surrogateescape"))]
    return list(dict.fromkeys(os.path.normpath(way) for way in ways))


def _row(where: str, line: int, cells: Sequence[str], chosen: Chosen, finder: _Finder) -> Row:
    cell = {kind: cells[place] for kind, place in chosen.places.items()}
    split = split_of(cell.get("split", ""))
    if split is None:
        raise DataError(
            f"{where}: unknown split {cell['split']!r}: use {', '.join(SPLIT_WORDS)}, or leave it empty (or say "
            f"{option('split_column', 'none')})"
        )
    path, status = finder.find(cell["path"])
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise DataError(f"{where}: {shown(path)!r} is not a file: give one image a line")
    return Row(line, path, clean(cell.get("label", "")) or None, split, tuple(cells[i] for i in chosen.others), status)


def _item(row: Row, began: int) -> Item:
    """A file that is not there has no size, and the beginning of time: one that comes has others."""
    size, when = (0, 0) if row.status is None else (row.status.st_size, lasting_time(row.status, began))
    return Item(row.path, row.label, row.split, size, when)


def _repeats(number: int) -> list[str]:
    return [f"rows that repeat an earlier one: {number:,}"] if number else []


def clean(cell: str) -> str:
    """A cell as a name: without the space around it, and bytes that are no UTF-8 written out."""
    return cell.strip().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _said(named: str, table: Table, chosen: Chosen, others: Sequence[str], notes: Sequence[str]) -> tuple[str, ...]:
    names = {kind: table.header[place].strip() for kind, place in chosen.places.items()}
    plain = all(name.lower() == kind for kind, name in names.items()) and not chosen.others
    lines = []
    if chosen.headless or not plain or table.delimiter != "," or table.text.encoding != "UTF-8":
        if chosen.headless:
            names = {kind: f"column {place + 1}" for kind, place in chosen.places.items()}
        parts = ["no line of names" if chosen.headless else "", ", ".join(f"{k} = {v}" for k, v in names.items())]
        delimiter = DELIMITERS.get(table.delimiter, repr(table.delimiter))
        form = [f"delimiter {delimiter}" if table.delimiter != "," else "", table.text.encoding]
        parts.append(", ".join(part for part in form if part and part != "UTF-8"))
        if others:
            what = "kept aside" if len(others) <= KEPT_AT_MOST else "left out"
            more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            parts.append(f"{what}: {', '.join(others[:_SHOWN])}{more}")
        lines.append(f"{named}: {'; '.join(part for part in parts if part)}")
    if notes:
        lines.append(f"{named}: {'; '.join(notes)}")
    return tuple(shown(line.encode("utf-8", "surrogateescape")) for line in lines)


def _refuse_empty(named: str, found: Manifest) -> None:
    """Raise where no row has a file: then it is the paths that are wrong, and no image is."""
    if len(found.missing()) < len(found.rows):
        return
    first = found.rows[0]
    if b":/" in first.path:  # of two slashes one is left
        address = shown(first.path.replace(b":/", b"://"))
        raise DataError(
            f"{named} line {first.line}: {address!r} is an address: fetch the images, and give their paths "
            "relative to the manifest"
        )
    endings = "" if format_of(first.path) else ", nor with the ending of an image behind it"
    raise DataError(
        f"{named}: none of its {many(len(found.rows), 'file')} is there (line {first.line}: {shown(first.path)!r}), "
        f"neither in the manifest's folder nor in those below it{endings}: paths are relative to the manifest; "
        f"{option('path_column')} names another column"
    )


def _kept_aside(found: Manifest, ids: Sequence[bytes]) -> dict[str, list[str]]:
    """The other columns' cells in the order of ``ids``; none where there are so many that they are data themselves."""
    if len(found.others) > KEPT_AT_MOST:
        return {}
    at = {row.path: row.others for row in found.rows}
    return {name: [at[item][place] for item in ids] for place, name in enumerate(found.others)}


def _warnings(named: str, found: Manifest, missing: Sequence[Row]) -> tuple[str, ...]:
    if not missing:
        return ()
    first = missing[0]
    return (
        f"{named}: {len(missing):,} of {len(found.rows):,} files are not there (the first: {shown(first.path)}, line "
        f"{first.line}); each counts as failed",
    )


def _check_splits(named: str, rows: Sequence[Row]) -> None:
    """All labelled rows name a split, or none does: a half-filled column has no clear meaning."""
    labelled = [row for row in rows if row.label is not None]
    bare = [row for row in labelled if row.split == NONE]
    if bare and len(bare) < len(labelled):
        raise DataError(
            f"{named} line {bare[0].line}: no split on this row ({len(bare):,} of {len(labelled):,} labelled rows): "
            "fill the split column for all labelled rows or for none"
        )
