"""`pipeline bench`: every entry measured, shown as a table and kept as JSON with everything it depends on."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.base import settings as st
from pipeline.base.errors import ConfigError
from pipeline.base.files import write_text, writing
from pipeline.base.machine import versions
from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace
from pipeline.bench import machine, words
from pipeline.bench.decoding import bench_decode
from pipeline.bench.extraction import bench_extract
from pipeline.bench.finetuning import bench_finetune, bench_prefix
from pipeline.bench.gpu_extract import bench_gpu_extract
from pipeline.bench.gpu_finetune import bench_gpu_finetune
from pipeline.bench.gpu_heads import bench_gpu_heads
from pipeline.bench.gpu_trunk import bench_gpu_trunk
from pipeline.bench.growth import bench_growth
from pipeline.bench.heads_exact import (
    bench_evals,
    bench_exact_cv,
    bench_exact_memory,
    bench_exact_one,
    bench_exact_path,
)
from pipeline.bench.heads_minibatch import bench_batched, bench_epoch, bench_streamed
from pipeline.bench.measure import Bench, Figure
from pipeline.bench.memory import bench_memory
from pipeline.bench.reading import bench_read
from pipeline.bench.rerun import bench_rerun
from pipeline.bench.settings import GPU_ENTRIES, BenchSettings
from pipeline.bench.trunk import bench_trunk

MEASURES: dict[str, Callable[[Bench], list[Figure]]] = {
    "trunk": bench_trunk,
    "decode": bench_decode,
    "extract": bench_extract,
    "rerun": bench_rerun,
    "read": bench_read,
    "exact-one": bench_exact_one,
    "exact-path": bench_exact_path,
    "exact-cv": bench_exact_cv,
    "evals": bench_evals,
    "batched": bench_batched,
    "epoch": bench_epoch,
    "prefix": bench_prefix,
    "finetune": bench_finetune,
    "memory": lambda bench: [*bench_memory(bench), *bench_exact_memory(bench), *bench_streamed(bench)],
    "growth": bench_growth,
    "gpu-trunk": bench_gpu_trunk,
    "gpu-extract": bench_gpu_extract,
    "gpu-heads": bench_gpu_heads,
    "gpu-finetune": bench_gpu_finetune,
}
NO_GPU = "PyTorch sees no GPU here"
CALM = 0.35  # of the cores busy before the bench begins; above it the figures are of other programs as well


@dataclass(frozen=True)
class BenchReport:
    """The figures, and the file that holds them with hardware, versions, command and what was skipped."""

    path: Path
    record: dict[str, Any]
    figures: tuple[Figure, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the saved record and where it lies."""
        return {**self.record, "path": str(self.path)}


def bench(settings: BenchSettings, desk: Workspace) -> BenchReport:
    """Measure, each entry as a ratio of two ways.

    One entry after the other; a missed floor is shown, and is no error, nor is an entry that needs a GPU where there
    is none: that is skipped, by its name.

    Raises:
        ConfigError: the folder for the record cannot be written.
        PipelineError: a measured process failed.
    """
    out = settings.out or desk.bench
    _make(out)
    load, threads_before = machine.load(), torch.get_num_threads()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    about: dict[str, Any] = {
        "command": _command(settings),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load_before": load,
        "settings": st.record(settings),
        "hardware": machine.hardware(),
        "versions": versions("onnx", "onnxscript"),
    }
    if load > CALM * about["hardware"]["cores"]:
        desk.watch.warn(
            f"other programs keep {load:.1f} cores busy: the figures are theirs as well; wait for a calm machine"
        )
    figures: list[Figure] = []
    skipped = {name: NO_GPU for name in settings.chosen if name in GPU_ENTRIES and not torch.cuda.is_available()}
    try:
        for name in settings.chosen:
            if name in skipped:
                desk.watch.result(f"{name}: skipped, {skipped[name]}")
            else:
                figures += _measure(name, settings, desk)
    finally:
        torch.set_num_threads(threads_before)
    record = {**about, "figures": [f.to_json() for f in figures], "skipped": skipped}
    path = _save(record, out)
    if figures:
        desk.watch.result(words.measured(figures, words.caption(settings.repeats, about)))
    for note in dict.fromkeys(f.note for f in figures if f.note):
        desk.watch.result(note)
    if missed := words.missed(figures):
        desk.watch.warn(missed)
    desk.watch.result(f"kept in {path}")
    return BenchReport(path, record, tuple(figures))


def _measure(name: str, settings: BenchSettings, desk: Workspace) -> list[Figure]:
    """One entry, in an empty folder that is removed afterwards however it ends."""
    parent = desk.bench / "tmp"
    _make(parent)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent)).resolve()
    try:
        return MEASURES[name](Bench(settings.repeats, folder, desk.watch, settings.threads, settings.large))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not any(parent.iterdir()):
            parent.rmdir()


def _make(folder: Path) -> None:
    with writing(folder, ConfigError, f"give another {option('out')} or {option('workspace')}"):
        folder.mkdir(parents=True, exist_ok=True)


def _command(settings: BenchSettings) -> str:
    """The command line that repeats this run."""
    words = ["pipeline", "bench", *settings.chosen, "--repeats", str(settings.repeats)]
    words += ["--threads", str(settings.threads)] if settings.threads else []
    return " ".join([*words, "--large"] if settings.large else words)


def _save(record: dict[str, Any], out: Path) -> Path:
    """Write the record under the time that it began, with a number where that is taken."""
    stem = record["started"].replace(":", "").replace("-", "")
    names = itertools.chain([f"{stem}.json"], (f"{stem}-{number}.json" for number in itertools.count(2)))
    path = next(path for name in names if not (path := out / name).exists())
    with writing(out, ConfigError, f"give another {option('out')}"):
        write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return path
