"""Entries `batched`, `epoch` and the minibatch heads' part of `memory`: one pass, cached features, streamed rows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pipeline.base.machine import resolve_device
from pipeline.bench.child import observed
from pipeline.bench.features import power_law
from pipeline.bench.measure import Bench, Figure, Goal, rate, ratio, seconds
from pipeline.bench.reading import make_cache
from pipeline.bench.trunk import random_trunk
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.fit import fit_minibatch
from pipeline.heads.problem import Problem, Split
from pipeline.store import open_cache
from pipeline.trunk.engines.open import open_engine
from pipeline.trunk.frozen import default_batch
from pipeline.trunk.identity import TrunkSpec, available_engines

BATCHED_GOAL = Goal(floor=5.0, aim=8.0)
STREAMED_GOAL = Goal(floor=2000.0, sense="most")
BATCH = 256
PLAIN_HEADS = 2  # that plain torch trains in each repeat
EPOCHS = 4  # of a head whose epoch is compared with one through the trunk


def bench_batched(
    bench: Bench,
    *,
    rows: int = 10_000,
    dim: int = 2048,
    classes: int = 10,
    side: int = 8,
    epochs: int = 20,
) -> list[Figure]:
    """``side``² linear heads (learning rates × weight decays), in one pass ÷ one after another in plain torch, heads/s.

    Both learn from float32 rows in memory by AdamW in batches of 256 on the same schedule, and neither scores a val
    split. One pass is timed whole, with checking, standardising and scoring on train; plain torch
    (``torch.nn.Linear``, ``torch.nn.functional.cross_entropy``, ``torch.optim.AdamW``) is its bare loop over rows that
    are standardised already, of which ``PLAIN_HEADS`` are run in each repeat.
    """
    X, y = power_law(rows, dim, classes, seed=0)
    configs = [
        MinibatchConfig(lr=lr, weight_decay=decay, epochs=epochs, batch_size=BATCH)
        for lr in np.geomspace(1e-4, 1e-2, side).tolist()
        for decay in np.geomspace(1e-4, 1.0, side).tolist()
    ]
    chosen = [configs[i] for i in np.linspace(0, len(configs) - 1, PLAIN_HEADS).astype(int)]
    plain = _plain_heads(X, y, classes, chosen)
    one_pass, others = f"{len(configs)} heads in one pass", "one after another, plain torch"
    ways: dict[str, Callable[[], float]] = {
        one_pass: rate(len(configs), lambda: fit_minibatch(Problem(X, y, classes), configs)),
        others: rate(len(chosen), plain),
    }
    for way in ways.values():
        way()
    found = bench.alternate("batched", ways)
    note = (
        f"batched: {rows:,} x {dim} power-law features, {classes} classes, AdamW, batch {BATCH}, {epochs} epochs; of "
        f"plain torch {PLAIN_HEADS} heads are timed in each repeat, so that {len(configs)} are taken to be "
        f"{len(configs) // PLAIN_HEADS} times as long"
    )
    sides = (one_pass, found[one_pass]), (others, found[others])
    return [ratio("batched", "one pass ÷ one after another", sides, "heads/s", goal=BATCHED_GOAL, note=note)]


def _plain_heads(
    features: NDArray[np.float16], labels: NDArray[np.int64], classes: int, configs: list[MinibatchConfig]
) -> Callable[[], object]:
    """The loop that anybody writes, without a DataLoader and without anything scored, logged or kept."""
    X, y = torch.from_numpy(features.astype(np.float32)), torch.from_numpy(labels)
    X = (X - X.mean(dim=0)) / X.std(dim=0)

    def work() -> None:
        for config in configs:
            layer = torch.nn.Linear(X.shape[1], classes)
            assert config.lr is not None
            optimiser = torch.optim.AdamW(layer.parameters(), lr=config.lr, weight_decay=config.weight_decay)
            steps = config.epochs * -(-len(X) // config.batch_size)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
            for _ in range(config.epochs):
                for index in torch.split(torch.randperm(len(X)), config.batch_size):
                    optimiser.zero_grad()
                    loss = functional.cross_entropy(layer(X[index]), y[index])
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
                    schedule.step()

    return work


def bench_epoch(
    bench: Bench,
    *,
    rows: int = 10_000,
    dim: int = 2048,
    trunk: str = "resnet50",
    image_size: int = 224,
    batch: int | None = None,
) -> list[Figure]:
    """An epoch on cached features ÷ an epoch through the trunk, images/s: what caching saves in every epoch but one.

    The head's fit is timed whole and divided by its epochs. Of the trunk (the fastest engine that is installed) two
    batches are timed, without reading, decoding, backward pass or head.
    """
    X, y = power_law(rows, dim, 10, seed=0)
    config = MinibatchConfig(epochs=EPOCHS, batch_size=BATCH)
    device = resolve_device("auto")
    batch, name = batch or default_batch(device, image_size), available_engines(device)[0]
    info, model, dim = random_trunk(trunk, image_size, bench.folder)
    spec = TrunkSpec(info, info.layer("last"), name, "float32", device)
    engine = open_engine(spec, model, dim, batch=batch, work_dir=bench.folder)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 3, image_size, image_size), dtype=np.uint8)
    cached, through = "head on cached features", f"{trunk} forward, {name}"
    ways: dict[str, Callable[[], float]] = {
        cached: rate(rows * EPOCHS, lambda: fit_minibatch(Problem(X, y, 10), [config])),
        through: rate(2 * batch, lambda: [engine(pixels) for _ in range(2)]),
    }
    for way in ways.values():
        way()
    found = bench.alternate("epoch", ways)
    note = (
        f"epoch: a linear head on {rows:,} x {dim} float16, AdamW, batch {BATCH}, {EPOCHS} epochs; {trunk} at "
        f"{image_size} px, {2 * batch} images timed, taken to be the speed of {rows:,}"
    )
    sides = (cached, found[cached]), (through, found[through])
    return [ratio("epoch", "cached epoch ÷ epoch through the trunk", sides, "images/s", note=note)]


def bench_streamed(bench: Bench, *, rows: int = 1_000_000, dim: int = 2048, heads: int = 8) -> list[Figure]:
    """Peak MB of a process that trains minibatch heads for an epoch on a cache far larger than its memory budget.

    It runs once: the peak of a process does not change with what others do.
    """
    cache = bench.folder / "streamed.h5"
    make_cache(cache, rows=rows, dim=dim, block_rows=8192)
    words = [str(cache), str(heads)]
    found: dict[str, Any] = {}

    def training() -> None:
        found.update(
            observed(
                bench.folder / "streamed.json",
                "pipeline.bench.heads_minibatch",
                words,
                watched=bench.folder,
                threads=bench.threads,
            )
        )

    took = seconds(training)
    peaks = (float(found["peak_bytes"]) / 1e6,)
    note = (
        f"memory: {heads} linear heads for one epoch on the train split of {rows:,} rows of {dim} float16 "
        f"({cache.stat().st_size / 1e9:.1f} GB), val scored; {took:.0f} s"
    )
    name = f"{rows:,} rows, minibatch heads"
    return [Figure("memory", name, peaks, {"training": peaks}, "MB", "MB", STREAMED_GOAL, note)]


def _train_streamed(path: str, heads: str) -> None:
    cache = open_cache(Path(path))
    train, val = cache.split("train"), cache.split("val")
    configs = [MinibatchConfig(lr=lr, epochs=1) for lr in np.geomspace(1e-4, 1e-2, int(heads)).tolist()]
    fit_minibatch(Problem(train.X, train.y, len(cache.classes), val=Split(val.X, val.y)), configs)


if __name__ == "__main__":
    _train_streamed(*sys.argv[1:])
