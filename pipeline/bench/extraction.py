"""Entry `extract`: what photographs on disk → published cache costs beyond the network itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.machine import cores, resolve_device
from pipeline.base.watch import Tracker, Watch
from pipeline.bench.child import run_python
from pipeline.bench.images import make_photographs
from pipeline.bench.measure import Bench, Figure, Goal, rate, ratio
from pipeline.bench.trunk import WEIGHTS, random_trunk
from pipeline.stages.extract.doors import extract
from pipeline.trunk.engines.open import open_engine
from pipeline.trunk.frozen import default_batch
from pipeline.trunk.identity import TrunkSpec, available_engines

WHOLE_GOAL = Goal(floor=2.0)
STEADY_GOAL = Goal(floor=0.92, aim=0.96)
SECONDS = 25.0  # that one extraction should take
SIZE = (512, 400)  # of a photograph, in pixels


class _Clock(Watch):
    """Notes when the first images of a job were done, and how long the reading before it took."""

    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None
        self.hashing = 0.0

    @contextmanager
    def track(self, what: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Tracker]:  # noqa: ARG002
        began = time.perf_counter()
        yield _FirstAdvance(self) if what == "extract" else Tracker()
        if what == "hash":
            self.hashing += time.perf_counter() - began


class _FirstAdvance(Tracker):
    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    def advance(self, n: int = 1) -> None:
        if self._clock.first is None:
            self._clock.first = (time.perf_counter(), n)


def bench_extract(
    bench: Bench,
    *,
    trunk: str = "resnet50",
    image_size: int = 224,
    engine: str | None = None,
    photographs: int | None = None,
    batch: int | None = None,
) -> list[Figure]:
    """Extraction ÷ the same engine's pure forward, and ÷ a plain script, all in images/s.

    Photographs are 0.2-megapixel JPEGs of quality 85. Starting up (weights, engine, its check against eager) costs the
    same few seconds for ten images as for a million; against the pure forward the job is timed without it, from the
    first batch's end to the published file, with the hashing that came before. Against the plain script both are timed
    whole. By default there are as many photographs as make one extraction take about 25 s.
    """
    device = resolve_device("auto")
    engine, batch = engine or available_engines(device)[0], batch or default_batch(device, image_size)
    info, model, dim = random_trunk(trunk, image_size, bench.folder)
    spec = TrunkSpec(info, info.layer("last"), engine, "float32", device)
    pure = open_engine(spec, model, dim, batch=batch, work_dir=bench.folder / "engines")
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 3, image_size, image_size), dtype=np.uint8)
    pure(pixels)
    speed = max(rate(batch, lambda: pure(pixels))() for _ in range(3))  # what others take is not ours
    # Whole blocks of 128 rows, so that no batch is padded; two at least, for the start not to outweigh the work.
    count = photographs or 128 * max(2, round(SECONDS * speed / 128))
    source = bench.folder / "photographs"
    make_photographs(source, count, size=SIZE)
    whole: list[float] = []
    options = {"trunk": trunk, "weights": WEIGHTS, "image_size": image_size, "engine": engine, "batch_size": batch}
    job = _extraction(source, bench, {**options, "workspace": bench.folder}, whole)
    job()
    whole.clear()
    forwards = max(1, count // batch)
    ways: dict[str, Callable[[], float]] = {
        "extract, under way": job,
        "pure forward": rate(batch * forwards, lambda: [pure(pixels) for _ in range(forwards)]),
        "plain script": _plain_script(source, bench, trunk, (info.transform.resize, info.transform.crop), batch, count),
    }
    steady, forward, plain = bench.alternate("extract", ways).items()
    entire = ("extract, whole", whole)
    note = f"extract: {count:,} photographs of {SIZE[0]} x {SIZE[1]} px, engine {engine}, {trunk} at {image_size} px"
    return [
        ratio("extract", "under way ÷ pure forward", (steady, forward), "images/s", goal=STEADY_GOAL, note=note),
        ratio("extract", "whole job ÷ pure forward", (entire, forward), "images/s", note=note),
        ratio("extract", "whole job ÷ plain script", (entire, plain), "images/s", goal=WHOLE_GOAL, note=note),
    ]


def _extraction(source: Path, bench: Bench, options: dict[str, Any], whole: list[float]) -> Callable[[], float]:
    """A way that extracts afresh: images/s after the first batch; those of the whole job are put into ``whole``."""
    out = bench.folder / "extracted.h5"

    def way() -> float:
        out.unlink(missing_ok=True)
        clock, began = _Clock(), time.perf_counter()
        result = extract(source, watch=clock, out=out, workers=bench.threads, **options)
        ended = time.perf_counter()
        assert clock.first is not None
        since, before = clock.first
        whole.append(result.rows / (ended - began))
        return (result.rows - before) / (ended - since + clock.hashing)

    return way


def _plain_script(
    source: Path, bench: Bench, trunk: str, sizes: tuple[int, int], batch: int, count: int
) -> Callable[[], float]:
    out = bench.folder / "plain.pt"
    workers = bench.threads or cores()
    words = [str(source), str(out), trunk, *map(str, (*sizes, batch, workers))]

    def way() -> float:
        run_python(["-m", "pipeline.bench.plain_script", *words], threads=bench.threads)
        return count / float(Path(f"{out}.seconds").read_text(encoding="utf-8"))

    return way
