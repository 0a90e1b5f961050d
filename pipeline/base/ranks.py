"""Several processes on one job, started by ``torchrun``: who does which block, and when all are there.

In extraction nothing but 'go', 'done' and the job's description travels: features go straight into the one file; in
fine-tuning gradients, logits and sums do. Uses ``torch.distributed`` with gloo (NCCL for tensors on GPUs, where each
process has its own), on tensors only (objects would be pickled).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.base.errors import PipelineError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

PATIENCE = timedelta(days=7)  # ranks may finish hours apart
BUFFER = 1 << 22  # numbers that are summed at once: 16 MiB of float32


class Ranks:
    """This process among ``world`` ones; with one process every method returns at once."""

    def __init__(self) -> None:
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.world > 1 else 0
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0")) if self.world > 1 else 0

    @property
    def first(self) -> bool:
        """Whether this is the process that plans, creates and publishes."""
        return self.rank == 0

    def mine(self, blocks: Sequence[int]) -> list[int]:
        """Of the blocks to do, those of this process: r, r + W, ..."""
        return [b for b in blocks if b % self.world == self.rank]

    def join(self) -> None:
        """Meet the other processes, and take this process's GPU where there are any."""
        if self.world == 1:
            return
        import torch
        import torch.distributed as dist

        if torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank % torch.cuda.device_count())
        if not dist.is_initialized():
            dist.init_process_group(_backend(), timeout=PATIENCE)

    @contextmanager
    def leading(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        """What the first process does before the others may begin: gives what tells them a message, plain JSON values.

        A block that ends without having told them releases them all the same: they must not wait for ever.
        """
        told = False

        def announce(message: dict[str, Any]) -> None:
            nonlocal told
            told = True
            self._broadcast(message)

        try:
            yield announce
        finally:
            if not told:
                self._broadcast(None)

    def told(self) -> dict[str, Any]:
        """In the other processes: what the first one announces, waited for.

        Raises:
            PipelineError: it failed before it could, or is gone.
        """
        message = self._broadcast(None)
        if message is None:
            raise PipelineError(f"rank {self.rank}: the first process could not start; its message says why")
        return message

    def _broadcast(self, message: dict[str, Any] | None) -> dict[str, Any] | None:
        """The first process's message, in every process."""
        if self.world == 1:
            return message
        import torch
        import torch.distributed as dist

        payload = json.dumps(message).encode() if self.first else b""
        size = torch.tensor([len(payload)])
        self._together(lambda: dist.broadcast(size, 0))
        text = torch.zeros(int(size), dtype=torch.uint8)
        if self.first:
            text = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        self._together(lambda: dist.broadcast(text, 0))
        found: dict[str, Any] | None = json.loads(text.numpy().tobytes())
        return found

    def total(self, value: int) -> int:
        """The sum over all processes; waits for all of them.

        Raises:
            PipelineError: another process stopped.
        """
        if self.world == 1:
            return value
        import torch
        import torch.distributed as dist

        counted = torch.tensor([value])
        self._together(lambda: dist.all_reduce(counted))
        return int(counted)

    def added(self, values: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """The sum of an array over all processes, in every one of them.

        Raises:
            PipelineError: another process stopped.
        """
        if self.world == 1:
            return values
        import torch
        import torch.distributed as dist

        total = torch.from_numpy(values.copy())
        self._together(lambda: dist.all_reduce(total))
        summed: NDArray[np.floating[Any]] = total.numpy()
        return summed

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Make each tensor, in place, its sum over all processes; all call it with the same shapes in the same order.

        Raises:
            PipelineError: another process stopped.
        """
        if self.world == 1:
            return
        import torch
        import torch.distributed as dist

        # In which order three numbers and more are added depends on where they lie in what is summed. So they go by
        # buffers that are cut in one way, the first time and after a restart alike; small ones, so that a large network
        # has no second copy.
        for some in _buffers(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in some])
            self._together(partial(dist.all_reduce, flat))
            for tensor, part in zip(some, torch.split(flat, [t.numel() for t in some]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def alike(self, text: str) -> bool:
        """Whether ``text`` is the same in all processes.

        Raises:
            PipelineError: another process stopped.
        """
        first = self._broadcast({"text": text})
        return self.total(int(first != {"text": text})) == 0

    def leave(self) -> None:
        """Part from the other processes."""
        if self.world > 1:
            import torch.distributed as dist

            if dist.is_initialized():
                dist.destroy_process_group()

    def _together(self, step: Any) -> None:
        try:
            step()
        except RuntimeError as error:  # gloo's word for a peer that is gone
            raise PipelineError(
                f"rank {self.rank}: another process of the job stopped; what was finished is kept: the same "
                "command goes on from there"
            ) from error


def _buffers(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The tensors in order, in runs of one device and type of at most BUFFER numbers, or of one tensor."""
    run: list[torch.Tensor] = []
    held = 0
    for tensor in tensors:
        other = bool(run) and (run[0].device, run[0].dtype) != (tensor.device, tensor.dtype)
        if run and (other or held + tensor.numel() > BUFFER):
            yield run
            run, held = [], 0
        run.append(tensor)
        held += tensor.numel()
    if run:
        yield run


def _backend() -> str:
    """gloo, and NCCL for GPU tensors where each process of this machine has a GPU to itself (NCCL wants that)."""
    import torch
    import torch.distributed as dist

    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    own_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= here
    return "cpu:gloo,cuda:nccl" if own_gpu and dist.is_nccl_available() else "gloo"
