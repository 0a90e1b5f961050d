"""The way to test rows for what is no saved head (baselines, heads of few shots): counted first, then read.

With ``evaluate`` the only place where a cache is asked for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base.workspace import Workspace
from pipeline.runs.pixels import labelled
from pipeline.stages.score import ledger
from pipeline.stages.score.ledger import Scorer
from pipeline.store import Cache
from pipeline.store.rows import Rows, load_rows


@dataclass(frozen=True, eq=False)
class Opened:
    """Test ``rows``, their places ``at`` (n,) int64 in the cache, and how many other runs had been scored on them."""

    rows: Rows
    at: NDArray[np.int64]
    scored_before: int


def has_test(cache: Cache) -> bool:
    """Whether there are labelled good test rows; none is read."""
    return len(labelled(cache, "test")) > 0


def require_test(cache: Cache) -> None:
    """Find out before long work that there are test rows to score on; none is read.

    Raises:
        HeadError: there are none.
    """
    ledger.places_of(cache)


def open_test(cache: Cache, scorer: Scorer, desk: Workspace) -> Opened:
    """The labelled good test rows for ``scorer``, to be scored when all is fixed.

    Raises:
        HeadError: there are none, or the look cannot be put on record.
        CacheError: a block is damaged.
    """
    before = ledger.count(cache, scorer, desk)
    return Opened(load_rows(cache, "test"), ledger.places_of(cache), before)
