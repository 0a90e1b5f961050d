"""Out of memory, in the words of every library that may say it; and errors that a smaller batch does not help."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.base.memory import is_out_of_memory

OUT_OF_MEMORY: list[BaseException] = [
    MemoryError(),
    np._core._exceptions._ArrayMemoryError((1 << 40,), np.dtype(np.float32)),  # type: ignore[attr-defined]
    torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.44 GiB is "
        "free. Process 7 has 77.66 GiB memory in use."
    ),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported later"),
    torch.AcceleratorError("CUDA error: out of memory")
    if hasattr(torch, "AcceleratorError")
    else RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("unable to find an engine to execute this computation"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 1099511627776 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:75] . DefaultCPUAllocator: not enough memory: you tried to allocate 9 B"
    ),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB, other allocations: 1.00 GB)"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("bad allocation"),
    RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc"),
    RuntimeError(
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
        "Name:'/conv1/Conv' Status Message: bfc_arena.cc:376 AllocateRawInternal Failed to allocate memory for "
        "requested buffer of size 3288334336"
    ),
]
ANOTHER: list[BaseException] = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x512 and 2048x10)"),
    RuntimeError("Given groups=1, weight of size [64, 3, 7, 7], expected input[4, 1, 64, 64] to have 3 channels"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: misaligned address"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if the input is not contiguous."),
    RuntimeError("Found no NVIDIA driver on your system."),
    RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive"),
    OSError(28, "No space left on device"),
    FileNotFoundError(2, "No such file or directory", "engines/resnet18.onnx"),
    KeyboardInterrupt("out of memory"),
    SystemExit("out of memory"),
]


def words(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:60]}"


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=words)
def test_these_words_mean_that_a_smaller_batch_may_fit(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", ANOTHER, ids=words)
def test_these_words_do_not(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_an_allocation_that_pytorch_refuses_is_out_of_memory() -> None:
    """The real words of the installed PyTorch."""
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
