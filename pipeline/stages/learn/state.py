"""Where a search stands, on disk: killed at any moment, the same command goes on from there.

Knows finished brackets and a file of them; nothing of how their trials are made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.base.errors import HeadError
from pipeline.base.files import locked, make_folder, remove, write_text, writing
from pipeline.base.records import parse, read_file, reason
from pipeline.base.schema import Malformed
from pipeline.base.settings import identity
from pipeline.stages.learn.settings import SearchSettings
from pipeline.stages.learn.task import Task
from pipeline.stages.learn.trials import Line

RULES = 2  # of what a trial is: 2 since no column's scale is below the floor, and halving goes by the metric


class SearchState:
    """The finished brackets of this very search, one line each.

    ``name`` is of what decides the trials: the cache's key and content, the space's values (not where its file lies,
    so that other machines join the same search) and the settings. How many trials there are decides the brackets, but
    not what Optuna tries: more of them go on with the same study.
    """

    def __init__(self, task: Task[SearchSettings], varied: Mapping[str, Any]) -> None:
        settings, cache = task.settings, task.cache
        self._asked = settings.trials
        self._kept_as = json.dumps([settings.refit, settings.trials])  # what else decides the run that comes of it
        counted = identity(settings)
        if settings.optuna is not None:
            del counted["trials"]
        subject = json.dumps([cache.key, cache.content, counted, varied, RULES], sort_keys=True)
        self.name = f"search-{hashlib.sha256(subject.encode()).hexdigest()[:16]}"
        self._path = task.desk.runs / f".{self.name}.jsonl"

    def finished(self) -> list[list[Line]]:
        """Their trials, in order; from a line on that is cut short or damaged, they are done again.

        Raises:
            HeadError: what lies there is no file, or cannot be read.
        """
        found: list[list[Line]] = []
        for line in (self._read() or b"").split(b"\n"):
            try:
                found.append(parse(line, list[Line]))
            except Malformed:
                break
        return found

    def _read(self) -> bytes | None:
        try:
            return read_file(self._path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HeadError(f"{self._path} cannot be read ({reason(error)}): remove it, and search again") from error

    def add(self, lines: Sequence[Line]) -> None:
        """Write one down."""
        kept = "".join(json.dumps(bracket) + "\n" for bracket in [*self.finished(), list(lines)])
        with writing(self._path.parent):
            write_text(self._path, kept)

    def digest(self) -> str | None:
        """What the run that comes of them is known by, None where the search is not over: the run keeps it.

        Raises:
            HeadError: what lies there is no file, or cannot be read.
        """
        if sum(map(len, self.finished())) < self._asked:
            return None
        subject = f"{self.name}\n{self._kept_as}\n".encode() + (self._read() or b"")
        return hashlib.sha256(subject).hexdigest()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from the same search at the same time.

        Raises:
            HeadError: one is at it, or the folder cannot be written.
        """
        lock = self._path.with_suffix(".lock")
        with contextlib.ExitStack() as held:
            with writing(lock.parent):
                make_folder(lock.parent)
                busy = HeadError(
                    f"another process is at this very search ({lock}): wait for it, or stop it and run again"
                )
                held.enter_context(locked(lock, busy=busy))
            held.callback(lock.unlink, missing_ok=True)
            yield

    def forget(self) -> None:
        """The search is over, and its run is kept."""
        with writing(self._path.parent):
            remove(self._path)
