"""Jobs in processes of their own, which leave a byte for each image that is done and can be killed at a given one."""

from __future__ import annotations

import multiprocessing
import os
import queue as queues
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.base.watch import Tracker, Watch

PATIENCE = 300.0  # seconds for one job: a GPU's libraries take some to load


class Counting(Watch):
    """Appends a byte to a file for each image that a job of this name has done."""

    def __init__(self, log: Path, what: str) -> None:
        self._file, self._what = log.open("ab", buffering=0), what

    @contextmanager
    def track(self, what: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Tracker]:
        yield self if what.startswith(self._what) else Tracker()  # type: ignore[misc]

    def advance(self, n: int = 1) -> None:
        self._file.write(bytes(n))

    def note(self, text: str) -> None:
        pass


def _extract(log: Path, source: Path, options: dict[str, Any], told: Any) -> None:
    from pipeline import extract

    os.environ["SOURCE_DATE_EPOCH"] = "0"
    told.put(extract(source, watch=Counting(log, "extract"), **options).new)


def _finetune(log: Path, run: Path, options: dict[str, Any], told: Any) -> None:
    from pipeline import finetune

    told.put(finetune(run, watch=Counting(log, "epoch"), **options).run)


JOBS = {"extract": _extract, "finetune": _finetune}


def child(job: str, log: Path, of: Path, options: dict[str, Any], *, kill_at: int | None = None) -> Any:
    """Run a job to its end and give what it tells; with ``kill_at`` it is killed when so many images are done.

    None where it was killed; a job that is done sooner is not.
    """
    context = multiprocessing.get_context("forkserver")
    told = context.Queue()
    process = context.Process(target=JOBS[job], args=(log, of, options, told))
    process.start()
    ends = time.monotonic() + PATIENCE
    while process.is_alive() and time.monotonic() < ends:
        if kill_at is not None and log.exists() and log.stat().st_size >= kill_at:
            process.kill()
        try:
            found = told.get(timeout=0.002 if kill_at is not None else 0.1)
        except queues.Empty:
            continue
        process.join()
        return found
    process.kill()
    process.join()
    if kill_at is None:
        assert not told.empty(), f"{job} ended with {process.exitcode} and told nothing"
        return told.get(timeout=1)
    return None
