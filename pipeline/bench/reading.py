"""Entry `read`: a cache as a reader sees it, against the plainest way to get the same bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline import store
from pipeline.base.items import GOOD
from pipeline.bench.measure import Bench, Figure, Goal, rate, ratio

GOALS = {
    "sequential": Goal(floor=0.9),
    "open": Goal(floor=50.0, sense="most"),
    "shuffled": Goal(floor=0.5),
}


def make_cache(path: Path, *, rows: int, dim: int, block_rows: int, classes: int = 10) -> None:
    """A finished float16 cache of noise: 70 % train, 15 % val, 15 % test."""
    rng = np.random.default_rng(0)
    ids = [f"class{row % classes:02d}/{row:08d}.jpg".encode() for row in range(rows)]
    contents = store.Contents(
        ids=ids,
        digests=rng.integers(0, 256, (rows, 32), dtype=np.uint8),
        sizes=np.full(rows, 45_000, np.int64),
        mtimes_ns=np.full(rows, 1_700_000_000_000_000_000, np.int64),
        labels=np.arange(rows, dtype=np.int64) % classes,
        splits=(1 + np.searchsorted([0.7, 0.85], np.arange(rows) / rows, side="right")).astype(np.uint8),
        classes=tuple(f"class{c:02d}" for c in range(classes)),
        dim=dim,
        dtype="float16",
        block_rows=block_rows,
        provenance={"made": "by the benchmark"},
        about={"source": "noise", "root": "", "notes": [], "weights": "none", "pretrained": False},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    store.create_partial(path, contents)
    block = rng.normal(0, 1, (block_rows, dim)).astype(np.float16)
    with store.Writer(path) as writer:
        for number in range(len(writer.done)):
            start, stop = writer.span(number)
            good = np.full(stop - start, GOOD, np.uint8)
            writer.write_block(number, block[: stop - start], contents.digests[start:stop], good)
        writer.publish()


def bench_read(
    bench: Bench, *, rows: int = 262_144, dim: int = 2048, batch: int = 4096, picked: int = 256
) -> list[Figure]:
    """Sequential batches ÷ ``numpy.fromfile``, both GB/s; opening in ms; a shuffled epoch ÷ a sequential one, rows/s.

    By default 1 GB of float16 rows (262,144 x 2048), in the page cache for all ways alike. Both sequential ways end
    with every row copied into an array of the reader's own. Epochs go over the train split by ``__getitems__`` with
    ``picked`` indices at a time, as a DataLoader calls it.
    """
    path = bench.folder / "read.h5"
    make_cache(path, rows=rows, dim=dim, block_rows=128)
    features = store.open_cache(path).split("train")
    row_bytes = 2 * dim
    gigabytes = len(features) * row_bytes / 1e9
    order = np.random.default_rng(0).permutation(len(features)).tolist()
    in_order = list(range(len(features)))
    plain = bench.folder / "rows.bin"
    features.X.tofile(plain)

    def sequential() -> None:
        for _ in store.open_cache(path).split("train").batches(batch):
            pass

    def from_file() -> None:
        with plain.open("rb") as file:
            while len(np.fromfile(file, np.float16, batch * dim)):
                pass

    def epoch(indices: list[int]) -> Callable[[], object]:
        def work() -> None:
            for start in range(0, len(indices), picked):
                features.__getitems__(indices[start : start + picked])

        return work

    def opening() -> float:
        began = time.perf_counter()
        next(store.open_cache(path).split("train").batches(picked))
        return 1000 * (time.perf_counter() - began)

    ways: dict[str, Callable[[], float]] = {
        "Features.batches": rate(gigabytes, sequential),
        "numpy.fromfile": rate(gigabytes, from_file),
        "shuffled epoch": rate(len(features), epoch(order)),
        "sequential epoch": rate(len(features), epoch(in_order)),
        "open to first batch": opening,
    }
    for way in ways.values():
        way()
    batches, file, shuffled, straight, first = bench.alternate("read", ways).items()
    note = f"read: {rows:,} x {dim} float16 ({rows * row_bytes / 1e9:.2f} GB), train split, in the page cache"
    return [
        ratio("read", "batches ÷ numpy.fromfile", (batches, file), "GB/s", goal=GOALS["sequential"], note=note),
        Figure("read", "open to first batch", first[1], dict([first]), "ms", "ms", GOALS["open"], note),
        ratio("read", "shuffled epoch ÷ sequential", (shuffled, straight), "rows/s", goal=GOALS["shuffled"], note=note),
    ]
