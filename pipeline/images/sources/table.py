"""A table of text as people have it -> its columns and cells, with the delimiter and the encoding found.

Knows CSV, its relatives and what spreadsheets write. Knows nothing of what the columns mean.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.base.errors import DataError
from pipeline.base.files import read_regular

DELIMITERS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8", "UTF-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)
_MAX_BYTES = 1 << 30
_SEPARATOR = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)  # Excel's own first line
_NOT_ASCII = re.compile(r"[^\x00-\x7f\udc80-\udcff]")  # but for bytes that are no UTF-8


@dataclass(frozen=True)
class Text:
    """A file as text; ``codec`` is Python's name of the encoding, ``encoding`` people's.

    What is no UTF-8 in a text that is UTF-8 elsewhere stands there as surrogates: a path's bytes come back exactly.
    """

    text: str
    codec: str
    encoding: str

    def raw(self, cell: str) -> bytes:
        """The bytes of a cell as the file has them; of UTF-16 as UTF-8."""
        return cell.encode("utf-8" if self.codec.startswith("utf-16") else self.codec, "surrogateescape")


@dataclass(frozen=True)
class Table:
    """``header`` and ``rows`` of as many cells as it has, each with the line number of its end."""

    text: Text
    delimiter: str
    header: list[str]
    rows: list[tuple[int, list[str]]]


def read_text(named: str, path: bytes) -> Text:
    """The file's text; ``named`` is what the user calls it.

    Raises:
        DataError: it cannot be read, is empty, or is no text.
    """
    try:
        blob = read_regular(path, _MAX_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(f"{named} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        found = _decoded(blob)
    except UnicodeDecodeError as error:
        raise DataError(f"{named} is not the {error.encoding} that it begins as: save it as CSV in UTF-8") from error
    if not re.search(r"\w", found.text):
        what = "holds no word" if found.text else "is an empty file"
        raise DataError(f"{named} {what}: its first line must name the columns, such as path,label")
    if "\0" in found.text:
        raise DataError(f"{named} is no text (it holds zero bytes): save the table as CSV in UTF-8")
    return found


def read_table(named: str, path: bytes, known: Callable[[str], bool]) -> Table:
    """The file's table. Its delimiter is the one that gives the first line most of the columns that are ``known``.

    Rows without any cell that is filled are left out, and empty cells beyond the columns.

    Raises:
        DataError: as :func:`read_text`, or no well-formed table; with the line number.
    """
    text = read_text(named, path)
    hint = _SEPARATOR.match(text.text)
    body, before = (text.text[hint.end() :], 1) if hint else (text.text, 0)
    delimiter = hint[1] if hint else _delimiter(body, known)
    header: list[str] = []
    rows: list[tuple[int, list[str]]] = []
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if not any(cells):
                continue
            line = reader.line_num + before
            if not header:
                header = cells
                continue
            if len(cells) != len(header):
                cells = _fitted(f"{named} line {line}", cells, header, delimiter)
            rows.append((line, cells))
    except csv.Error as error:
        raise DataError(f"{named} line {reader.line_num + before}: not a well-formed CSV ({error})") from error
    return Table(text, delimiter, header, rows)


def all_cells(text: Text) -> Iterator[str]:
    """Every cell of the text, by any of the delimiters."""
    for delimiter in DELIMITERS:
        try:
            for cells in csv.reader(io.StringIO(text.text, newline=""), delimiter=delimiter):
                yield from cells
        except csv.Error:
            continue  # what was read of it so far are cells all the same


def _decoded(blob: bytes) -> Text:
    for mark, codec, encoding in _MARKS:
        if blob.startswith(mark):
            text = blob[len(mark) :].decode(codec, "surrogateescape" if codec == "utf-8" else "strict")
            return Text(text, codec, encoding)
    text = blob.decode("utf-8", "surrogateescape")
    # Other bytes than UTF-8's beside letters that are UTF-8: of a path, whose bytes are to come back. Beside none, the
    # file is in another encoding.
    if _NOT_ASCII.search(text) or not re.search("[\udc80-\udcff]", text):
        return Text(text, "utf-8", "UTF-8")
    try:
        return Text(blob.decode("cp1252"), "cp1252", "Windows-1252")
    except UnicodeDecodeError:  # five bytes are no letter there
        return Text(blob.decode("latin-1"), "latin-1", "Latin-1")


def _delimiter(text: str, known: Callable[[str], bool]) -> str:
    best, most = ",", (0, 0)
    for delimiter in DELIMITERS:
        try:
            cells = next((c for c in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(c)), [])
        except csv.Error:
            continue
        found = (sum(map(known, cells)), len(cells))
        if found > most:
            best, most = delimiter, found
    return best


def _fitted(where: str, cells: list[str], header: list[str], delimiter: str) -> list[str]:
    """A row of another length than the header: spreadsheets leave empty cells behind the last column."""
    if len(cells) < len(header) or any(cells[len(header) :]):
        cure = "put a cell that holds the delimiter in double quotes" if len(cells) > len(header) else "fill the row"
        raise DataError(
            f"{where}: {len(cells)} cells under {len(header)} columns ({delimiter.join(header)!r}), delimiter "
            f"{DELIMITERS.get(delimiter, repr(delimiter))}: {cure}"
        )
    return cells[: len(header)]
