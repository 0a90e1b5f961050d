"""Records: JSON that was written before, by this program or another, and is believed only as far as its schema says.

Whatever the bytes are, what is wrong with them is one line. Knows files and bytes; what a record is to be is said by
its schema (:mod:`pipeline.base.schema`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pipeline.base.errors import PipelineError
from pipeline.base.files import read_regular
from pipeline.base.schema import Malformed, made

T = TypeVar("T")

LIMIT = 256 << 20  # bytes of a record
DEEPEST = 64  # lists and objects within each other


def read_record(path: Path, schema: type[T], error: type[PipelineError], cure: str) -> T:
    """The record in the file at ``path``.

    Raises:
        PipelineError: of the kind ``error``: it cannot be read, or is not what the schema says; ``cure`` is its end.
    """
    try:
        return parse(read_file(path), schema)
    except (OSError, Malformed) as found:
        raise error(f"{path}: {reason(found)}; {cure}") from found


def reason(error: OSError | Malformed) -> str:
    """Why a file or a record is refused, in words."""
    return str((error.strerror if isinstance(error, OSError) else None) or error)


def read_file(path: Path, limit: int | None = LIMIT) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: it cannot be read, is a folder, a pipe or the like, or larger than ``limit``.
    """
    return read_regular(path, limit)


def parse_lines(data: bytes, schema: type[T]) -> Iterator[T]:
    """The records of JSON lines; one that a kill has cut short, or is not what the schema says, is left out."""
    for line in data.split(b"\n"):
        try:
            yield parse(line, schema)
        except Malformed:
            continue


def parse(data: bytes | str, schema: type[T]) -> T:
    """The record that a JSON text is.

    Raises:
        Malformed: it is not JSON, or not what the schema says.
    """
    try:
        value = _DECODER.decode(data.decode("utf-8") if isinstance(data, bytes) else data)
        _require_shallow(value)
    except RecursionError:
        raise Malformed(f"it is nested deeper than {DEEPEST}") from None
    except Malformed:
        raise
    except ValueError as error:
        raise Malformed(f"it is not JSON ({error})") from error
    return made(value, schema)


def _require_shallow(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        if not inner:
            return
        level = [one for several in inner for one in several]
    raise RecursionError


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Malformed("it names a field twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
