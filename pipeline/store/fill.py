"""Filling an unfinished cache block by block: which blocks are a process's own, and stopping between two of them.

Knows blocks, processes and requests to stop; nothing of what the rows are. A kill can cost two blocks: the one in work,
and the one before it, where that is still being written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Generic, TypeVar

import numpy as np

from pipeline.base.errors import Interrupted
from pipeline.base.interrupt import stop_requests
from pipeline.base.ranks import Ranks
from pipeline.store.writer import Writer

Block = TypeVar("Block")


class WriteBehind(Generic[Block]):
    """Blocks are written in order by a thread of its own, one at a time, while the next is made; used by ``with``."""

    def __init__(self, write: Callable[[Block], None]) -> None:
        self._write = write
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._writing: Future[None] | None = None

    def add(self, block: Block) -> None:
        """Have a block written; the one before it is on the disk when this returns.

        Raises:
            CacheError, and whatever ``write`` raises: of the block before.
        """
        self._wait()
        self._writing = self._pool.submit(self._write, block)

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> WriteBehind[Block]:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the last block; what it raises is raised, but where another error than a stop is on its way."""
        try:
            self._pool.shutdown(wait=True)
        finally:
            if error is None or isinstance(error, Interrupted):
                self._wait()


def blocks_to_do(writer: Writer, ranks: Ranks) -> list[int]:
    """The blocks that are missing and are this process's to write, in order."""
    return ranks.mine(np.flatnonzero(~writer.done).tolist())


@contextmanager
def one_by_one(writer: Writer, blocks: Sequence[int], *, stopped: str | None = None) -> Iterator[Iterator[int]]:
    """The blocks in order, for a loop that has each written before it takes the next but one.

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
