"""Several processes on one job, started by ``torchrun``: who does which block, and when all are there.

In extraction nothing but 'go', 'done' and the job's description travels: features go straight into the one file; in
fine-tuning gradients, logits and sums do. Uses ``torch.distributed`` on tensors only (objects would be pickled), with
gloo; sums of what lies on GPUs go by NCCL where each process has a GPU of its own, whichever it sees of its machine's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.base.errors import ConfigError, PipelineError
from pipeline.base.machine import kind_of_device, resolve_device
from pipeline.base.spelling import option

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
        self._of_gpus: Any = None  # NCCL's group, where there is one

    @property
    def first(self) -> bool:
        """Whether this is the process that plans, creates and publishes."""
        return self.rank == 0

    def mine(self, blocks: Sequence[int]) -> list[int]:
        """Of the blocks to do, those of this process: r, r + W, ..."""
        return [b for b in blocks if b % self.world == self.rank]

    def join(self, device: str) -> None:
        """Meet the other processes; where the job runs on GPUs, take the one that is this process's.

        ``device`` is the one that was asked for. To the job it stays ``cuda``, which is then this process's own.

        Raises:
            ConfigError: a GPU by its number, which all would share; or a device that is not there.
        """
        if self.world == 1:
            return
        if ":" in device:
            raise ConfigError(
                f"{option('device', device)} with {self.world} processes: each takes a GPU of its own; give "
                f"{option('device', kind_of_device(device))}"
            )
        import torch
        import torch.distributed as dist

        on_gpu = kind_of_device(resolve_device(device)) == "cuda"
        if on_gpu:
            torch.cuda.set_device(self.local_rank % torch.cuda.device_count())
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=PATIENCE)
        if self._each_has_its_own(on_gpu):
            self._of_gpus = dist.new_group(backend="nccl", timeout=PATIENCE)

    @contextmanager
    def joined(self, device: str) -> Iterator[None]:
        """Within it this process is among the others; see :meth:`join`."""
        self.join(device)
        try:
            yield
        except BaseException:
            # NCCL's farewell waits for all sums that are under way, and in those the others wait for this process: what
            # failed must end instead, so that torchrun sees it and ends the others.
            if self._of_gpus is None:
                self.leave()
            raise
        self.leave()

    def _each_has_its_own(self, on_gpu: bool) -> bool:
        """Whether all processes run on GPUs, no two of them on the same one, and have NCCL (which wants that)."""
        import torch
        import torch.distributed as dist

        mine = torch.zeros(32, dtype=torch.uint8)  # zeros: none
        if on_gpu and dist.is_nccl_available():
            uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
            if uuid is not None:  # some builds for AMD's do not tell it
                mine = torch.frombuffer(bytearray(hashlib.sha256(str(uuid).encode()).digest()), dtype=torch.uint8)
        every = [torch.zeros_like(mine) for _ in range(self.world)]
        self._together(lambda: dist.all_gather(every, mine))
        there = {bytes(one.tolist()) for one in every}
        return len(there) == self.world and bytes(32) not in there

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

        # In which order three numbers and more are added depends on where they lie in what is summed. So they go by
        # buffers that are cut in one way, the first time and after a restart alike; small ones, so that a large network
        # has no second copy.
        for some in _buffers(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in some])
            summed = self._summed(flat)
            for tensor, part in zip(some, torch.split(summed, [t.numel() for t in some]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def _summed(self, flat: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, in its place or in another: by NCCL, or through the host's memory."""
        import torch.distributed as dist

        if self._of_gpus is not None and not flat.is_cpu:
            self._together(partial(dist.all_reduce, flat, group=self._of_gpus))
            return flat
        host = flat.cpu()  # itself, where it lies there
        self._together(partial(dist.all_reduce, host))
        return host.to(flat.device)

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
