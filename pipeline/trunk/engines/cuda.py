"""A batch's way over a GPU: copied there by one stream, computed by another, and copied back, while others follow.

The forward pass is a CUDA graph, recorded once for the one shape that there is: one launch instead of one for each of
a network's 100 to 500 operations, each of which takes Python longer than it takes the GPU. Before it is recorded the
pass runs twice: libraries choose algorithms and take memory in the first. Host memory is page-locked, from which the
GPU copies by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.base.arithmetic import arithmetic
from pipeline.trunk.engines.base import Slot
from pipeline.trunk.engines.fold import FoldedTrunk


@dataclass(eq=False)
class _Locked(Slot):
    """A slot in page-locked memory, with its twin on the GPU."""

    host: torch.Tensor  # what ``places`` are a view of
    twin: torch.Tensor
    back: torch.Tensor  # what ``found`` is a view of
    copied: torch.cuda.Event
    done: torch.cuda.Event


class GraphRunner:
    """The way of one network's batches (batch, S, S, 3) uint8; several may be on it, each in a slot of its own.

    Attributes:
        recorded: whether the forward pass is a graph. A network that asks the GPU for a number on its way cannot be
            recorded, and is launched operation by operation.
    """

    def __init__(self, net: FoldedTrunk, shape: tuple[int, int, int, int], device: str, precision: str) -> None:
        self._net, self._shape, self._precision = net, shape, precision
        with torch.cuda.device(device), torch.inference_mode():
            self.device = torch.device("cuda", torch.cuda.current_device())
            self._copying, self._computing = self._stream(), self._stream()
            self._pixels = torch.zeros(shape, dtype=torch.uint8, device=self.device)
            torch.cuda.synchronize(self.device)  # the weights are there, whichever stream brought them
            with torch.cuda.stream(self._computing):
                self._features = self._forward()
                self.recorded = self._waits_for_nothing()
            torch.cuda.synchronize(self.device)
            self._graph = self._record() if self.recorded else None

    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def _forward(self) -> torch.Tensor:
        with arithmetic(self._precision):
            features: torch.Tensor = self._net(self._pixels.permute(0, 3, 1, 2))
        return features

    def _waits_for_nothing(self) -> bool:
        """Whether a forward pass never makes the program wait for the GPU: a recording that does fails for good.

        Found out beforehand, since PyTorch's allocator does not come out of a recording that has failed.
        """
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            self._features = self._forward()
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            return False
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return True

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            # The outer one, since that of a recording that fails does not end.
            with (
                torch.cuda.stream(self._computing),
                torch.cuda.graph(graph, stream=self._computing, capture_error_mode="thread_local"),
            ):
                self._features = self._forward()
        except RuntimeError as error:
            # What went wrong first: the end of a recording that failed has an error of its own.
            first: BaseException = error
            while isinstance(first.__context__, RuntimeError):
                first = first.__context__
            if first is error:
                raise
            error.__traceback__ = None  # its frames hold on to the first
            raise first from None
        return graph

    def slot(self) -> Slot:
        """A new slot, its places black."""
        host = torch.zeros(self._shape, dtype=torch.uint8, pin_memory=True)
        back = torch.zeros(self._features.shape, dtype=torch.float32, pin_memory=True)
        with torch.cuda.device(self.device):
            # An event that is waited for leaves the core to the threads that decode.
            copied, done = (torch.cuda.Event(blocking=True) for _ in range(2))  # type: ignore[no-untyped-call]
            twin = torch.empty(self._shape, dtype=torch.uint8, device=self.device)
        return _Locked(host.numpy(), back.numpy(), host, twin, back, copied, done)

    def start(self, slot: Slot) -> None:
        """Put a slot's batch on its way; nothing is waited for."""
        assert isinstance(slot, _Locked)
        with torch.inference_mode():
            with torch.cuda.stream(self._copying):
                slot.twin.copy_(slot.host, non_blocking=True)
                slot.copied.record(self._copying)
            with torch.cuda.stream(self._computing):
                self._computing.wait_event(slot.copied)
                self._pixels.copy_(slot.twin)
                if self._graph is None:
                    self._features = self._forward()
                else:
                    self._graph.replay()
                slot.back.copy_(self._features, non_blocking=True)
                slot.done.record(self._computing)

    def wait(self, slot: Slot) -> None:
        """Until a slot's features are there; then it may be filled again."""
        assert isinstance(slot, _Locked)
        slot.done.synchronize()
