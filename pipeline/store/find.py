"""Caches found again: by path, by name or the beginning of it, or the latest of a workspace."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.base.errors import CacheError
from pipeline.base.settings import LATEST
from pipeline.base.workspace import Workspace
from pipeline.store.reader import Cache, open_cache


def find_cache(spec: str, desk: Workspace) -> Cache:
    """Open the cache at a path, of a name under the workspace's features, or the ``latest`` one there.

    Raises:
        CacheError: there is none, or it cannot be read.
    """
    folder = desk.features
    if spec == LATEST:
        made = sorted((p for p in folder.glob("*.h5") if not is_view(p)), key=lambda p: p.stat().st_mtime_ns)
        if not made:
            raise CacheError(f"no feature cache in {folder} yet: make one with `pipeline extract SOURCE`")
        return open_cache(made[-1])
    if Path(spec).exists() or "/" in spec:
        return open_cache(spec)
    there = sorted(p for p in folder.glob("*.h5") if not is_view(p))
    exact = [p for p in there if p.name in (spec, spec + ".h5")]
    found = exact or [p for p in there if p.name.startswith(spec)]
    if len(found) == 1:
        return open_cache(found[0])
    shown = ", ".join(p.name for p in (found or there)[-5:]) or "none yet: make one with `pipeline extract SOURCE`"
    what = "fits several caches" if found else "is no cache"
    raise CacheError(f"{spec!r} {what}: give a path, a name or its beginning, or {LATEST!r}; in {folder}: {shown}")


def is_view(path: Path) -> bool:
    """Whether a cache's name says that it holds augmented views of another one's train images."""
    return bool(re.search(r"\.view[0-9]+\.h5$", path.name))


def view_path(cache: Path, number: int) -> Path:
    """Where view ``number`` of the train images of ``cache`` lies: ``NAME.view1.h5`` beside ``NAME.h5``."""
    return cache.with_name(f"{cache.name.removesuffix('.h5')}.view{number}.h5")
