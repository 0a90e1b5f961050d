"""The words of each failed image, as JSON lines beside the cache: path, kind, reason, digest.

The cache itself holds only the kind (``/items/state``); this file is for people and for saying why again later.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from pipeline.base.errors import CacheError
from pipeline.base.files import append_line, remove, write_text
from pipeline.base.records import parse_lines, read_file, reason
from pipeline.base.schema import PathText, Sha256
from pipeline.store.format import partial_path
from pipeline.store.lock import writing_beside


class _Line(TypedDict):
    id: PathText
    kind: str
    reason: str
    digest: Sha256


@dataclass(frozen=True)
class Failure:
    """One image that gave no features."""

    id: bytes
    kind: str
    reason: str
    digest: bytes


def failures_path(cache: Path) -> Path:
    """``NAME.failures.jsonl`` beside ``NAME.h5`` (and beside ``NAME.h5.partial`` while that is being written)."""
    return cache.with_name(cache.name.removesuffix(".h5") + ".failures.jsonl")


def partial_failures_path(cache: Path, rank: int = 0) -> Path:
    """Where process ``rank`` of a job notes the failures of the unfinished file of ``cache``."""
    path = failures_path(partial_path(cache))
    return path if rank == 0 else path.with_name(f"{path.name}.{rank}")


def partial_failure_files(cache: Path) -> list[Path]:
    """All processes' notes of failures, of this job and of the ones it goes on from."""
    path = failures_path(partial_path(cache))
    others = (p for p in path.parent.iterdir() if p.name.startswith(path.name + ".") and p.suffix[1:].isdigit())
    return [p for p in (path, *sorted(others)) if p.exists()]


def partial_failures(cache: Path) -> dict[bytes, Failure]:
    """The failures that all processes have noted so far, by id."""
    return {item: failure for path in partial_failure_files(cache) for item, failure in read_failures(path).items()}


def append_failures(path: Path, failures: Iterable[Failure]) -> None:
    """Add lines to the file at ``path``; flushed to disk before returning."""
    lines = [_line(f) for f in failures]
    if lines:
        with writing_beside(path):
            append_line(path, "\n".join(lines))


def write_failures(path: Path, failures: Iterable[Failure]) -> None:
    """Replace the file at ``path`` (or remove it, when nothing failed)."""
    text = "".join(_line(f) + "\n" for f in failures)
    with writing_beside(path):
        if text:
            write_text(path, text)
        else:
            remove(path)


def read_failures(path: Path) -> dict[bytes, Failure]:
    """The failures by id, the last line of each id winning; a line cut by a kill is left out.

    Raises:
        CacheError: the file cannot be read.
    """
    found: dict[bytes, Failure] = {}
    try:
        data = read_file(path, None)  # a line for each of perhaps a million images
    except FileNotFoundError:
        return found
    except OSError as error:
        raise CacheError(f"cannot read {path} ({reason(error)}): remove it, or put it right") from error
    # Only a kill in mid-line gives a line that is left out; its block is redone and the line written again.
    for line in parse_lines(data, _Line):
        item = os.fsencode(line["id"])
        found[item] = Failure(item, line["kind"], line["reason"], bytes.fromhex(line["digest"]))
    return found


def _line(failure: Failure) -> str:
    # surrogateescape carries bytes that are not UTF-8 through JSON and back; the line itself is ASCII.
    entry: _Line = {
        "id": os.fsdecode(failure.id),
        "kind": failure.kind,
        "reason": failure.reason,
        "digest": failure.digest.hex(),
    }
    return json.dumps(entry)
