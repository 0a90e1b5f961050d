"""Digests of images: read now, or known from an earlier file whose sizes and times are the same."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
from numpy.typing import NDArray

from pipeline import images, store
from pipeline.base.machine import cores
from pipeline.base.watch import Tracker
from pipeline.base.workspace import Workspace
from pipeline.stages.extract.settings import ExtractSettings


def read_digests(
    s: ExtractSettings, desk: Workspace, listing: images.Listing, ids: Sequence[bytes]
) -> NDArray[np.uint8]:
    """(n, 32) digests of images, read now."""
    with desk.watch.track("hash", len(ids)) if ids else nullcontext(Tracker()) as tracker:
        return images.digest_many(listing.images, ids, workers=s.workers or cores(), progress=tracker.advance)


def known_digests(listing: images.Listing, old: store.Cache | None) -> NDArray[np.uint8]:
    """(N, 32) digests of the items whose path, size and time are those of ``old``; zeros for the others."""
    digests = np.zeros((len(listing.ids), 32), np.uint8)
    if old is None:
        return digests
    at = {item: row for row, item in enumerate(old.ids)}
    rows = np.array([at.get(item, -1) for item in listing.ids], np.int64)
    same = rows >= 0
    same[same] = same_stats(old, listing.sizes[same], listing.mtimes_ns[same], rows[same])
    digests[same] = old.digests[rows[same]]
    return digests


def same_stats(
    cache: store.Cache, sizes: NDArray[np.int64], times: NDArray[np.int64], rows: NDArray[np.int64] | None = None
) -> NDArray[np.bool_]:
    """(n,) which of the cache's ``rows`` (all) have these sizes and times; a time of -1 is unknown, like no other."""
    theirs, when = cache.stats if rows is None else (part[rows] for part in cache.stats)
    same: NDArray[np.bool_] = (theirs == sizes) & (when == times) & (times >= 0)
    return same
