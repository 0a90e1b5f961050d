"""A split's rows as heads take them: labelled, good, verified; with those of augmented views on request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import CacheError
from pipeline.base.spelling import option
from pipeline.store.find import view_path
from pipeline.store.format import difference
from pipeline.store.reader import Cache, open_cache


@dataclass(frozen=True)
class Rows:
    """The labelled good rows of one split: ``X`` (n, D) float16 or float32, perhaps a memory map; ``y`` (n,) int64."""

    X: NDArray[np.floating[Any]]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)


def load_rows(cache: Cache, *splits: str) -> Rows:
    """The labelled good rows of a split, or of several, each below the one before; no damaged row reaches a head.

    ``X`` is a view of the memory map where they are one run of it, as those of neighbouring splits are, too; where
    images among them failed or have no label, a copy.

    Raises:
        CacheError: a block is damaged.
    """
    rows = np.concatenate([cache.rows(split) for split in splits])
    cache.verify(rows)
    rows = rows[cache.labels[rows] >= 0]
    return Rows(cache.features_at(rows), cache.labels[rows])


def with_views(cache: Cache, rows: Rows, views: int) -> Rows:
    """The train rows, and below them those of so many augmented views of the same images.

    Raises:
        CacheError: a view is missing, or is of other images, labels or settings than ``cache``.
    """
    train = cache.split("train")
    parts = [rows]
    for number in range(1, views + 1):
        path = view_path(cache.path, number)
        if not path.exists():
            raise CacheError(
                f"{cache.path.name} has no augmented copies number {number} of its train images: extract again with "
                f"{option('views', views)}"
            )
        view = open_cache(path)
        other = [name for name, _, _ in difference(cache.provenance, view.provenance) if not name.startswith("view.")]
        same_images = view.split("train").ids == train.ids and (view.split("train").y == train.y).all()
        if other or not same_images:
            why = f"other settings ({', '.join(other)})" if other else "other images or labels"
            raise CacheError(
                f"{path.name} is of {why} than {cache.path.name}: extract again with {option('views', views)}"
            )
        parts.append(load_rows(view, "train"))
    return Rows(np.concatenate([p.X for p in parts]), np.concatenate([p.y for p in parts]))
