"""Memory for work on rows: how much of a device there is for them, and whether an error means that it was not enough.

Knows PyTorch's allocator; nothing of what the memory is for.
"""

from __future__ import annotations

import traceback

import torch

from pipeline.base.machine import memory_bytes

UNKNOWN = 1 << 30  # bytes, where the system does not tell how much memory there is
OF_A_MACHINE = 8  # one part in so many of its memory is for rows
OF_A_GPU = 3  # ... and of what a GPU has free; the rest is for what is computed of them
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "failed to allocate memory",
    "bad_alloc",
    "bad allocation",
    "alloc_failed",
    "allocation_failed",
    "unable to find an engine to execute this computation",  # cuDNN's, where no algorithm has room to work in
)


def memory_share(device: str | torch.device = "cpu") -> int:
    """Bytes that rows may take on a device where nobody says: an eighth of the machine's memory, a third of a GPU's.

    Of the machine's whole memory and not of what is free, so that the same command does the same again; 1 GiB where
    nothing is known of it. A GPU is shared with whatever runs on it, so there it is a third of what is free now.
    """
    if torch.device(device).type == "cuda":
        return free_bytes(device) // OF_A_GPU
    there = memory_bytes()
    return UNKNOWN if there is None else there // OF_A_MACHINE


def free_bytes(device: str | torch.device) -> int:
    """Bytes that this process can still take on a GPU: what its driver has free, and what PyTorch keeps unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that less at once may fit."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, Exception) and any(words in text for words in _OUT_OF_MEMORY)


def let_go(error: BaseException) -> None:
    """Free what the frames of a failed computation hold, on the device too; the error says where it failed no more."""
    traceback.clear_frames(error.__traceback__)
    torch.cuda.empty_cache()  # does nothing where no GPU was used
