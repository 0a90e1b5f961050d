"""Where a figure was measured: hardware, which packages' versions, and how busy the machine was with other things."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

RECORDED = (
    "pipeline",
    "torch",
    "torchvision",
    "numpy",
    "h5py",
    "pillow",
    "onnxruntime",
    "onnx",
    "onnxscript",
    "scikit-learn",
)
_VECTOR_UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")


def hardware() -> dict[str, Any]:
    """Processor, its vector units, cores that this process may use, memory in bytes, GPUs, operating system."""
    described = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", described, re.MULTILINE)
    flags = set(re.findall(r"\b[a-z0-9_]+\b", described))
    return {
        "cpu": model[1].strip() if model else platform.processor() or platform.machine(),
        "vector_units": [unit for unit in _VECTOR_UNITS if unit in flags],
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def load() -> float:
    """Mean number of running processes over the last minute, other programs' included."""
    return os.getloadavg()[0]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # not Linux: the processor is then named by `platform`
