"""The ledger of looks at test rows: how many runs of a workspace have been scored on the same ones.

Figures of a run on test are honest while nothing is chosen by them. The program cannot see what a person chooses by; it
can count, by what the rows are and not by where they lie, and say so with each figure. A line of ``tested.jsonl`` is a
run that has been scored::

    {"content": "9f...", "rows": 269, "run": "0001-train-digits", "mark": "...", "when": "2025-01-01T00:00:00Z"}

It is on the disk before a row is read, so a kill after the look takes nothing from the count; nor does deleting runs.
Knows lines, nothing of features or figures.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import HeadError
from pipeline.base.files import append_line, locked, make_folder, writing
from pipeline.base.records import parse_lines, read_file, reason
from pipeline.base.schema import Count
from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace
from pipeline.heads.artifact import TENSORS_FILE
from pipeline.runs.network import MODEL_FILE
from pipeline.runs.pixels import labelled
from pipeline.stages.score import words
from pipeline.store import Cache

PATIENCE = 20.0  # seconds for another process, which holds the ledger for a moment only


class Line(TypedDict):
    """A line of the ledger."""

    content: str
    rows: NotRequired[Count]
    run: NotRequired[str]
    mark: str
    when: NotRequired[str]


@dataclass(frozen=True)
class Scorer:
    """Who is scored: a run's name, and a mark that tells it from every other, later ones of its name included."""

    name: str
    mark: str

    @classmethod
    def of(cls, folder: Path, name: str | None = None) -> Scorer:
        """A run, or what is to become one: its weights, and when they were written, are the same before and after.

        Raises:
            HeadError: it has no weights.
        """
        for file in (MODEL_FILE, TENSORS_FILE):
            path = folder / file
            if path.exists():
                with path.open("rb") as weights:
                    digest = hashlib.file_digest(weights, "sha256").hexdigest()
                return cls(name or folder.name, f"{digest} {path.stat().st_mtime_ns}")
        raise HeadError(f"{folder} holds no head: give a run of train, search or finetune")


def content_of(cache: Cache) -> str:
    """SHA-256 (hex) of the labelled good test rows: their images' digests and class names, in whatever order.

    The same through another trunk, at another place, under other file names and numbers of classes.

    Raises:
        HeadError: there are none.
    """
    rows = places_of(cache)
    return content_of_pairs(zip(cache.digests[rows], (cache.classes[y] for y in cache.labels[rows]), strict=True))


def content_of_pairs(pairs: Iterable[tuple[NDArray[np.uint8], str]]) -> str:
    """The same of images' digests (32,) and class names that are at hand."""
    told = sorted((digest.tobytes().hex(), name) for digest, name in pairs)
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def shared(cache: Cache, digests: NDArray[np.uint8]) -> int:
    """How many of these images (n, 32) are among the cache's labelled good test rows."""
    theirs = {digest.tobytes() for digest in cache.digests[labelled(cache, "test")]}
    return sum(digest.tobytes() in theirs for digest in digests)


def places_of(cache: Cache) -> NDArray[np.int64]:
    """Indices (n,) int64 of the labelled good test rows, ascending.

    Raises:
        HeadError: there are none.
    """
    rows = labelled(cache, "test")
    if not len(rows):
        raise HeadError(f"{cache.path.name} has no labelled test rows: extract with {option('test_fraction')} above 0")
    return rows


def count(cache: Cache, scorer: Scorer, desk: Workspace) -> int:
    """Put on record that the cache's test rows are scored now; gives how many others had been scored on them, and says.

    To be called before a row is read. A run that is on record already, from before a kill, is not counted twice.

    Raises:
        HeadError: there are no such rows; or the ledger is not to be had, and then nothing may be scored.
    """
    return count_content(content_of(cache), len(places_of(cache)), scorer, desk)


def count_content(content: str, rows: int, scorer: Scorer, desk: Workspace) -> int:
    """The same of so many test images with that content, wherever they lie.

    Raises:
        HeadError: the ledger is not to be had, and then nothing may be scored.
    """
    with _held(desk.tested):
        known = {mark for mark, of in _lines(desk.tested) if of == content}
        if scorer.mark not in known:
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            line: Line = {"content": content, "rows": rows, "run": scorer.name, "mark": scorer.mark, "when": when}
            append_line(desk.tested, json.dumps(line))
    before = len(known - {scorer.mark})
    desk.watch.result(words.scored(before, rows))
    return before


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """The ledger for this process alone, which is waited for.

    Raises:
        HeadError: another process does not let go of it, or it cannot be written.
    """
    with writing(path), contextlib.ExitStack() as held:
        make_folder(path.parent)
        busy = HeadError(
            f"another process holds {path}, where looks at test rows are counted: no test row has been read; wait "
            "for it, or stop it, and run again"
        )
        held.enter_context(locked(path.with_name(f".{path.name}.lock"), patience=PATIENCE, busy=busy))
        yield


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Mark and content of each line that is whole: one that a kill has cut was followed by no look."""
    for line in parse_lines(_written(path), Line):
        yield line["mark"], line["content"]


def _written(path: Path) -> bytes:
    """What the ledger holds, nothing where there is none yet.

    Raises:
        HeadError: it cannot be read, and so cannot be counted by.
    """
    try:
        return read_file(path)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise HeadError(
            f"{path}, where looks at test rows are counted, cannot be read ({reason(error)}): no test row has been "
            f"read; put it right, or choose {option('workspace')}"
        ) from error
