"""Where a figure was measured, as far as it decides speed, and how busy the machine was with other things."""

from __future__ import annotations

import os
import platform
import re
from typing import Any

import torch

from pipeline.base.machine import cores, cpu_description, gpu, memory_bytes, processor

_VECTOR_UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")


def hardware() -> dict[str, Any]:
    """Processor, its vector units, cores that this process may use, memory in bytes, GPUs as ``gpu`` tells, system."""
    flags = set(re.findall(r"\b[a-z0-9_]+\b", cpu_description()))
    return {
        "cpu": processor(),
        "vector_units": [unit for unit in _VECTOR_UNITS if unit in flags],
        "cores": cores(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": memory_bytes(),
        "gpus": [gpu(f"cuda:{i}") for i in range(torch.cuda.device_count())],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def load() -> float:
    """Mean number of running processes over the last minute, other programs' included."""
    return os.getloadavg()[0]
