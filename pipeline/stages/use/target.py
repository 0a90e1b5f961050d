"""What a word of the user's names: a cache, or a run."""

from __future__ import annotations

import os

from pipeline.base.errors import CacheError, ConfigError, HeadError
from pipeline.base.workspace import Workspace
from pipeline.runs import folder as runs
from pipeline.store import Cache
from pipeline.store.find import find_cache


def find_target(spec: str, desk: Workspace) -> Cache | runs.Run:
    """The cache of that name or path, or else the run.

    Raises:
        ConfigError: there is neither.
        CacheError: there is such a file, and it is no cache that can be read.
    """
    try:
        return find_cache(spec, desk)
    except CacheError:
        if os.path.isfile(spec):
            raise
    try:
        return runs.find_run(spec, desk)
    except HeadError:
        raise ConfigError(f"{spec!r} is neither a feature cache nor a run: give one by its name or path") from None
