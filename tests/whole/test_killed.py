"""SIGKILL at random moments, then the same call again: one block lost at most, and the same bits; in each precision."""

from __future__ import annotations

import functools
import multiprocessing
import random
import shutil
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.base.errors import CacheError
from pipeline.store import Writer, open_cache, partial_path
from pipeline.trunk.frozen import FrozenTrunk

BLOCK_ROWS, BATCH, ROWS = 8, 4, 60
WAYS = {
    "float32": {"engine": "torch"},
    "exact": {"engine": "torch", "decode": "exact"},
    "bfloat16": {"precision": "bfloat16", "force_precision": True},
    "int8": {"precision": "int8"},
}


def job(source: str, root: str, log: str, way: str, queue: Any) -> None:
    """One extraction in a process of its own; every batch that goes through the trunk leaves a byte in ``log``."""
    import os

    from pipeline import extract

    os.environ["SOURCE_DATE_EPOCH"] = "0"
    finish = FrozenTrunk.finish
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def logged(self: FrozenTrunk, slot: Any, at: list[int]) -> Any:
        out = finish(self, slot, at)
        os.write(descriptor, bytes([len(at)]))
        return out

    FrozenTrunk.finish = logged  # type: ignore[method-assign]
    made = extract(
        source,
        workspace=root,
        out=f"{root}/it.h5",
        trunk="resnet18",
        weights="random:0",
        image_size=32,
        **WAYS[way],  # type: ignore[arg-type]
        batch_size=BATCH,
        block_rows=BLOCK_ROWS,
        workers=1,
    )
    queue.put(made.new)


def images_in(log: Path) -> int:
    """Images through the trunk by the log."""
    return sum(log.read_bytes()) if log.exists() else 0


class Whole(NamedTuple):
    """What comes of a way to extract that nobody stops."""

    way: str
    bytes: bytes
    folder: Path


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """Children that start with torch already imported (tests/conftest.py)."""
    return multiprocessing.get_context("forkserver")


def started(server: ForkServerContext, photos: Path, folder: Path, log: str, way: str, queue: Any) -> Any:
    child = server.Process(target=job, args=(str(photos), str(folder), str(folder / log), way, queue))
    child.start()
    return child


def kill_and_resume(
    server: ForkServerContext, photos: Path, folder: Path, whole: Whole, seconds: float, images: int
) -> str:
    """Start, kill after some seconds or images, look, resume; returns when: before, within or after the rows."""
    queue = server.Queue()
    child = started(server, photos, folder, "log", whole.way, queue)
    began = time.monotonic()
    while child.is_alive() and time.monotonic() - began < seconds and images_in(folder / "log") < images:
        child.join(0.002)
    child.kill()
    child.join()
    out = folder / "it.h5"
    done, when = 0, "before"
    if out.exists():
        open_cache(out, verify=True)  # the final path is absent or whole
        when, done = "after", ROWS
    elif partial_path(out).exists():
        with pytest.raises(CacheError):
            open_cache(out)
        with Writer(out) as writer:
            spans = [writer.span(b) for b in range(len(writer.done)) if writer.done[b]]
        done = sum(stop - start for start, stop in spans)
        when = "within" if images_in(folder / "log") else "before"
    assert images_in(folder / "log") - done <= 2 * BLOCK_ROWS  # one in work, one being written
    again = started(server, photos, folder, "log2", whole.way, queue)
    new = queue.get(timeout=120)
    if new == ROWS and done == ROWS:  # the first child had reported before it was killed
        new = queue.get(timeout=120)
    again.join()
    assert new == ROWS - done
    assert out.read_bytes() == whole.bytes
    return when


@pytest.fixture(scope="module")
def made_once(
    server: ForkServerContext, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Whole]:
    """The uninterrupted file of a way, and what may be there before: remembered weights, prepared networks."""

    @functools.cache
    def make(way: str) -> Whole:
        folder = tmp_path_factory.mktemp("whole")
        queue = server.Queue()
        child = started(server, photos, folder, "log", way, queue)
        assert queue.get(timeout=120) == ROWS
        child.join()
        return Whole(way, (folder / "it.h5").read_bytes(), folder)

    return make


def moment(chance: random.Random) -> tuple[float, int]:
    """When to kill: half of the times by the clock, half when so many images have been through the trunk."""
    return (chance.uniform(0.3, 2.0), ROWS + 1) if chance.random() < 0.5 else (60.0, chance.randrange(1, ROWS))


def run(kills: int, server: ForkServerContext, photos: Path, whole: Whole, tmp_path: Path) -> dict[str, int]:
    moments, seen = random.Random(0), {"before": 0, "within": 0, "after": 0}
    for kill in range(kills):
        folder = tmp_path.with_name(f"{tmp_path.name}-{kill}")  # as deep as the other: a cache keeps ways from itself
        folder.mkdir()
        for name in ("weights", "engines"):
            if (there := whole.folder / name).exists():
                shutil.copytree(there, folder / name)
        seen[kill_and_resume(server, photos, folder, whole, *moment(moments))] += 1
        shutil.rmtree(folder)
    return seen


def test_killed_jobs_resume_to_the_same_bits(
    server: ForkServerContext, photos: Path, made_once: Callable[..., Whole], tmp_path: Path
) -> None:
    run(3, server, photos, made_once("float32"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "kills"), [("float32", 50), ("exact", 4), ("bfloat16", 4), ("int8", 10)])
def test_many_killed_jobs_resume_to_the_same_bits(
    server: ForkServerContext, photos: Path, made_once: Callable[..., Whole], tmp_path: Path, way: str, kills: int
) -> None:
    if way == "int8":
        pytest.importorskip("onnxruntime")
    seen = run(kills, server, photos, made_once(way), tmp_path)
    print(way, seen)
    assert seen["within"] >= kills // 5, seen
