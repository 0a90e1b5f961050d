"""Entry `gpu-heads`: exact heads on a GPU against those on the processor beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from pipeline.bench.features import power_law
from pipeline.bench.heads_exact import PENALTIES
from pipeline.bench.measure import Bench, Figure, seconds
from pipeline.heads.exact.path import ExactFit, fit_exact
from pipeline.heads.problem import Problem

ENTRY = "gpu-heads"
GPU, CPU = "on the GPU", "on the processor"


class Size(NamedTuple):
    """What is fitted: so many power-law rows and classes, by these penalties."""

    name: str
    rows: int
    dim: int
    classes: int
    Cs: Sequence[float]


SIZES = (
    Size("path of 45 penalties", 10_000, 2048, 10, PENALTIES),
    Size("1,000 classes", 100_000, 2048, 1000, (0.1,)),
)


def bench_gpu_heads(bench: Bench, *, device: str = "cuda", sizes: Sequence[Size] = SIZES) -> list[Figure]:
    """Seconds of exact fits on the GPU ÷ those on the processor, which fits once; rows are float16 in host memory.

    The note says how far the two objectives lie apart.
    """
    return [_compared(bench, size, device) for size in sizes]


def _compared(bench: Bench, size: Size, device: str) -> Figure:
    X, y = power_law(size.rows, size.dim, size.classes, seed=0)
    fits: dict[str, list[ExactFit]] = {}

    def fit(name: str, device: str) -> None:
        fits[name] = fit_exact(Problem(X, y, size.classes, device=device), size.Cs)

    here, there = (partial(seconds, partial(fit, *of)) for of in ((CPU, "cpu"), (GPU, device)))
    (once,) = dataclasses.replace(bench, repeats=1).alternate(f"{ENTRY} {size.name}", {CPU: here})[CPU]
    there()  # loads the libraries
    taken = bench.alternate(f"{ENTRY} {size.name}", {GPU: there})[GPU]
    apart = max(abs(a.objective / b.objective - 1) for a, b in zip(fits[GPU], fits[CPU], strict=True))
    converged = sum(one.converged for one in fits[GPU])
    note = (
        f"{ENTRY}: {size.name}: {size.rows:,} × {size.dim} float16, {size.classes:,} classes; {converged} of "
        f"{len(size.Cs)} converged on the GPU, objectives {apart:.1e} apart; the processor ran once"
    )
    ways = {GPU: taken, CPU: (once,)}
    return Figure(ENTRY, f"{size.name}, GPU ÷ CPU", tuple(t / once for t in taken), ways, "s", note=note)
