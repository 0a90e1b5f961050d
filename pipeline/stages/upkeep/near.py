"""Pairs of rows whose features point nearly the same way: all of them, found without every cosine being taken in full.

In an orthonormal basis of K of the D dimensions let p be what a row of length 1 has there, and r the length of what is
left of it. By Cauchy and Schwarz the cosine of two rows is at most p · p' + r r': a product of K + 1 numbers instead of
D. Only where that reaches the threshold the cosine itself is taken, so no pair is missed, whatever the basis; a basis
of the directions in which the rows differ most (principal components) makes such places few. How many dimensions are
worth their cost is reckoned from pairs drawn by chance. Few rows are compared in full. Knows a cache's rows; nothing of
what they are of.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.store import Cache

Floats = NDArray[np.float32]
Found = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.floating]]  # left rows, right rows, cosines

TILE = 2048  # rows on each side of one product: 16 MiB of cosines, 16 MiB of rows of 2048 features on each side
IN_FULL = 4 * TILE  # rows up to which a bound is not worth its making
ROUNDING = 1e-6  # a cosine of two equal rows is 1 to this much in float32
SLACK = (
    1e-4  # what float32 may take from a bound of up to MOST dimensions: each of its terms is rounded by 6e-8 at most
)
LEFT = 1e-5  # the same of the square of what is left of a row

SAMPLE = 4096  # rows that the basis is made of, and the pairs that are drawn
MOST, FEWEST = 512, 16  # dimensions of a bound
BOUND_BYTES = 1 << 30  # of the bounds of all rows
SEED, ROUNDS, BESIDE = 0, 2, 16  # of the drawing; of the subspace iteration, and its directions beside those wanted
# What one pair costs in units of a product's dimension, measured: to look at a bound, and, in units of D, to take a
# cosine by itself, of rows that lie anywhere in the file.
LOOK, ALONE = 40, 150
PIECE = 1024  # cosines by themselves that are taken at once
MEASURED = 3  # tiles that are timed before the others


@dataclass(frozen=True, eq=False)
class Search:
    """Rows (n,) int64 of a cache, with a number (n,) for each that only copies share: they are no pair.

    ``bound`` (n, K + 1) float32 has for each row p and r, or is None: then each pair is compared in full.
    """

    cache: Cache
    rows: NDArray[np.int64]
    content: NDArray[np.int64]
    threshold: float
    bound: Floats | None

    @property
    def dimensions(self) -> int | None:
        """K."""
        return None if self.bound is None else self.bound.shape[1] - 1

    def tiles(self) -> list[tuple[int, int]]:
        """The first rows, left and right, of all tiles of the pairs' upper triangle."""
        return list(itertools.combinations_with_replacement(range(0, len(self.rows), TILE), 2))

    def in_tile(self, i: int, j: int) -> Found:
        """The pairs of one tile."""
        if self.bound is not None:
            upper = self.bound[i : i + TILE] @ self.bound[j : j + TILE].T
            at, to = _where(upper >= self.threshold - SLACK, same=i == j)
            if len(at) * ALONE <= upper.size:
                return self._alone(i + at, j + to)
        cosines = self._unit(i) @ self._unit(j).T
        at, to = _where(cosines >= self.threshold - ROUNDING, same=i == j)
        other = self.content[i + at] != self.content[j + to]
        at, to = at[other], to[other]
        return self.rows[i + at], self.rows[j + to], cosines[at, to]

    def _alone(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> Found:
        """Of these places those whose cosine, in float64, is high enough."""
        other = self.content[left] != self.content[right]
        left, right = self.rows[left[other]], self.rows[right[other]]
        cosines = np.empty(len(left))
        for start in range(0, len(left), PIECE):
            here = slice(start, start + PIECE)
            a, b = (np.asarray(self.cache.features[rows[here]], np.float64) for rows in (left, right))
            lengths = np.sqrt(np.einsum("nd,nd->n", a, a) * np.einsum("nd,nd->n", b, b))
            cosines[here] = np.einsum("nd,nd->n", a, b) / lengths
        near = cosines >= self.threshold - ROUNDING
        return left[near], right[near], cosines[near]

    @functools.cached_property
    def _unit(self) -> Callable[[int], Floats]:
        """The rows of a tile's side at length 1; the left side stays while the right one goes on."""
        return functools.lru_cache(maxsize=2)(lambda first: unit(self.cache, self.rows[first : first + TILE]))


def search_of(cache: Cache, rows: NDArray[np.int64], content: NDArray[np.int64], threshold: float) -> Search:
    """The way that is thought to cost least; the same for the same rows."""
    bound = None
    if len(rows) > IN_FULL:
        sample = unit(cache, np.sort(np.random.default_rng(SEED).choice(rows, min(SAMPLE, len(rows)), replace=False)))
        most = min(MOST, cache.dim // 2, BOUND_BYTES // (4 * len(rows)) - 1)
        basis = _basis(sample, most) if most >= FEWEST else None
        kept = 0 if basis is None else _worth(bound_of(sample, basis), threshold, cache.dim)
        if basis is not None and kept:
            bound = np.empty((len(rows), kept + 1), np.float32)
            for first in range(0, len(rows), TILE):
                part = rows[first : first + TILE]
                bound[first : first + len(part)] = bound_of(unit(cache, part), basis[:, :kept])
    return Search(cache, rows, content, threshold, bound)


def estimate(search: Search) -> float:
    """Seconds that all tiles may take, from a few of them."""
    tiles = search.tiles()
    some = [tiles[at] for at in np.linspace(0, len(tiles) - 1, MEASURED).astype(int).tolist()]
    began = time.perf_counter()
    for tile in some:
        search.in_tile(*tile)
    return (time.perf_counter() - began) / len(some) * len(tiles)


def bound_of(rows: Floats, basis: Floats) -> Floats:
    """(n, K + 1): p and r of rows (n, D) of length 1, in an orthonormal basis (D, K)."""
    p = rows @ basis
    left = np.sqrt(np.maximum(1 - np.einsum("nk,nk->n", p, p), 0) + LEFT)
    return np.column_stack([p, left.astype(np.float32)])


def _basis(sample: Floats, k: int) -> Floats:
    """(D, k): orthonormal, the directions of most of the rows' (n, D) squared length first.

    By subspace iteration from random directions (Halko, Martinsson and Tropp 2011, algorithm 4.4), then rotated to the
    principal axes within. That it is orthonormal is all that a bound needs; the rest makes it a good one.
    """
    rng = np.random.default_rng(SEED)
    width = min(k + BESIDE, sample.shape[1])
    q = np.linalg.qr(sample.T @ rng.standard_normal((len(sample), width), np.float32))[0]
    for _ in range(ROUNDS):
        q = np.linalg.qr(sample.T @ (sample @ q))[0]
    within = (sample @ q).astype(np.float64)
    axes = np.linalg.eigh(within.T @ within)[1][:, ::-1]
    found: Floats = np.linalg.qr(q.astype(np.float64) @ axes)[0][:, :k].astype(np.float32)
    return found


def _worth(bound: Floats, threshold: float, dim: int) -> int:
    """How many of the dimensions of a bound (n, K + 1) are worth their cost; 0 where none are."""
    half = len(bound) // 2
    p, most = bound[:, :-1], bound.shape[1] - 1
    best, kept = float(dim), 0
    for k in (k for k in itertools.takewhile(lambda k: k <= most, (FEWEST << n for n in itertools.count()))):
        left = np.sqrt(np.maximum(1 - np.einsum("nk,nk->n", p[:, :k], p[:, :k]), 0) + LEFT)
        upper = p[:half, :k] @ p[half:, :k].T + np.outer(left[:half], left[half:])
        cost = k + LOOK + dim * min(1.0, ALONE * float((upper >= threshold - SLACK).mean()))
        if cost < best:
            best, kept = cost, k
    return kept


def _where(close: NDArray[np.bool_], *, same: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The places of a tile that hold; of rows with themselves each pair once."""
    at, to = np.divmod(np.flatnonzero(close), close.shape[1])
    once = at < to if same else slice(None)
    return at[once], to[once]


def unit(cache: Cache, rows: NDArray[np.int64]) -> Floats:
    """(n, D) float32: the rows at length 1. A good row is never all zero."""
    X = np.asarray(cache.features[rows], np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    return X
