"""A cache and the files beside it that are its own, under another name or gone; all of it, or after a kill again."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.base.errors import CacheError
from pipeline.base.files import draft_in, move
from pipeline.store.format import partial_path
from pipeline.store.lock import writing_beside, writing_lock

_OWN = re.compile(r"(\.view[0-9]+)?(\.h5|\.failures\.jsonl)|\.note\.txt|\.calibration\.json")
_STEM = re.compile(r"(\.view[0-9]+)?\.h5(\.partial)?$")


def note_path(cache: Path) -> Path:
    """Where the user's words on a cache stand."""
    return cache.with_name(f"{cache.name.removesuffix('.h5')}.note.txt")


def calibration_path(cache: Path) -> Path:
    """Where the bounds stand that a cache in int8 was computed between: a view's are those of its cache."""
    return cache.with_name(f"{_STEM.sub('', cache.name)}.calibration.json")


def files_of(cache: Path) -> list[Path]:
    """A cache's views, lists of failures, bounds and note, and last the cache itself."""
    stem = cache.name.removesuffix(".h5")
    beside = [p for p in cache.parent.iterdir() if p.name.startswith(stem) and _OWN.fullmatch(p.name[len(stem) :])]
    return [*sorted(set(beside) - {cache}), cache]


def rename_cache(cache: Path, name: str) -> Path:
    """Give a cache, and what is its own, another name in its folder; the new path.

    Raises:
        CacheError: there is such a cache, one of the two is being written, or nothing can be.
    """
    target, stem = cache.with_name(f"{name}.h5"), cache.name.removesuffix(".h5")
    with writing_lock(cache):
        for path in (partial_path(cache), target, partial_path(target)):
            if path.exists():
                raise CacheError(f"{path} is there: finish or remove it, or give another name")
        with writing_beside(cache):
            for file in files_of(cache):  # the cache last: until then the same command goes on
                move(file, file.with_name(name + file.name[len(stem) :]))
    return target


def delete_cache(cache: Path) -> None:
    """Remove a cache and what is its own.

    Raises:
        CacheError: it is being written, or nothing can be removed.
    """
    with writing_lock(cache), writing_beside(cache), draft_in(cache.parent) as draft:
        for file in files_of(cache):
            file.replace(draft / file.name)
