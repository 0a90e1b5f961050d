"""The arithmetic that a network is computed in: one list for every command, and what a device lacks for each.

float32 is IEEE's. bfloat16 keeps 7 bits of its 23, and its range; weights and maps alike are rounded to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.base.errors import ConfigError
from pipeline.base.machine import cpu_description, kind_of_device
from pipeline.base.spelling import option

PRECISIONS = ("float32", "bfloat16")
AUTO = "auto"

# What Linux, and PyTorch where there is no Linux, call a processor's products of bfloat16.
_HARDWARE = {"avx512_bf16", "amx_bf16", "bf16"}


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
    if kind == "cuda":
        return None if _gpu_has_it(device) else "a GPU that has it in hardware"
    if kind == "cpu" and _processor_has_it():
        return None
    return "a processor that has it in hardware (AVX512-BF16, AMX or Arm's BF16), or a GPU"


def _gpu_has_it(device: str) -> bool:
    import torch

    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _processor_has_it() -> bool:
    """Whether the processor multiplies bfloat16 in hardware."""
    if told := cpu_description():
        return not _HARDWARE.isdisjoint(told.split())
    import torch

    ask: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # an older one tells nothing
    there = ask()
    return any(there.get(name, False) for name in _HARDWARE)
