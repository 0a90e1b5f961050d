"""Where a search stands, on disk: killed at any moment, the same command goes on from there.

Knows finished brackets and a file of them; nothing of how their trials are made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.base.files import remove, write_text, writing
from pipeline.base.settings import identity
from pipeline.stages.learn.settings import SearchSettings
from pipeline.stages.learn.task import Task

RULES = 2  # of what a trial is: 2 since no column's scale is below the floor, and halving goes by the metric


class SearchState:
    """The finished brackets of this very search, one line each.

    ``name`` is of what decides the trials: the cache's key and content, the space's values (not where its file lies,
    so that other machines join the same search) and the settings. How many trials there are decides the brackets, but
    not what Optuna tries: more of them go on with the same study.
    """

    def __init__(self, task: Task[SearchSettings], varied: Mapping[str, Any]) -> None:
        settings, cache = task.settings, task.cache
        counted = identity(settings)
        if settings.optuna is not None:
            del counted["trials"]
        subject = json.dumps([cache.key, cache.content, counted, varied, RULES], sort_keys=True)
        self.name = f"search-{hashlib.sha256(subject.encode()).hexdigest()[:16]}"
        self._path = task.desk.runs / f".{self.name}.jsonl"

    def finished(self) -> list[list[dict[str, Any]]]:
        """Their trials; a line that a kill cut short is left out."""
        if not self._path.exists():
            return []
        whole = self._path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in whole]

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write one down."""
        kept = "".join(json.dumps(bracket) + "\n" for bracket in [*self.finished(), list(lines)])
        with writing(self._path.parent):
            write_text(self._path, kept)

    def digest(self) -> str | None:
        """The SHA-256 of all of them, None where there is none: the run that comes of them keeps it."""
        return hashlib.sha256(self._path.read_bytes()).hexdigest() if self._path.exists() else None

    def forget(self) -> None:
        """The search is over, and its run is kept."""
        with writing(self._path.parent):
            remove(self._path)
