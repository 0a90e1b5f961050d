"""Earlier files that have rows of the one to be made: which, and which of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import store
from pipeline.base.errors import CacheError
from pipeline.base.items import GOOD, ITEM_STATES
from pipeline.runs.recipe import Readable, readable_of

Matrix = NDArray[np.generic]


class Donor:
    """An earlier file that gives rows; each of its blocks is verified once, before its first row is taken.

    Attributes:
        reasons: of the failures that are taken over: only the file's own are.
    """

    def __init__(self, cache: store.Cache, reasons: dict[bytes, store.Failure]) -> None:
        self.cache, self.reasons = cache, reasons
        self._sound = np.zeros(len(cache.done), np.bool_)

    def take(self, rows: NDArray[np.int64]) -> Matrix:
        """Features (n, D) of some of its rows, in any order, as they are stored.

        Raises:
            CacheError: a block is damaged: damage does not travel.
        """
        blocks = np.unique(rows // self.cache.block_rows)
        new = blocks[~self._sound[blocks]]
        if len(new):
            self.cache.verify(new * self.cache.block_rows)
            self._sound[new] = True
        return self.cache.features[rows]


@dataclass(frozen=True)
class Origin:
    """Where each row comes from: ``donor`` (N,), an index into ``donors`` or -1 for the trunk, and ``row`` (N,)."""

    donors: Sequence[Donor]
    donor: NDArray[np.int64]
    row: NDArray[np.int64]


def find_origin(out: Path, target: store.Cache) -> Origin:
    """For each row of the unfinished file ``target``: the row of an earlier file to copy, or the trunk.

    The finished file at ``out``, unfinished ones that were left aside, and every finished file of the same key in the
    same folder may give rows; an image is known by its digest.
    """
    donors: list[Donor] = []
    origin = Origin(donors, np.full(len(target), -1, np.int64), np.full(len(target), -1, np.int64))
    missing = np.flatnonzero(target.digests.any(axis=1))

    def look_in(cache: store.Cache, usable: NDArray[np.bool_], reasons: dict[bytes, store.Failure]) -> None:
        nonlocal missing
        done = np.repeat(cache.done, cache.block_rows)[: len(cache)]
        found = _rows_with(target.digests[missing], cache.digests, usable & done)
        here = missing[found >= 0]
        if len(here):
            origin.donor[here], origin.row[here] = len(donors), found[found >= 0]
            donors.append(Donor(cache, reasons))
            missing = missing[found < 0]

    if out.exists():
        own = store.open_cache(out)
        # A failure is kept only from our own file; another source's failure is tried again here.
        kept = ~failed_for_a_limit(own, readable_of(target))
        look_in(own, kept, store.read_failures(store.failures_path(own.path)))
    for path in donor_files(out):
        if not len(missing):
            break
        says = store.digests_at(path, target.key)
        if says is not None and (_rows_with(target.digests[missing], says, np.ones(len(says), np.bool_)) >= 0).any():
            donor = store.open_partial(path)
            look_in(donor, donor.states == GOOD, {})
    return origin


def _rows_with(wanted: NDArray[np.uint8], theirs: NDArray[np.uint8], usable: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(m,) the first usable row of ``theirs`` (n, 32) that has each of the ``wanted`` digests (m, 32); -1: none has."""
    if not len(wanted):
        return np.zeros(0, np.int64)
    # Of 32 bytes each, so that it does no harm that numpy takes zeros at the end for no bytes.
    names, place = np.unique(np.ascontiguousarray(wanted).view("S32").ravel(), return_inverse=True)
    has = np.ascontiguousarray(theirs).view("S32").ravel()
    at = np.minimum(np.searchsorted(names, has), len(names) - 1)
    rows = np.flatnonzero(usable & (names[at] == has))[::-1]
    first = np.full(len(names), -1, np.int64)
    first[at[rows]] = rows  # of several rows of one digest the last that is put there stays: the first of them
    return first[place.ravel()]


def lacking_rows(there: store.Cache, digests: NDArray[np.uint8], now: Readable) -> int:
    """How many of the images of these digests (N, 32) have no row in a finished file, or have one to be tried again."""
    found = _rows_with(digests, there.digests, ~failed_for_a_limit(there, now))
    return int(((found < 0) | ~digests.any(axis=1)).sum())


def failed_for_a_limit(then: store.Cache, now: Readable) -> NDArray[np.bool_]:
    """(N,) the images of an earlier file that failed and may come out well now: larger ones are let in, or a format
    can be read that could not be.
    """
    before = readable_of(then)
    again = np.zeros(len(then), np.bool_)
    if now["max_pixels"] > before["max_pixels"]:
        again |= then.states == ITEM_STATES["too_large"]
    if set(now["formats"]) - set(before["formats"]):
        again |= then.states == ITEM_STATES["unreadable"]
    return again


def donor_files(out: Path) -> list[Path]:
    """Files beside ``out`` that may hold rows of it: left-aside unfinished ones, and finished ones of any key."""
    return [*store.stale_partials(out), *(p for p in sorted(out.parent.glob("*.h5")) if p != out)]


def key_at(path: Path) -> str | None:
    """Key of the finished or unfinished cache at ``path``; None where there is none that can be read."""
    there = path if path.exists() else store.partial_path(path)
    try:
        return store.open_partial(there).key
    except CacheError:
        return None
