"""Entry `extract`: what photographs on disk → published cache costs beyond the network itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.machine import cores, resolve_device
from pipeline.base.precision import PRECISIONS, lacks
from pipeline.base.watch import Tracker, Watch
from pipeline.base.workspace import Workspace
from pipeline.bench.child import run_python
from pipeline.bench.decoding import PHONE, loading
from pipeline.bench.images import SIZE, make_photographs
from pipeline.bench.measure import Bench, Figure, Goal, rate, ratio
from pipeline.bench.trunk import WEIGHTS, Through, random_trunk, repeat
from pipeline.images import Geometry
from pipeline.runs.recipe import Recipe
from pipeline.stages.extract.doors import extract
from pipeline.store import open_cache
from pipeline.trunk.engines.base import Engine
from pipeline.trunk.frozen import FrozenTrunk, default_batch
from pipeline.trunk.identity import available_engines

WHOLE_GOALS = {"float32": Goal(floor=2.0), "bfloat16": Goal(floor=2.5), "int8": Goal(floor=3.0)}
PHONE_GOAL, COLD_GOAL = Goal(floor=5.0), Goal(floor=4.0)
STEADY_GOAL = Goal(floor=0.92, aim=0.96)
SHARED_GOAL = Goal(floor=0.9)
MANY = 10  # times as many photographs, with --large


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
    photographs: int = 640,
    large: int = 160,
    batch: int | None = None,
) -> list[Figure]:
    """Extraction ÷ the same engine's pure forward, and ÷ a plain script, all in images/s, in every precision there is.

    Photographs are 0.2-megapixel JPEGs of quality 85, and ``large`` ones of a phone's size. Starting up (weights,
    engine, its checks) costs the same few seconds for ten images as for a million; against the pure forward, and
    against the forward and the decoding one after the other on the same cores, the job is timed without it, from the
    first batch's end to the published file, with the hashing that came before. Against the plain script both are timed
    whole; in int8 the bounds are those of a cache that is there, but with --large, where MANY times as many
    photographs are also done from nothing.
    """
    device = resolve_device("auto")
    through = Through(trunk, image_size, batch := batch or default_batch(device, image_size), device)
    jobs = {
        precision: Job(bench, through, precision)
        for precision in PRECISIONS
        if lacks(precision, device) is None and available_engines(device, precision)
    }
    source, phone = bench.folder / "photographs", bench.folder / "phone"
    # Whole blocks of 128 rows, so that no batch is padded.
    make_photographs(source, photographs, size=SIZE)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 3, image_size, image_size), dtype=np.uint8)
    forwards = max(1, photographs // batch // 2)
    plain = _PlainScript(bench, through)
    ways: dict[str, Callable[[], float]] = {}
    for precision, job in jobs.items():
        job.prepare(source)
        engine = job.engine(pixels)
        ways[f"{precision}, under way"] = partial(job.under_way, source)
        ways[f"{precision}, pure forward"] = rate(batch * forwards, repeat(engine, pixels, forwards))
    ways["decoding"] = loading(source, bench.threads or cores(), jobs["float32"].geometry)
    ways["plain script"] = partial(plain.rate, source, photographs)
    found = bench.alternate("extract", ways)
    note = (
        f"extract: {photographs:,} photographs of {SIZE[0]} x {SIZE[1]} px, {trunk} at {image_size} px; "
        "the plain script in float32"
    )
    figures = []
    script = "plain script", found["plain script"]
    for precision, job in jobs.items():
        steady, forward = (
            (f"{precision}, {what}", found[f"{precision}, {what}"]) for what in ("under way", "pure forward")
        )
        if precision == "float32":
            name = "under way ÷ pure forward"
            figures.append(ratio("extract", name, (steady, forward), "images/s", goal=STEADY_GOAL, note=note))
        apart = tuple(1 / (1 / f + 1 / d) for f, d in zip(forward[1], found["decoding"], strict=True))
        one_by_one = f"{precision}, forward and decoding", apart
        name = f"{precision}, under way ÷ forward and decoding"
        figures.append(ratio("extract", name, (steady, one_by_one), "images/s", goal=SHARED_GOAL, note=note))
        whole, name = (f"{precision}, whole", job.taken(source)), f"{precision}, whole job ÷ plain script"
        figures.append(ratio("extract", name, (whole, script), "images/s", goal=WHOLE_GOALS.get(precision), note=note))
    fastest = jobs[next(reversed(jobs))]
    make_photographs(phone, large, size=PHONE)
    figures.append(_against_the_script(fastest, plain, phone, "12 MP", PHONE_GOAL))
    if bench.large:
        many = bench.folder / "many"
        make_photographs(many, MANY * photographs, size=SIZE)
        fastest.forget()
        figures.append(_against_the_script(fastest, plain, many, "cold", COLD_GOAL))
    return figures


def _against_the_script(job: Job, plain: _PlainScript, source: Path, what: str, goal: Goal) -> Figure:
    count = sum(1 for _ in source.rglob("*.jpg"))
    ways: dict[str, Callable[[], float]] = {
        "extract": partial(job.under_way, source),
        "plain script": partial(plain.rate, source, count),
    }
    found = job.bench.alternate(f"extract {what}", ways)
    name = f"{job.precision}, {what}, whole job ÷ plain script"
    sides = (f"{job.precision}, whole", job.taken(source)), ("plain script", found["plain script"])
    return ratio("extract", name, sides, "images/s", goal=goal, note=f"extract {what}: {count:,} photographs")


class Job:
    """Extractions in one precision, by the fastest engine, each afresh."""

    def __init__(self, bench: Bench, through: Through, precision: str) -> None:
        self.bench, self.precision, self._through = bench, precision, through
        self._options: dict[str, Any] = {
            "trunk": through.trunk,
            "weights": WEIGHTS,
            "image_size": through.image_size,
            "device": through.device,
            "precision": precision,
            "engine": available_engines(through.device, precision)[0],
            "batch_size": through.at_once,
            "workspace": bench.folder,
            "workers": bench.threads,
        }
        self._kept = bench.folder / "kept" / f"{precision}.h5"  # apart: a cache's rows are copied to one beside it
        self._taken: dict[Path, list[float]] = {}

    def prepare(self, source: Path) -> None:
        """One extraction that is not measured: it exports the network, and finds the bounds of int8."""
        extract(source, out=self._kept, **self._options)
        if self.precision == "int8":
            self._options["calibration"] = str(self._kept)

    def forget(self) -> None:
        """Find bounds at each extraction from now on."""
        self._options.pop("calibration", None)
        self._options["recalibrate"] = self.precision == "int8"

    def _recipe(self) -> Recipe:
        return Recipe.of_cache(open_cache(self._kept), Workspace(self.bench.folder))

    @property
    def geometry(self) -> Geometry:
        """How images become what the trunk sees."""
        return self._recipe().geometry()

    def engine(self, pixels: NDArray[np.uint8]) -> Engine:
        """The engine of its trunk for batches of so many pixels, (batch, 3, S, S) uint8, warm."""
        engine = FrozenTrunk(
            self._recipe().trunk, batch=self._through.batch, work_dir=self.bench.folder / "engines"
        ).engine
        engine(pixels)
        return engine

    def under_way(self, source: Path) -> float:
        """Extract afresh: images/s after the first batch; those of the whole job are kept."""
        out = self.bench.folder / "extracted.h5"
        out.unlink(missing_ok=True)
        clock, began = _Clock(), time.perf_counter()
        result = extract(source, watch=clock, out=out, **self._options)
        ended = time.perf_counter()
        assert clock.first is not None
        since, before = clock.first
        self._taken.setdefault(source, []).append(result.rows / (ended - began))
        return (result.rows - before) / (ended - since + clock.hashing)

    def taken(self, source: Path) -> tuple[float, ...]:
        """Images/s of the whole jobs."""
        return tuple(self._taken[source])


@dataclass(frozen=True)
class _PlainScript:
    """The script that users write, in a process of its own."""

    bench: Bench
    through: Through

    def rate(self, source: Path, count: int) -> float:
        """Images/s of one run, without that of importing the libraries."""
        out, threads = self.bench.folder / "plain.pt", self.bench.threads
        trunk, image_size, *_ = self.through
        transform = random_trunk(trunk, image_size, self.bench.folder)[0].transform
        numbers = transform.resize, transform.crop, self.through.at_once, threads or cores()
        words = [str(source), str(out), trunk, *map(str, numbers)]
        run_python(["-m", "pipeline.bench.plain_script", *words], threads=threads)
        return count / float(Path(f"{out}.seconds").read_text(encoding="utf-8"))
