"""Entry `decode`: the loader's threads against processes that do the same, both with nothing else to do."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from pipeline.base.machine import cores
from pipeline.bench.images import make_photographs
from pipeline.bench.measure import Bench, Figure, rate, ratio
from pipeline.images import Files, Geometry, Loader
from pipeline.images.loader import load_one

GEOMETRY = Geometry(resize=232, crop=224)
AHEAD = 32
CHUNK = 16  # images that a process is handed at once: one at a time, the hand-over would be measured


def bench_decode(bench: Bench, *, photographs: int = 512, size: tuple[int, int] = (512, 400)) -> list[Figure]:
    """Photographs read, hashed, decoded and resized by threads ÷ by as many processes, images/s.

    Processes are started before the clock, and send their pixels back through a pipe, as a DataLoader's workers would
    without shared memory.
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
    return [ratio("decode", "threads ÷ processes", (in_threads, in_processes), "images/s", note=note)]
