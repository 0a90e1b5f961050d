"""How convolutions and products of float32 matrices are computed, held for as long as a network or a head computes.

PyTorch computes a GPU's float32 convolutions in TF32 (10 bits of float32's 23) unless told otherwise, and products of
matrices as the program around has set it: on GPUs in TF32, on processors with AMX or AVX512-BF16 in bfloat16
(``torch.set_float32_matmul_precision``). Here float32 is IEEE's, whatever was set before, and what was set before is
there again afterwards. The settings are the process's, so one computation at a time holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.base.machine import kind_of_device

_IEEE, _TF32, _INHERITED = "ieee", "tf32", "none"


@contextmanager
def arithmetic(precision: str = "float32") -> Iterator[None]:
    """Compute in one of ``pipeline.base.precision.PRECISIONS``; with cuDNN by algorithms that add in one order.

    Under ``tf32`` a GPU's convolutions and products round their factors to 10 bits; under all others, what is float32
    is IEEE's. On a CPU it always is.
    """
    on_gpu = _TF32 if precision == "tf32" else _IEEE
    with ExitStack() as restored:
        cudnn = torch.backends.cudnn
        # Benchmark mode chooses algorithms by the clock, and some algorithms add in another order each time.
        for name, value in (("enabled", True), ("benchmark", False), ("deterministic", True)):
            restored.callback(setattr, cudnn, name, getattr(cudnn, name))
            setattr(cudnn, name, value)
        (_hold if hasattr(cudnn, "conv") else _hold_as_before_2_9)(on_gpu, restored.callback)
        yield


def _hold(on_gpu: str, restored: Callable[..., Any]) -> None:
    """Each operation's own setting. (``allow_tf32`` raises where a program has used these, even where it only asks.)"""
    backends: Any = torch.backends
    for operation, value in (
        (backends.cudnn.conv, on_gpu),
        (backends.cuda.matmul, on_gpu),
        (backends.mkldnn.conv, _IEEE),
        (backends.mkldnn.matmul, _IEEE),
    ):
        before = operation.fp32_precision
        operation.fp32_precision = _INHERITED  # what it inherits reads as its own: so it would stay when that changes
        inherits = operation.fp32_precision == before
        operation.fp32_precision = value
        restored(setattr, operation, "fp32_precision", _INHERITED if inherits else before)


def _hold_as_before_2_9(on_gpu: str, restored: Callable[..., Any]) -> None:
    """One setting for the products of all devices, and one for cuDNN."""
    restored(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("high" if on_gpu == _TF32 else "highest")
    restored(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    torch.backends.cudnn.allow_tf32 = on_gpu == _TF32


def ordered_attention(device: str) -> AbstractContextManager[Any]:
    """For what learns: attention whose backward pass adds in one order each time. A GPU's fused kernels add by atomics.

    On a CPU it is as it is.
    """
    return sdpa_kernel(SDPBackend.MATH) if kind_of_device(device) == "cuda" else nullcontext()
