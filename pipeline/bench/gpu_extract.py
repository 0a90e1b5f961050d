"""Entry `gpu-extract`: photographs on disk → published cache by a GPU, against its slower half alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

from pipeline.base.machine import cores
from pipeline.bench.decoding import PHONE, loading
from pipeline.bench.extraction import Job
from pipeline.bench.images import SIZE, make_photographs
from pipeline.bench.measure import Bench, Figure, Goal, rate, ratio
from pipeline.bench.trunk import RESNET50_ON_A_GPU, Through, in_turns

ENTRY = "gpu-extract"
GOAL = Goal(floor=0.85)
FORWARDS = 16  # batches of the trunk alone that are timed


def bench_gpu_extract(
    bench: Bench,
    through: Through = RESNET50_ON_A_GPU,
    *,
    photographs: int = 16_384,
    large: int = 1024,
    size: tuple[int, int] = SIZE,
    large_size: tuple[int, int] = PHONE,
) -> list[Figure]:
    """Extraction, under way, ÷ the slower of the trunk alone and the decoding alone, images/s, in each precision.

    Of ``photographs`` JPEGs of 0.2 megapixels and ``large`` ones of a phone's size. Under way: from the first batch's
    end to the published file, with the hashing that came before. Whoever keeps both busy reaches nearly 1.
    """
    pixels, threads, figures = through.pixels(), bench.threads or cores(), []
    note = f"{ENTRY}: {photographs:,} and {large:,} photographs, {through.words}, {threads} decoding threads"
    for what, count, pixels_of_one in (("0.2 MP", photographs, size), ("12 MP", large, large_size)):
        apart = dataclasses.replace(bench, folder=bench.folder / what)
        make_photographs(source := apart.folder / "photographs", count, size=pixels_of_one)
        jobs = {name: Job(apart, through, name) for name in through.precisions()}
        ways: dict[str, Callable[[], float]] = {}
        for name, job in jobs.items():
            job.prepare(source)
            alone = in_turns(job.engine(pixels), pixels, FORWARDS)
            ways[f"{name}, under way"] = partial(job.under_way, source)
            ways[f"{name}, trunk alone"] = rate(len(pixels) * FORWARDS, alone)
        ways["decoding alone"] = loading(source, threads, next(iter(jobs.values())).geometry)
        found = bench.alternate(f"{ENTRY} {what}", ways)
        for name in jobs:
            trunk_alone, decoding = found[f"{name}, trunk alone"], found["decoding alone"]
            slower = tuple(map(min, zip(trunk_alone, decoding, strict=True)))
            sides = (f"{name}, under way", found[f"{name}, under way"]), ("trunk or decoding alone", slower)
            figures.append(ratio(ENTRY, f"{name}, {what}", sides, "images/s", goal=GOAL, note=note))
    return figures
