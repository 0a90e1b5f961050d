"""This machine: cores, devices, hardware, and the versions of what decides figures."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.base.errors import ConfigError


def worker_count(asked: int | None) -> int:
    """Decoding threads: as asked, or one for each core that this process may use."""
    return asked or len(os.sched_getaffinity(0))


DISTRIBUTION = "probe-pipeline"  # this package's name where packages are installed from; records call it `pipeline`
RECORDED = ("pipeline", "torch", "torchvision", "numpy", "scikit-learn", "h5py", "pillow", "safetensors", "onnxruntime")


def own_version() -> str:
    """This package's version."""
    return version(DISTRIBUTION)


def versions(of: Iterable[str] = RECORDED) -> dict[str, str]:
    """Versions of Python and of the libraries that decide figures; one that is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in of:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = own_version() if name == "pipeline" else version(name)
    return found


def hardware() -> dict[str, Any]:
    """The machine, as far as it decides speed: processor, cores, memory, GPU."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": model, "cores": len(os.sched_getaffinity(0)), "memory_bytes": memory, "gpu": gpu}


DEVICES = ("auto", "cpu", "cuda")


def resolve_device(requested: str) -> str:
    """``cpu`` or ``cuda``; ``auto`` takes the GPU where PyTorch sees one.

    Raises:
        ConfigError: an unknown name, or ``cuda`` where there is none.
    """
    if requested not in DEVICES:
        raise ConfigError(f"--device {requested!r} is not known: choose from {', '.join(DEVICES)}")
    if requested == "cpu":
        return "cpu"
    if _sees_gpu():
        return "cuda"
    if requested == "cuda":
        raise ConfigError("--device cuda: PyTorch sees no GPU here; take --device cpu, or a PyTorch built for the GPU")
    return "cpu"


def _sees_gpu() -> bool:
    # PyTorch has the last word, but is only asked where a driver is there: importing it takes seconds.
    if not _has_driver():
        return False
    import torch

    return torch.cuda.is_available()


def _has_driver() -> bool:
    if os.path.exists("/dev/kfd"):  # AMD; PyTorch calls it cuda as well
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
