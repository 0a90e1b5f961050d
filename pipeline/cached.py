"""A cache as stage two uses it: found by name, its rows verified, its identity recorded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.errors import CacheError
from pipeline.base.settings import LATEST

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.store import Cache


@dataclass(frozen=True)
class Rows:
    """The labelled good rows of one split: ``X`` (n, D) float16 or float32, perhaps a memory map; ``y`` (n,) int64."""

    X: NDArray[np.floating[Any]]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)


def find_cache(spec: str, *, cache_root: Path) -> Cache:
    """Open the cache at a path, of a name under ``cache_root``/features, or the ``latest`` one there.

    Raises:
        CacheError: there is none, or it cannot be read.
    """
    from pipeline.store import open_cache

    folder = cache_root / "features"
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


def load_rows(cache: Cache, split: str) -> Rows:
    """The labelled good rows of a split, their checksums verified: no damaged or empty row reaches a head (H3).

    Raises:
        CacheError: a block is damaged.
    """
    features = cache.split(split)
    cache.verify(features.rows)
    labelled = features.y >= 0
    return Rows(features.X, features.y) if labelled.all() else Rows(features.X[labelled], features.y[labelled])


def is_view(path: Path) -> bool:
    """Whether a cache's name says that it holds augmented views of another one's train images."""
    return bool(re.search(r"\.view[0-9]+\.h5$", path.name))


def with_views(cache: Cache, rows: Rows, views: int) -> Rows:
    """The train rows, and below them those of so many augmented views of the same images.

    Raises:
        CacheError: a view is missing, or is of other images, labels or settings than ``cache``.
    """
    import numpy as np

    from pipeline.extract import view_path
    from pipeline.store import difference, open_cache

    train = cache.split("train")
    parts = [rows]
    for number in range(1, views + 1):
        path = view_path(cache.path, number)
        if not path.exists():
            raise CacheError(f"no view {number} of {cache.path.name}: make it with `pipeline extract --views {views}`")
        view = open_cache(path)
        other = [name for name, _, _ in difference(cache.provenance, view.provenance) if not name.startswith("view.")]
        same_images = view.split("train").ids == train.ids and (view.split("train").y == train.y).all()
        if other or not same_images:
            why = f"other settings ({', '.join(other)})" if other else "other images or labels"
            raise CacheError(f"{path.name} is of {why} than {cache.path.name}: run `pipeline extract --views {views}`")
        parts.append(load_rows(view, "train"))
    return Rows(np.concatenate([p.X for p in parts]), np.concatenate([p.y for p in parts]))


def cache_record(cache: Cache) -> dict[str, Any]:
    """What a run records of the cache that it learned from."""
    return {
        "cache": {
            "path": str(cache.path.resolve()),
            "key": cache.key,
            "content": cache.content,
            "rows": cache.counts(),
            "about": cache.about,
        },
        "provenance": cache.provenance,
        "classes": list(cache.classes),
    }
