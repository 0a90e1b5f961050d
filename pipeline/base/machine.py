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
    """How many cores this process should use: its share, where ``torchrun`` has started several on this machine."""
    return max(1, cores_in_all() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def cores_in_all() -> int:
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
    """The machine, as far as it decides speed: processor, cores, memory, and the GPU with its CUDA and cuDNN."""
    there = _gpu_there()
    told = {name: there.get(name) for name in ("cuda", "cudnn")}
    plain = {"processor": processor(), "cores": cores_in_all(), "memory_bytes": memory_bytes()}
    return {**plain, "gpu": there.get("name"), **told}


def gpu(device: str) -> dict[str, str]:
    """What decides a GPU's numbers: its name and compute capability, CUDA (or ROCm), cuDNN, and the driver.

    What PyTorch, or for the driver Linux, does not tell is left out.
    """
    import torch

    libraries: Any = torch.backends
    card, cudnn = torch.cuda.get_device_properties(device), libraries.cudnn.version()
    driver = re.search(r"\b[0-9]+(\.[0-9]+)+\b", _driver_description())
    told = {
        "name": card.name,
        "capability": f"{card.major}.{card.minor}",
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "cudnn": None if cudnn is None else str(cudnn),
        "driver": driver and driver[0],
    }
    return {name: value for name, value in told.items() if value}


def _gpu_there() -> dict[str, str]:
    """The GPU that PyTorch would take; nothing where there is none. A driver that is broken is no reason to end."""
    import torch

    try:
        return gpu("cuda") if torch.cuda.is_available() else {}
    except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
        return {"name": f"cannot be asked: {' '.join(str(error).split())[:200]}"}


def _driver_description() -> str:
    """What Linux tells of NVIDIA's driver; empty where there is none."""
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


DEVICE_HELP = "auto (the GPU where there is one, else the CPU), cpu, cuda, cuda:1 (the second GPU), mps (Apple's)"
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]+)?")


def require_device_name(requested: str) -> None:
    """Check the name of a device; whether it is there is for :func:`resolve_device`.

    Raises:
        ConfigError: it is none.
    """
    if not _DEVICE.fullmatch(requested):
        raise ConfigError(f"{option('device', requested)} is not known: choose from {DEVICE_HELP}")


def resolve_device(requested: str) -> str:
    """PyTorch's name of a device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    ``auto`` takes a GPU that CUDA or ROCm drives, where PyTorch sees one. Apple's is only taken by its name: it has no
    float64, by which a trunk is checked where float32 leaves doubts, and nobody has run this program there yet.

    Raises:
        ConfigError: an unknown name, or a device that is not there.
    """
    require_device_name(requested)
    if requested == "cpu":
        return "cpu"
    if requested == "mps":
        return _apple_gpu()
    if not _sees_gpu():
        if requested == "auto":
            return "cpu"
        raise ConfigError(
            f"{option('device', requested)}: PyTorch sees no GPU here; take {option('device', 'cpu')}, or a PyTorch "
            "built for the GPU"
        )
    if requested == "auto":
        return "cuda"
    _require_number(requested)
    return requested


def kind_of_device(device: str) -> str:
    """``cpu``, ``cuda`` or ``mps``: what decides features. Which of several GPUs does not."""
    return device.split(":", 1)[0]


def _require_number(device: str) -> None:
    import torch

    there = torch.cuda.device_count()
    if ":" in device and int(device.split(":")[1]) >= there:
        named = ", ".join(f"cuda:{number}" for number in range(there))
        raise ConfigError(f"{option('device', device)} is not there: choose from {named}")


def _apple_gpu() -> str:
    import torch

    if not torch.backends.mps.is_available():
        raise ConfigError(
            f"{option('device', 'mps')}: PyTorch sees no GPU of Apple's here; take {option('device', 'cpu')}"
        )
    return "mps"


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
