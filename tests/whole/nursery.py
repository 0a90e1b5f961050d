"""A process that runs commands in children of its own, and has one call to the system fail in each.

``python nursery.py`` imports the package once and warms up; for each line of JSON on its standard input a forked child
runs ``pipeline ARGUMENTS``, and a line of JSON says how that ended. What touches the workspace is counted: opening a
file for writing, making folders, renaming, removing, linking, flushing, positioned writes, reserving room. At call
number ``site`` the child is killed (``before`` or ``after`` the call), or the call fails with ``ENOSPC`` or ``EIO``.
Without a number it is all of them: ``EROFS`` makes the workspace read-only, ``short`` has writes take a half at most.
Clocks stand still in the children, so that all that they write is the same to the last bit; ``back``: they go back.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import functools
import io
import itertools
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
BY_PATH = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "link", "symlink", "truncate")
BY_FD = ("fsync", "fdatasync", "pwrite", "write", "posix_fallocate", "ftruncate")


class Faults:
    """Counts the calls that change something below ``root``, and has one of them fail."""

    def __init__(self, root: str, site: int | None, how: str) -> None:
        self.root, self.site, self.how = os.path.realpath(root), site, how
        self.seen: list[str] = []

    def install(self) -> None:
        """From now on."""
        for name in BY_PATH:
            setattr(os, name, self._wrapped(name, getattr(os, name), self._below_path))
        for name in BY_FD:
            if hasattr(os, name):
                setattr(os, name, self._wrapped(name, getattr(os, name), self._below_fd))
        os.open = self._wrapped("open", os.open, self._opened)  # type: ignore[assignment]
        builtins.open = io.open = self._wrapped("open", io.open, self._opened_by_name)  # type: ignore[assignment]
        import h5py

        h5py.h5f.create = self._wrapped("create", h5py.h5f.create, self._below_path)

    def _wrapped(self, name: str, call: Callable[..., Any], place: Callable[..., str | None]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapper(*arguments: Any, **options: Any) -> Any:
            path = place(*arguments, **options)
            if path is None:
                return call(*arguments, **options)
            number = len(self.seen)
            self.seen.append(f"{name} {kind_of(path)}")
            if self.how == "short" and name in ("write", "pwrite"):
                fd, data, *rest = arguments
                return call(fd, memoryview(data)[: max(1, len(data) // 2)], *rest)
            if number != self.site and self.how != "EROFS":
                return call(*arguments, **options)
            if self.how[0] == "E":
                code = getattr(errno, self.how)
                raise OSError(code, os.strerror(code))
            if self.how == "after":
                with contextlib.suppress(OSError):  # what is not there cannot be removed
                    call(*arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

        return wrapper

    def _below(self, path: str) -> str | None:
        return os.path.relpath(path, self.root) if path.startswith(self.root + os.sep) else None

    def _below_path(self, path: Any, *_: Any, dir_fd: int | None = None, **__: Any) -> str | None:
        text = os.fsdecode(path)
        if dir_fd is not None:
            text = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text)
        return self._below(os.path.abspath(text))

    def _below_fd(self, fd: Any, *_: Any) -> str | None:
        try:
            return self._below(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            return None

    def _opened(self, path: Any, flags: int, *_: Any, dir_fd: int | None = None, **__: Any) -> str | None:
        return self._below_path(path, dir_fd=dir_fd) if flags & WRITING else None

    def _opened_by_name(self, file: Any, mode: str = "r", *_: Any, **__: Any) -> str | None:
        return self._below_path(file) if not isinstance(file, int) and set(mode) & set("wax+") else None


def kind_of(path: str) -> str:
    """A path without what differs from file to file of its kind."""
    draft = re.sub(r"\.[^/]*-[0-9]+-[0-9a-f]{8}\.draft", ".draft", path)
    return re.sub(r"[0-9a-f]{8,}|[0-9]+", "#", draft)


def child(job: dict[str, Any], told: int) -> None:
    """Run the command; ``told`` is a descriptor for what was seen."""
    faults = Faults(job["root"], job["site"], job["how"])
    out = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), "utf-8", line_buffering=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), "utf-8", line_buffering=True)
    sys.argv = ["pipeline"]
    os.environ.update(SOURCE_DATE_EPOCH="0")
    clock = itertools.count(10**9, -60 if job["how"] == "back" else 0)
    time.time = lambda: float(next(clock))
    time.perf_counter = lambda: 0.0
    time.gmtime = functools.partial(_gmtime, time.gmtime)  # type: ignore[assignment]
    from pipeline.cli.main import main

    faults.install()
    code = main([*job["arguments"], "--workspace", job["root"]])
    sys.stdout.flush()
    written = json.dumps(faults.seen).encode()
    while written:
        written = written[os.write(told, written) :]
    os._exit(code)


def _gmtime(real: Callable[[float], time.struct_time], seconds: float | None = None) -> time.struct_time:
    return real(1e9 if seconds is None else seconds)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """How a child's run ended: its exit status (negative: the signal), what was seen, and what it said."""
    with tempfile.TemporaryDirectory() as folder:
        job["log"] = os.path.join(folder, "log")
        ours, theirs = os.pipe()
        number = os.fork()
        if number == 0:
            try:
                os.close(ours)
                child(job, theirs)
            except BaseException:
                import traceback

                traceback.print_exc()
                sys.stderr.flush()
            os._exit(99)
        os.close(theirs)
        with os.fdopen(ours, "rb") as pipe:
            seen = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
        log = Path(job["log"])
        said = log.read_text("utf-8", "replace") if log.exists() else ""
    return {"status": status, "seen": json.loads(seen) if seen else [], "said": said}


def warm_up() -> None:
    """Import all that the commands import, and have random weights drawn once for all children."""
    import onnxruntime  # noqa: F401
    import timm  # noqa: F401
    import torch

    import pipeline.stages.extract.blocks
    import pipeline.stages.extract.job
    import pipeline.stages.finetune.job
    import pipeline.stages.learn.baseline
    import pipeline.stages.learn.few_shot
    import pipeline.stages.learn.search
    import pipeline.stages.learn.train
    import pipeline.stages.score.compare
    import pipeline.stages.score.evaluate
    import pipeline.stages.upkeep.audit
    import pipeline.stages.upkeep.relabel
    import pipeline.stages.upkeep.verify
    import pipeline.stages.use.export
    import pipeline.stages.use.predict
    import pipeline.trunk.weights  # noqa: F401

    torch.set_num_threads(1)


if __name__ == "__main__":
    warm_up()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
