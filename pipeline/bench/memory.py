"""Entry `memory`: the peak of resident memory, each time of a process that does this one thing."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.bench.child import observed
from pipeline.bench.images import make_photographs
from pipeline.bench.measure import Bench, Figure, Goal, ratio
from pipeline.bench.reading import make_cache
from pipeline.store import open_cache

GROWTH_GOAL = Goal(floor=1.05, sense="most")
READING_GOAL = Goal(floor=1000.0, sense="most")
OPTIONS = ("--trunk", "resnet18", "--weights", "random:0", "--engine", "torch")


def bench_memory(
    bench: Bench, *, images: int = 1000, image_size: int = 64, rows: int = 1_000_000, dim: int = 2048
) -> list[Figure]:
    """Peak of extracting 10·N images ÷ that of N; peak MB of opening a cache and iterating its train split.

    A small network at a small size, so that growth with N is not hidden behind the network's own memory. The cache has
    1,000,000 rows of 2048 float16 by default: 4 GB, of which the train split's 2.9 GB are read.
    """
    few, many = bench.folder / "few", bench.folder / "many"
    make_photographs(few, images, size=(160, 120))
    make_photographs(many, 10 * images, size=(160, 120))
    ways = {
        f"{10 * images:,} images": lambda: _extracting(bench, many, image_size),
        f"{images:,} images": lambda: _extracting(bench, few, image_size),
    }
    large, small = bench.alternate("memory", ways).items()
    cache = bench.folder / "rows.h5"
    make_cache(cache, rows=rows, dim=dim, block_rows=8192)
    reading = bench.alternate("memory", {"reading": lambda: _reading(bench, cache)})
    note = (
        f"memory: resnet18 at {image_size} px for N = {images:,} and 10·N; {rows:,} rows of {dim} float16 "
        f"({cache.stat().st_size / 1e9:.1f} GB) opened, the train split read in batches of 4096"
    )
    peaks = reading["reading"]
    return [
        ratio("memory", "extraction, 10·N ÷ N images", (large, small), "MB", goal=GROWTH_GOAL, note=note),
        Figure("memory", f"{rows:,} rows, one split", peaks, reading, "MB", "MB", READING_GOAL, note),
    ]


def _extracting(bench: Bench, source: Path, image_size: int) -> float:
    # In a folder of its own: beside the other's cache, its rows would be copied instead of computed.
    out = bench.folder / f"of-{source.name}" / "extracted.h5"
    out.parent.mkdir(exist_ok=True)
    out.unlink(missing_ok=True)
    words = ["extract", str(source), "--out", str(out), "--image-size", str(image_size), *OPTIONS]
    words += ["--workspace", str(bench.folder), "--quiet"]
    return _peak(bench, "pipeline", words)


def _reading(bench: Bench, cache: Path) -> float:
    return _peak(bench, "pipeline.bench.memory", [str(cache)])


def _peak(bench: Bench, module: str, words: list[str]) -> float:
    """Peak of the resident memory of a process, in MB."""
    found = observed(bench.folder / "peak.json", module, words, watched=bench.folder, threads=bench.threads)
    return float(found["peak_bytes"]) / 1e6


def _read_train_split(path: str) -> None:
    total = 0.0
    for X, y in open_cache(path).split("train").batches(4096):
        total += float(X[:, ::64].sum(dtype="f8")) + float(y.sum())  # something from every page
    assert total == total


if __name__ == "__main__":
    _read_train_split(sys.argv[1])
