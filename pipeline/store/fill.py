"""Filling an unfinished cache block by block: which blocks are a process's own, and stopping between two of them.

Knows blocks, processes and requests to stop; nothing of what the rows are. What a kill can cost is the block in work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from pipeline.base.interrupt import stop_requests
from pipeline.base.ranks import Ranks
from pipeline.store.writer import Writer


def blocks_to_do(writer: Writer, ranks: Ranks) -> list[int]:
    """The blocks that are missing and are this process's to write, in order."""
    return ranks.mine(np.flatnonzero(~writer.done).tolist())


@contextmanager
def one_by_one(writer: Writer, blocks: Sequence[int], *, stopped: str | None = None) -> Iterator[Iterator[int]]:
    """The blocks in order, for a loop that puts each on the disk before it takes the next.

    A first Ctrl-C or SIGTERM is heard between two blocks, and after the last.

    Raises:
        Interrupted: a stop was asked for; ``stopped`` says what is kept (by default: the file, as far as it got).
    """
    kept = f"stopped; {writer.cache.name} is kept as far as it got: the same command goes on from there"

    def each() -> Iterator[int]:
        for block in blocks:
            yield block
            stop.raise_if_asked(stopped or kept)

    with stop_requests() as stop:
        yield each()
