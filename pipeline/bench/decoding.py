"""Entry `decode`: the loader's threads against processes that do the same, and shrinking against decoding exactly."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from pipeline.base.machine import cores
from pipeline.bench.images import make_photographs
from pipeline.bench.measure import Bench, Figure, Goal, rate, ratio
from pipeline.images import Files, Geometry, Loader
from pipeline.images.loader import load_one

GEOMETRY = Geometry(resize=232, crop=224)
PHONE = (4000, 3000)  # pixels of a phone's photograph: 12 megapixels
PHONE_GOAL, SMALL_GOAL = Goal(floor=4.0), Goal(floor=0.95, aim=1.0)
AHEAD = 32
CHUNK = 16  # images that a process is handed at once: one at a time, the hand-over would be measured


def bench_decode(
    bench: Bench,
    *,
    photographs: int = 512,
    size: tuple[int, int] = (512, 400),
    large: int = 16,
    large_size: tuple[int, int] = PHONE,
) -> list[Figure]:
    """Photographs read, hashed, decoded and resized by threads ÷ by as many processes; scaled ÷ exact; images/s.

    Processes are started before the clock, and send their pixels back through a pipe, as a DataLoader's workers would
    without shared memory. Scaled and exact are measured on ``large`` photographs of a phone's size, and on the others,
    which are too small for the difference to be more than a look at their size.
    """
    source = bench.folder / "photographs"
    make_photographs(source, photographs, size=size)
    jobs = list(enumerate(os.fsencode(path) for path in sorted(Path(source).rglob("*.jpg"))))
    images, workers = Files(""), bench.threads or cores()

    with (
        Loader(images, GEOMETRY, workers=workers, ahead=AHEAD) as loader,
        ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool,
    ):

        def threads() -> None:
            for _ in loader.load(jobs):
                pass

        def processes() -> None:
            indices, paths = zip(*jobs, strict=True)
            same = [images] * len(jobs), [GEOMETRY] * len(jobs)
            for _ in pool.map(load_one, indices, paths, *same, chunksize=CHUNK):
                pass

        ways = {"threads": rate(len(jobs), threads), "processes": rate(len(jobs), processes)}
        for way in ways.values():
            way()
        in_threads, in_processes = bench.alternate("decode", ways).items()
    note = f"decode: {photographs:,} photographs of {size[0]} x {size[1]} px, {workers} threads or processes"
    figures = [ratio("decode", "threads ÷ processes", (in_threads, in_processes), "images/s", note=note)]
    phone = bench.folder / "phone"
    make_photographs(phone, large, size=large_size)
    for what, there, count, pixels, goal in (
        ("12 MP", phone, large, large_size, PHONE_GOAL),
        ("0.2 MP", source, photographs, size, SMALL_GOAL),
    ):
        policies = {
            name: loading(there, workers, replace(GEOMETRY, scaled=name == "scaled")) for name in ("scaled", "exact")
        }
        for policy in policies.values():
            policy()
        scaled, exact = bench.alternate(f"decode {what}", policies).items()
        note = f"decode: {count:,} photographs of {pixels[0]} x {pixels[1]} px, {workers} threads"
        figures.append(ratio("decode", f"scaled ÷ exact, {what}", (scaled, exact), "images/s", goal=goal, note=note))
    return figures


def loading(source: Path, workers: int, geometry: Geometry) -> Callable[[], float]:
    """A way that loads the photographs of a folder: images/s."""
    jobs = list(enumerate(os.fsencode(path) for path in sorted(source.rglob("*.jpg"))))

    def way() -> None:
        with Loader(Files(""), geometry, workers=workers, ahead=AHEAD) as loader:
            for _ in loader.load(jobs):
                pass

    return rate(len(jobs), way)
