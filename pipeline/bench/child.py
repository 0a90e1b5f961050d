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
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base.errors import PipelineError

LOOKED_EVERY = 0.01  # seconds between two looks at the memory of a process that runs
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes


def run_python(arguments: Sequence[str], *, threads: int | None = None) -> str:
    """Run ``python ARGUMENTS`` to its end; returns its standard output.

    Raises:
        PipelineError: it ended with an error; the message is its last line.
    """
    environment = _environment(threads)
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    _require_success(arguments, done.returncode, done.stderr)
    return done.stdout


def _environment(threads: int | None) -> Mapping[str, str]:
    here = str(Path(__file__).parents[2])
    paths = [here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return env if threads is None else {**env, "OMP_NUM_THREADS": str(threads)}


def _require_success(arguments: Sequence[str], status: int, errors: str) -> None:
    if status:
        lines = errors.strip().splitlines() or [f"exit status {status}"]
        raise PipelineError(f"a measured process failed: python {' '.join(arguments)[:200]}: {lines[-1]}")


@dataclass(frozen=True)
class Spent:
    """What a process took: seconds from its start to its end, those of all its threads on a processor, and memory.

    ``anonymous_bytes`` is the peak of its resident memory without pages of mapped files, as it was seen every 10 ms;
    where the system does not say that (Linux does), of all its resident memory. ``said`` is its standard output.
    """

    seconds: float
    cpu_seconds: float
    anonymous_bytes: int
    said: str


def measured(arguments: Sequence[str], *, threads: int | None = None) -> Spent:
    """Run ``python ARGUMENTS`` to its end and watch what it takes.

    Raises:
        PipelineError: as of :func:`run_python`.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        began, peak = time.perf_counter(), 0
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=out, stderr=errors, env=_environment(threads), text=True
        )
        try:
            # wait4, for it alone says what this one process took.
            while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
                peak = max(peak, _anonymous_bytes(process.pid))
                time.sleep(LOOKED_EVERY)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds, (_, status, usage) = time.perf_counter() - began, ended
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), errors.seek(0)
        _require_success(arguments, process.returncode, errors.read())
        return Spent(seconds, usage.ru_utime + usage.ru_stime, peak or usage.ru_maxrss * _MAXRSS_UNIT, out.read())


def _anonymous_bytes(pid: int) -> int:
    """Resident memory of a process without mapped files' pages; 0 where that is not told, as once it has ended."""
    try:
        found = re.search(r"RssAnon:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


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
        return _MAXRSS_UNIT * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
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
