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


@dataclass(frozen=True)
class Origin:
    """Where each row comes from: ``donor`` (N,), an index into ``donors`` or -1 for the trunk, and ``row`` (N,)."""

    donors: Sequence[store.Cache]
    donor: NDArray[np.int64]
    row: NDArray[np.int64]
    reasons: Sequence[dict[bytes, store.Failure]]


def find_origin(out: Path, target: store.Cache) -> Origin:
    """For each row of the unfinished file ``target``: the row of an earlier file to copy, or the trunk.

    The finished file at ``out``, unfinished ones that were left aside, and every finished file of the same key in the
    same folder may give rows; an image is known by its digest.
    """
    own = store.open_cache(out) if out.exists() else None
    donors = ([own] if own is not None else []) + [store.open_partial(p) for p in donor_files(out, target.key)]
    places: dict[bytes, tuple[int, int]] = {}
    for number, donor in enumerate(donors):
        digests, sound = donor.digests, np.repeat(donor.done, donor.block_rows)[: len(donor)]
        good = donor.states == GOOD
        # A failure is kept only from our own file; another source's failure is tried again here.
        kept = good if donor is not own else ~failed_for_a_limit(donor, readable_of(target))
        usable = sound & digests.any(axis=1) & kept
        for row in np.flatnonzero(usable).tolist():
            places.setdefault(digests[row].tobytes(), (number, row))
    none = (-1, -1)
    found = [places.get(d.tobytes(), none) if d.any() else none for d in target.digests]
    pairs = np.array(found, np.int64).reshape(-1, 2)
    return Origin(donors, pairs[:, 0], pairs[:, 1], [store.read_failures(store.failures_path(d.path)) for d in donors])


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


def donor_files(out: Path, key: str) -> list[Path]:
    """Files beside ``out`` that may hold rows of it: left-aside unfinished ones, and finished ones of the same key."""
    stale = [p for p in store.stale_partials(out) if key_at(p) == key]
    return [*stale, *(p for p in sorted(out.parent.glob("*.h5")) if p != out and key_at(p) == key)]


def key_at(path: Path) -> str | None:
    """Key of the finished or unfinished cache at ``path``; None where there is none that can be read."""
    there = path if path.exists() else store.partial_path(path)
    try:
        return store.open_partial(there).key
    except CacheError:
        return None
