"""The arithmetic that a network is computed in: one list for every command, and what a device lacks for each.

float32 is IEEE's. tf32 rounds the factors of products to 10 bits of its 23, on NVIDIA's GPUs alone; numbers stay
float32. bfloat16 keeps 7 bits, and the range; weights and maps alike are rounded to it. int8 has 256 steps between
bounds that are found on a few images beforehand; networks run in it, and do not learn.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from pipeline.base.errors import ConfigError
from pipeline.base.machine import cpu_description, kind_of_device
from pipeline.base.spelling import option

PRECISIONS = ("float32", "tf32", "bfloat16", "int8")
LEARNING = ("float32", "tf32", "bfloat16")  # those that a network can be trained in
AUTO = "auto"

# What Linux, and PyTorch where there is no Linux, call a processor's products of bfloat16, and sums of four of int8.
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
_SUMS_OF_INT8 = {"avx512_vnni", "avx_vnni"}


def choose_precision(requested: str, device: str, *, forced: bool = False) -> str:
    """The precision to compute in on ``device``; ``auto`` is bfloat16 where that is in hardware, else float32.

    ``forced`` takes bfloat16 on a processor that can only emulate it, and is slower so.

    Raises:
        ConfigError: the device does not have it.
    """
    if requested == AUTO:
        return "bfloat16" if lacks("bfloat16", device) is None else "float32"
    if (reason := lacks(requested, device)) is None:
        return requested
    emulated = requested == "bfloat16" and kind_of_device(device) == "cpu"
    if emulated and forced:
        return requested
    more = f"; {option('force_precision', True)} computes it all the same, many times as slowly" if emulated else ""
    raise ConfigError(
        f"{option('precision', requested)} needs {reason}: give {option('precision', 'float32')}, or "
        f"{option('precision', AUTO)}, which takes what the device has{more}"
    )


def lacks(precision: str, device: str) -> str | None:
    """What a device would need for a precision, in words; None where it has it."""
    kind = kind_of_device(device)
    if precision == "float32":
        return None
    if precision == "int8":
        return None if kind == "cpu" else "a CPU"
    if precision == "tf32":
        return None if kind == "cuda" and _gpu_has_tf32(device) else "a GPU of NVIDIA's, Ampere (2020) or later"
    if kind == "cuda":
        return None if _gpu_has_bfloat16(device) else "a GPU that has it in hardware"
    if kind == "cpu" and _processor_has(_BFLOAT16):
        return None
    return "a processor that has it in hardware (AVX512-BF16, AMX or Arm's BF16), or a GPU"


def bits_of_weights() -> Literal[7, 8]:
    """How many bits weights in int8 may have here.

    x86 processors without VNNI add two products of 8 bits in 16, which overflow: they get 7.
    """
    return 7 if platform.machine().lower() in ("x86_64", "amd64") and not _processor_has(_SUMS_OF_INT8) else 8


def _gpu_has_tf32(device: str) -> bool:
    import torch

    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def _gpu_has_bfloat16(device: str) -> bool:
    import torch

    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _processor_has(any_of: Collection[str]) -> bool:
    """Whether the processor has one of these in hardware."""
    if told := cpu_description():
        return not set(any_of).isdisjoint(told.split())
    import torch

    ask: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # an older one tells nothing
    there = ask()
    return any(there.get(name, False) for name in any_of)
