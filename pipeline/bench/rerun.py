"""Entry `rerun`: extracting again what is extracted already, as the command that a user types."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.bench.child import observed, run_python
from pipeline.bench.images import make_small
from pipeline.bench.measure import Bench, Figure, Goal, ratio, seconds
from pipeline.stages.extract.doors import extract

SECONDS_GOAL = Goal(floor=3.0, sense="most")
OPTIONS: dict[str, Any] = {"trunk": "resnet18", "weights": "random:0", "image_size": 32, "engine": "torch"}
# The least that any program must do to know that nothing has changed.
LOOK = "import os, sys\nfor folder, _, names in os.walk(sys.argv[1]):\n for name in names: os.stat(f'{folder}/{name}')"


def bench_rerun(bench: Bench, *, files: int = 50_000, changed: int = 100) -> list[Figure]:
    """Seconds of `pipeline extract` when nothing has changed; forwards done when images were added, renamed and moved.

    The source is ``files`` PNG images of 32 px in 10 classes. Seconds are of the whole process, with Python's
    start. Afterwards ``changed`` images are added, ``changed`` renamed, and a class folder moved.
    """
    source = bench.folder / "small"
    make_small(source, files)
    first = seconds(lambda: extract(source, batch_size=128, workspace=bench.folder, **OPTIONS))
    options = [w for k, v in OPTIONS.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    words = [str(source), *options, "--batch-size", "128", "--workspace", str(bench.folder), "--json"]

    def again() -> dict[str, Any]:
        last = run_python(["-m", "pipeline", "extract", *words], threads=bench.threads).splitlines()[-1]
        result: dict[str, Any] = json.loads(last)
        return result

    def unchanged() -> float:
        began = time.perf_counter()
        result = again()
        taken = time.perf_counter() - began
        assert result["new"] == 0, "nothing has changed, but images went through the trunk"
        return taken

    ways: dict[str, Callable[[], float]] = {
        "extract again": unchanged,
        "bare walk with os.stat": lambda: seconds(lambda: run_python(["-c", LOOK, str(source)])),
    }
    rerun, look = bench.alternate("rerun", ways).items()
    record = observed(bench.folder / "opened.json", "pipeline", ["extract", *words], watched=source)
    opened = float(record["opened"])
    _change(source, files, changed)
    began = time.perf_counter()
    result = again()
    taken = time.perf_counter() - began
    note = (
        f"rerun: {files:,} PNG files, first extracted in {first:.0f} s; the run with {changed:,} images added, "
        f"{changed:,} renamed and a class folder moved took {taken:.1f} s"
    )
    none = Goal(floor=0, sense="exactly")
    forwards = Goal(floor=changed, sense="exactly")
    return [
        Figure("rerun", "nothing changed", rerun[1], dict([rerun]), "s", "s", SECONDS_GOAL, note),
        ratio("rerun", "nothing changed ÷ bare walk", (rerun, look), "s", note=note),
        Figure("rerun", "images opened, no change", (opened,), {}, "", "files", none, note),
        Figure("rerun", "forwards after the changes", (float(result["new"]),), {}, "", "images", forwards, note),
    ]


def _change(source: Path, files: int, changed: int) -> None:
    """Add and rename images, and move a class folder, which gives its images another label as well."""
    folders = sorted(p for p in source.iterdir() if p.is_dir())
    for path in sorted(folders[1].iterdir())[:changed]:
        path.rename(path.with_name(f"renamed-{path.name}"))
    folders[2].rename(source / "moved")
    make_small(source, changed, first=files, classes=1)
