"""Caches found again: by path, by name or the beginning of it, or the latest of a workspace.

The latest is the one that a command has given last: made, changed, or found to be what was asked for.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from pipeline.base.errors import CacheError
from pipeline.base.settings import LATEST
from pipeline.base.workspace import Workspace
from pipeline.store.reader import Cache
from pipeline.store.reader import open_cache as open_path


def open_cache(path: str | Path, *, verify: bool = False, workspace: str | os.PathLike[str] | None = None) -> Cache:
    """Open a finished feature cache: its path, its name (or the beginning of it) in the workspace, or ``latest``.

    ``verify`` also reads every row and id, and checks their checksums.

    Raises:
        CacheError: there is none, or several of that name; it is unfinished, damaged, hostile, or of another format
            version.
    """
    cache = find_cache(os.fspath(path), Workspace.at(workspace))
    if verify:
        cache.verify()
    return cache


def find_cache(spec: str, desk: Workspace) -> Cache:
    """Open the cache at a path, of a name under the workspace's features, or the ``latest`` one there.

    Raises:
        CacheError: there is none, or it cannot be read.
    """
    return open_path(cache_path(spec, desk))


def cache_path(spec: str, desk: Workspace) -> Path:
    """Where the cache lies that :func:`find_cache` opens; whether it is one is not asked.

    Raises:
        CacheError: there is no file of that name, or several.
    """
    folder = desk.features
    there = cache_files(desk)
    if spec == LATEST:
        if not there:
            raise CacheError(f"no feature cache in {folder} yet: make one with `pipeline extract SOURCE`")
        latest = max(there, key=lambda path: path.stat().st_mtime_ns)
        desk.watch.say(f"latest cache: {latest.name}")
        return latest
    if Path(spec).is_file() or "/" in spec:
        return Path(spec)
    exact = [p for p in there if p.name in (spec, spec + ".h5")]
    found = exact or [p for p in there if p.name.startswith(spec)]
    if len(found) == 1:
        return found[0]
    shown = (
        ", ".join(_with_source(p) for p in (found or there)[-5:]) or "none yet: make one with `pipeline extract SOURCE`"
    )
    what = "fits several caches" if found else "is no cache"
    raise CacheError(f"{spec!r} {what}: give a path, a name or its beginning, or {LATEST!r}; in {folder}: {shown}")


def cache_files(desk: Workspace) -> list[Path]:
    """The caches among a workspace's features, by name; without those of augmented views."""
    return sorted(path for path in desk.features.glob("*.h5") if not is_view(path))


def make_latest(path: Path) -> None:
    """Have the cache at ``path`` be the ``latest``."""
    with contextlib.suppress(OSError):  # where nothing can be written, nothing was made since, either
        os.utime(path)


def _with_source(path: Path) -> str:
    """A cache's name, and the source that tells it from others of that name."""
    try:
        source = open_path(path).about.get("source")
    except CacheError:
        source = None
    return path.name if source is None else f"{path.name} (of {source})"


def is_view(path: Path) -> bool:
    """Whether a cache's name says that it holds augmented views of another one's train images."""
    return bool(re.search(r"\.view[0-9]+\.h5$", path.name))


def view_path(cache: Path, number: int) -> Path:
    """Where view ``number`` of the train images of ``cache`` lies: ``NAME.view1.h5`` beside ``NAME.h5``."""
    return cache.with_name(f"{cache.name.removesuffix('.h5')}.view{number}.h5")
