"""Other Python processes: for what must be measured from its start, or alone.

Run as ``python -m pipeline.bench.child RECORD FOLDER MODULE [ARGUMENT ...]`` it is such a process itself: it runs the
module as ``python -m`` would and writes to RECORD what can only be known from within, as JSON: the peak of its resident
memory in bytes, and how many files under FOLDER it opened.
"""

from __future__ import annotations

import json
import os
import re
import resource
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.base.errors import PipelineError


def run_python(arguments: Sequence[str], *, threads: int | None = None) -> str:
    """Run ``python ARGUMENTS`` to its end; returns its standard output.

    Raises:
        PipelineError: it ended with an error; the message is its last line.
    """
    here = str(Path(__file__).parents[2])
    paths = [here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if threads is not None:
        env["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise PipelineError(f"a measured process failed: python {' '.join(arguments)[:200]}: {lines[-1]}")
    return done.stdout


def observed(
    record: Path, module: str, arguments: Sequence[str], *, watched: Path, threads: int | None = None
) -> dict[str, Any]:
    """Run a module in a process of its own: ``{"peak_bytes": ..., "opened": files opened under watched}``."""
    run_python(["-m", "pipeline.bench.child", str(record), str(watched), module, *arguments], threads=threads)
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return found


def peak_bytes() -> int:
    """The largest resident memory that this process has had."""
    # getrusage's figure survives exec, so that in a child it can be the size of the parent that started it; Linux's
    # VmHWM is of this program alone.
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def _main(record: str, watched: str, module: str, *arguments: str) -> None:
    opened, prefix = 0, os.path.realpath(watched) + os.sep

    def hear(event: str, details: tuple[Any, ...]) -> None:
        nonlocal opened
        if event == "open" and isinstance(details[0], (str, bytes)):
            path = os.fsdecode(details[0])
            opened += path.startswith(prefix) and not path.endswith(os.sep) and os.path.isfile(path)

    sys.addaudithook(hear)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
    Path(record).write_text(json.dumps({"peak_bytes": peak_bytes(), "opened": opened}), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
