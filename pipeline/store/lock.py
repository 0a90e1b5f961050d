"""One writing job at a time on a cache, and a name for who holds it. Readers never ask.

The lock is the operating system's, so a dead holder's lock is gone with its process; who holds it stands in a JSON
file beside, which is only ever read to word a message.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypedDict

from pipeline.base.errors import CacheError
from pipeline.base.files import Busy, locked, make_folder, remove, write_text, writing
from pipeline.base.records import parse, read_file
from pipeline.base.schema import Count, Malformed
from pipeline.base.spelling import option


class Holder(TypedDict):
    """Who holds a lock: the host's name, the process's number, and when it began (seconds since 1970)."""

    host: str
    pid: Count
    started: float


def holder_path(cache: Path) -> Path:
    """Where it stands who is writing a cache, or died at it."""
    return cache.with_name(f".{cache.name}.holder.json")


def _describe(holder: Path) -> str:
    try:
        who = parse(read_file(holder), Holder)
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(who["started"]))
    except (OSError, Malformed, ValueError, OverflowError):  # the clock's own words for a time that is none
        return "another process"
    return f"process {who['pid']} on {who['host']}, since {started}"


def writing_beside(cache: Path) -> AbstractContextManager[None]:
    """Within it, the system's refusal to write a cache, or a file beside it, is a CacheError of one line."""
    return writing(cache.parent, CacheError, f"choose another place with {option('out')}; what was done so far is kept")


@contextmanager
def writing_lock(cache: Path) -> Iterator[str | None]:
    """Hold the writing lock of the cache at ``cache``; yields who died holding it before, if anybody did.

    Raises:
        CacheError: another job holds it (at once, naming host and process), or the folder cannot be written.
    """
    holder = holder_path(cache)
    with contextlib.ExitStack() as held:
        with writing_beside(cache):
            make_folder(cache.parent)
            try:
                held.enter_context(_lock(cache))
            except Busy:
                raise CacheError(
                    f"{cache} is being written by {_describe(holder)}: wait for it, stop it, or give another "
                    f"{option('out')}"
                ) from None
            dead = _describe(holder) if holder.exists() else None
            who: Holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
            write_text(holder, json.dumps(who))
            held.callback(_forget, holder)
        yield dead


def _forget(holder: Path) -> None:
    with writing_beside(holder):
        remove(holder)


def _lock(cache: Path) -> AbstractContextManager[None]:
    return locked(cache.with_name(f".{cache.name}.lock"))


@contextmanager
def tidying(cache: Path) -> Iterator[bool]:
    """Hold the writing lock if it is free; whether it is. What a dead job says of itself is removed."""
    with writing_beside(cache), contextlib.ExitStack() as held:
        try:
            held.enter_context(_lock(cache))
        except Busy:
            yield False
            return
        remove(holder_path(cache))
        yield True
