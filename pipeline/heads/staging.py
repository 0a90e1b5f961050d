"""How arrays come to a device: to a GPU by page-locked memory, so that the program does not wait for it, nor it for us.

Knows arrays and devices, nothing of what the numbers are. On a processor nothing is copied but where types differ.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.base.transfer import uploaded
from pipeline.heads.standardize import FLOATS, copied


def on_gpu(device: torch.device) -> bool:
    """Whether it is one of CUDA's (or ROCm's), which has a memory of its own and works beside the program."""
    return device.type == "cuda"


def on_device(
    values: npt.NDArray[Any] | torch.Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Values of this machine's memory on a device, as ``dtype`` where given; not for what is overwritten later."""
    there = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return uploaded(there.to(dtype=dtype), device)


def stored_type(X: npt.NDArray[Any]) -> torch.dtype:
    """The type that rows are copied to a GPU in: their own, or float64 where they are no floats."""
    return getattr(torch, X.dtype.name) if X.dtype in FLOATS else torch.float64


class Lane:
    """Rows to a GPU, piece after piece: while it computes with one, the next is on its way.

    Two pieces of page-locked memory, each with a twin on the GPU. A copy waits for what was asked of the GPU before the
    last piece was sent, which is all that had its twin to work with; what is asked afterwards waits for the copy. The
    program waits only where a piece's page-locked memory is still being copied from, two pieces later.
    """

    def __init__(self, n: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        """For pieces of at most n rows of ``dim`` columns of ``dtype``."""
        self._dtype, self._device = dtype, device
        self._locked = [torch.empty(n, dim, dtype=dtype, pin_memory=True) for _ in range(2)]
        self._twins = [torch.empty(n, dim, dtype=dtype, device=device) for _ in range(2)]
        self._copied = [torch.cuda.Event(blocking=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._asked = torch.cuda.current_stream(device).record_event()
        self._turn = 0

    def send(self, rows: npt.NDArray[Any]) -> torch.Tensor:
        """The rows (n, D) on the GPU as ``dtype``, to be computed with until the next but one are sent."""
        slot, self._turn = self._turn, 1 - self._turn
        computing = torch.cuda.current_stream(self._device)
        earlier, self._asked = self._asked, computing.record_event()
        self._copied[slot].synchronize()  # (at once where it was never recorded)
        locked, twin = self._locked[slot][: len(rows)], self._twins[slot][: len(rows)]
        copied(rows, self._dtype, room=locked)
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(earlier)
            twin.copy_(locked, non_blocking=True)
            self._copied[slot].record(self._copies)
        computing.wait_event(self._copied[slot])
        return twin
