"""This machine: cores, memory, devices, and the versions of what decides figures.

Knows the systems that differ in what they tell: each question has one function here, with another way to ask where the
first is missing. Knows nothing of what the answers are for.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.base.errors import ConfigError
from pipeline.base.spelling import option

RECORDED = (
    "pipeline",
    "torch",
    "torchvision",
    "numpy",
    "scikit-learn",
    "h5py",
    "pillow",
    "safetensors",
    "onnxruntime",
    "timm",
)
DISTRIBUTION = "probe-pipeline"  # this package's name where packages are installed from; records call it `pipeline`


def own_version() -> str:
    """This package's version."""
    return version(DISTRIBUTION)


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS: all that there are


def memory_bytes() -> int | None:
    """The machine's memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        pass
    try:
        told = subprocess.run(["sysctl", "-n", "hw.memsize"], capture_output=True, text=True, check=True)  # macOS
        return int(told.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def cpu_description() -> str:
    """What Linux tells of the processor, at length; empty on other systems."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def processor() -> str:
    """The processor's name."""
    model = re.search(r"^model name\s*:\s*(.+)$", cpu_description(), re.MULTILINE)
    return model[1].strip() if model else platform.processor() or platform.machine()


def versions(*also: str) -> dict[str, str]:
    """Versions of Python, of the libraries that decide figures, and of ``also``; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in (*RECORDED, *also):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = own_version() if name == "pipeline" else version(name)
    return found


def hardware() -> dict[str, Any]:
    """The machine, as far as it decides speed: processor, cores, memory, GPU."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": processor(), "cores": cores(), "memory_bytes": memory_bytes(), "gpu": gpu}


DEVICES = ("auto", "cpu", "cuda")


def resolve_device(requested: str) -> str:
    """``cpu`` or ``cuda``; ``auto`` takes the GPU where PyTorch sees one.

    Raises:
        ConfigError: an unknown name, or ``cuda`` where there is none.
    """
    if requested not in DEVICES:
        raise ConfigError(f"{option('device', requested)} is not known: choose from {', '.join(DEVICES)}")
    if requested == "cpu":
        return "cpu"
    if _sees_gpu():
        return "cuda"
    if requested == "cuda":
        raise ConfigError(
            f"{option('device', 'cuda')}: PyTorch sees no GPU here; take {option('device', 'cpu')}, or a PyTorch built "
            "for the GPU"
        )
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
