"""A map of a cache's features: like images near each other, on a plane.

A sample of train and val rows, PCA to 50 columns, then t-SNE (van der Maaten and Hinton 2008, JMLR 9, 2579), which
keeps neighbours and nothing else: distances and the sizes of groups mean nothing. Takes seconds, so it is kept.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from pipeline.base.errors import HeadError
from pipeline.base.words import many
from pipeline.base.workspace import Workspace
from pipeline.runs.pixels import labelled
from pipeline.stages.report.kept import kept
from pipeline.store import Cache

SAMPLE = 1500  # rows
FEWEST = 10
COLUMNS = 50
PERPLEXITY = 30.0
ITERATIONS = 500  # of so few rows: more change the picture little


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Places ``x`` and ``y`` (n,) float32 of cache ``rows`` (n,) int64."""

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    rows: NDArray[np.int64]

    def fits(self) -> bool:
        """Whether these are arrays of such types and shapes; what is read from a file need not be."""
        flat = all(a.dtype == np.float32 and a.shape == self.rows.shape for a in (self.x, self.y))
        return flat and self.rows.dtype == np.int64 and self.rows.ndim == 1


def map_of(cache: Cache, seed: int, desk: Workspace) -> FeatureMap:
    """The map of SAMPLE labelled rows of train and val at most.

    Raises:
        HeadError: there are fewer than FEWEST, or the map that is kept is damaged.
        CacheError: a block is damaged.
    """
    rows = np.sort(np.concatenate([labelled(cache, split) for split in ("train", "val")]))
    if len(rows) < FEWEST:
        raise HeadError(f"{many(len(rows), 'labelled row')} of train and val: a map takes {FEWEST} at least")
    if len(rows) > SAMPLE:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:SAMPLE])
    known = hashlib.sha256(f"{cache.key} {seed} {SAMPLE} {COLUMNS} {PERPLEXITY} {ITERATIONS}".encode())
    known.update(rows.tobytes() + cache.digests[rows].tobytes())
    path = desk.reports / f"map-{known.hexdigest()[:32]}.safetensors"

    def computed() -> FeatureMap:
        cache.verify(rows)
        desk.watch.say(f"a map of the features of {many(len(rows), 'image')} is made, and kept for the next page")
        X = np.asarray(cache.features_at(rows), np.float32)
        if (X[0] == X).all():
            raise HeadError("all images have the same features: there is nothing to tell them apart by")
        x, y = _places(X, seed).T
        return FeatureMap(x, y, rows)

    return kept(path, FeatureMap, computed, desk)


def _places(X: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Places (n, 2) of rows (n, D); by one thread, since sums of several come in no fixed order."""
    with threadpool_limits(1):
        columns = min(COLUMNS, *X.shape, len(X) - 1)
        reduced = PCA(columns, svd_solver="randomized", random_state=seed).fit_transform(X)
        layout = TSNE(
            perplexity=min(PERPLEXITY, (len(X) - 1) / 3), max_iter=ITERATIONS, init="pca", random_state=seed, n_jobs=1
        )
        found: NDArray[np.float32] = layout.fit_transform(reduced).astype(np.float32)
    return found
