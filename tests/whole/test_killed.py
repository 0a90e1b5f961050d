"""SIGKILL at random moments, then the same call again: one block lost at most, and the same bits."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import CacheError
from pipeline.store import Writer, open_cache, partial_path
from pipeline.trunk.engines.torch import TorchEngine

BLOCK_ROWS, BATCH, ROWS = 8, 4, 60


def job(source: str, root: str, log: str, queue: Any) -> None:
    """One extraction in a process of its own; every batch that goes through the trunk leaves a byte in ``log``."""
    import os

    from pipeline import extract

    os.environ["SOURCE_DATE_EPOCH"] = "0"
    forward = TorchEngine.__call__
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def logged(self: TorchEngine, pixels: Any) -> Any:
        out = forward(self, pixels)
        os.write(descriptor, bytes([len(pixels)]))
        return out

    TorchEngine.__call__ = logged  # type: ignore[method-assign]
    made = extract(
        source,
        workspace=root,
        out=f"{root}/it.h5",
        trunk="resnet18",
        weights="random:0",
        image_size=32,
        engine="torch",
        batch_size=BATCH,
        block_rows=BLOCK_ROWS,
        workers=1,
    )
    queue.put(made.new)


def images_in(log: Path) -> int:
    """Images through the trunk by the log; the first batch is run once more, as a check."""
    sizes = list(log.read_bytes()) if log.exists() else []
    return sum(sizes[1:])


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """Children that start with torch already imported (tests/conftest.py)."""
    return multiprocessing.get_context("forkserver")


def kill_and_resume(
    server: ForkServerContext, photos: Path, folder: Path, whole: bytes, seconds: float, images: int
) -> str:
    """Start, kill after some seconds or images, look, resume; returns when: before, within or after the rows."""
    queue = server.Queue()
    child = server.Process(target=job, args=(str(photos), str(folder), str(folder / "log"), queue))
    child.start()
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
    assert images_in(folder / "log") - done <= BLOCK_ROWS
    again = server.Process(target=job, args=(str(photos), str(folder), str(folder / "log2"), queue))
    again.start()
    new = queue.get(timeout=120)
    if new == ROWS and done == ROWS:  # the first child had reported before it was killed
        new = queue.get(timeout=120)
    again.join()
    assert new == ROWS - done
    assert out.read_bytes() == whole
    return when


@pytest.fixture(scope="module")
def whole(server: ForkServerContext, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    """The uninterrupted file, and a folder with nothing but the remembered weights in it."""
    folder = tmp_path_factory.mktemp("whole")
    queue = server.Queue()
    child = server.Process(target=job, args=(str(photos), str(folder), str(folder / "log"), queue))
    child.start()
    assert queue.get(timeout=120) == ROWS
    child.join()
    return (folder / "it.h5").read_bytes(), folder / "weights"


def moment(chance: random.Random) -> tuple[float, int]:
    """When to kill: half of the times by the clock, half when so many images have been through the trunk."""
    return (chance.uniform(0.3, 2.0), ROWS + 1) if chance.random() < 0.5 else (60.0, chance.randrange(1, ROWS))


def run(
    kills: int, server: ForkServerContext, photos: Path, whole: tuple[bytes, Path], tmp_path: Path
) -> dict[str, int]:
    moments, seen = random.Random(0), {"before": 0, "within": 0, "after": 0}
    for kill in range(kills):
        folder = tmp_path.with_name(f"{tmp_path.name}-{kill}")  # as deep as the other: a cache keeps ways from itself
        folder.mkdir()
        shutil.copytree(whole[1], folder / "weights")
        seen[kill_and_resume(server, photos, folder, whole[0], *moment(moments))] += 1
        shutil.rmtree(folder)
    return seen


def test_killed_jobs_resume_to_the_same_bits(
    server: ForkServerContext, photos: Path, whole: tuple[bytes, Path], tmp_path: Path
) -> None:
    run(3, server, photos, whole, tmp_path)


@pytest.mark.slow
def test_fifty_killed_jobs_resume_to_the_same_bits(
    server: ForkServerContext, photos: Path, whole: tuple[bytes, Path], tmp_path: Path
) -> None:
    seen = run(50, server, photos, whole, tmp_path)
    print(seen)
    assert seen["within"] >= 10, seen
