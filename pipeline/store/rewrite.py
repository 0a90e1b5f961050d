"""Writing a cache anew with chosen rows and other labels, splits or names: no trunk, no image.

Knows the store's life of a file: what is there stays whole until the new file takes its name in one step. Which rows,
labels and names are right is the caller's business.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import CacheError
from pipeline.base.files import remove, write_bytes
from pipeline.base.items import GOOD, STATE_NAMES
from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace
from pipeline.store.companions import calibration_path
from pipeline.store.failures import (
    Failure,
    append_failures,
    failures_path,
    partial_failure_files,
    partial_failures_path,
    read_failures,
    write_failures,
)
from pipeline.store.fill import one_by_one
from pipeline.store.format import Contents, partial_path
from pipeline.store.lock import holder_path, tidying, writing_beside, writing_lock
from pipeline.store.reader import Cache, open_cache, open_partial
from pipeline.store.writer import Writer, create_partial, retire_partial, stale_partials


@contextmanager
def locked(cache: Cache, out: Path | None) -> Iterator[tuple[Cache, Path]]:
    """Hold the writing lock of the file to be written; yields the cache, opened anew under it, and that file.

    ``out`` None means in place; a link to a cache is followed, so that the link stays a link.

    Raises:
        CacheError: another job is writing there, ``out`` is taken, or an unfinished file of other settings lies there.
    """
    target = Path(os.path.realpath(cache.path)) if out is None else out
    in_place = out is None or (target.exists() and os.path.samefile(target, cache.path))
    with writing_lock(target):
        if not in_place and target.exists():
            raise CacheError(f"{target} exists already: remove it, or give another {option('out')}")
        current = open_cache(target if in_place else cache.path)
        partial = partial_path(target)
        if partial.exists() and open_partial(partial).key != current.key:
            raise CacheError(
                f"{partial} is unfinished and of other settings: finish it, remove it, or give {option('out')}"
            )
        yield current, target


def kept(cache: Cache, rows: NDArray[np.int64], step: str) -> Contents:
    """All that the cache says of ``rows`` (n,) int64 and of itself; ``step`` says in words what is being changed.

    The file's own time and versions go into ``about["history"]``, since the new file has its own.
    """
    ids, (sizes, times) = cache.ids, cache.stats
    before = {"step": step, "created": cache.created, "versions": cache.versions, "rows": len(cache)}
    return Contents(
        ids=[ids[row] for row in rows.tolist()],
        digests=cache.digests[rows],
        sizes=sizes[rows],
        mtimes_ns=times[rows],
        labels=cache.labels[rows],
        splits=cache.splits[rows],
        classes=cache.classes,
        dim=cache.dim,
        dtype=cache.dtype.name,
        block_rows=cache.block_rows,
        provenance=cache.provenance,
        columns={name: [cells[row] for row in rows.tolist()] for name, cells in cache.columns.items()},
        about={**cache.about, "history": [*cache.about.get("history", []), before]},
    )


def rewrite(cache: Cache, rows: NDArray[np.int64], contents: Contents, target: Path, desk: Workspace) -> Cache:
    """Write ``target`` from ``contents``, its row i being row ``rows[i]`` of ``cache``, to the last bit; the new cache.

    To be called within :func:`locked`. Every block that is read is checked first: damage does not travel. A job that is
    stopped or fails leaves nothing behind but what was there.

    Raises:
        CacheError: a block of the cache is damaged, or the disk is full.
        Interrupted: after a signal; the cache is as it was.
    """
    partial = partial_path(target)
    with desk.watch.track("verify", len(cache), unit="rows") as bar:
        cache.verify(rows, progress=bar.advance)
    reasons = dict(_failures(cache, rows, contents))
    _clear_the_way(cache, target)
    try:
        _take_along(calibration_path(cache.path), calibration_path(target))
        create_partial(target, contents)
        with Writer(target) as writer:
            _copy(cache, rows, reasons, contents, writer, desk)
            # Reasons of the old and of the new items until the new file has its name: a kill in between loses none.
            there = read_failures(failures_path(target))
            write_failures(failures_path(target), {**there, **reasons}.values())
            writer.publish()
        write_failures(failures_path(target), reasons.values())
    finally:
        with writing_beside(target):
            remove(partial, *partial_failure_files(target))
    return open_cache(target)


def _take_along(there: Path, here: Path) -> None:
    """Have a file that is a cache's own beside its copy, too."""
    if there != here and there.exists():
        with writing_beside(here):
            write_bytes(here, there.read_bytes())


def _failures(cache: Cache, rows: NDArray[np.int64], contents: Contents) -> Iterator[tuple[bytes, Failure]]:
    """The words of each failed row under its new id."""
    told = read_failures(failures_path(cache.path))
    for place, row in enumerate(rows.tolist()):
        if cache.states[row] != GOOD:
            item, words = contents.ids[place], told.get(cache.ids[row])
            kind, reason = STATE_NAMES[int(cache.states[row])], words.reason if words else "failed in an earlier run"
            yield item, Failure(item, kind, reason, contents.digests[place].tobytes())


def _clear_the_way(cache: Cache, target: Path) -> None:
    """Make room for the unfinished file: an older one is removed if the cache has all its rows, else set aside."""
    partial = partial_path(target)
    if not partial.exists():
        return
    if _has_all_of(cache, partial):
        remove(partial)
    else:
        retire_partial(target)  # the next `pipeline extract` copies its rows


def _has_all_of(cache: Cache, partial: Path) -> bool:
    begun = open_partial(partial)
    done = np.repeat(begun.done, begun.block_rows)[: len(begun)]
    have = {digest.tobytes() for digest in cache.digests}
    return all(digest.tobytes() in have for digest in begun.digests[done])


def tidy(cache: Cache) -> None:
    """Remove what a job that was killed left beside a finished cache; an unfinished file whose rows it lacks stays.

    Nothing is done while another job is writing there.

    Raises:
        CacheError: the folder cannot be written, or an unfinished file is damaged.
    """
    path = cache.path
    unfinished = [p for p in (partial_path(path), *stale_partials(path)) if p.exists()]
    if not unfinished and not partial_failure_files(path) and not holder_path(path).exists():
        return
    with tidying(path) as ours:
        if not ours:
            return
        gone = [p for p in unfinished if p.exists() and _has_all_of(cache, p)]
        if not partial_path(path).exists() or partial_path(path) in gone:
            gone += partial_failure_files(path)
        remove(*gone)


def _copy(
    cache: Cache,
    rows: NDArray[np.int64],
    reasons: dict[bytes, Failure],
    contents: Contents,
    writer: Writer,
    desk: Workspace,
) -> None:
    told = partial_failures_path(writer.cache)
    blocks, stopped = range(len(writer.done)), f"stopped; {cache.path.name} is as it was: the same command begins anew"
    with desk.watch.track("copy", len(rows), unit="rows") as bar, one_by_one(writer, blocks, stopped=stopped) as each:
        for block in each:
            start, end = writer.span(block)
            append_failures(told, (reasons[i] for i in contents.ids[start:end] if i in reasons))
            picked = rows[start:end]
            writer.write_block(block, cache.features[picked], contents.digests[start:end], cache.states[picked])
            bar.advance(end - start)
