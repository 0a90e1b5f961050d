"""A CUDA device that is none: code runs on it as on a GPU, its numbers are the CPU's, and its mistakes are found.

Within :func:`device_double` PyTorch says that there is a CUDA device. Tensors on it refuse others that are not; what
makes the host wait and what the device is given to do are counted. With ``late=True`` nothing that a stream is given
happens before somebody waits for it, or a moment that the seed draws: who reads a buffer, or writes to it again, before
its copy is done gets wrong numbers. Threads that are started within see the device, too.

What it does not know: memory that is freed too early (``record_stream`` does nothing), speed, other numbers than a
CPU's, and operations that CUDA does not have.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from pipeline.base import machine
from tests.double import tensor
from tests.double.calls import Calls, Generator, numbered
from tests.double.streams import Event, Graph, Queues, Stream

GIB = 1 << 30


class Double:
    """The device as a test sees it."""

    def __init__(self, device: tensor.Device, memory: int) -> None:
        self._device, self._queues = device, device.queues
        self.free = self.memory = memory  # bytes; a test may set how much is free

    @property
    def synchronisations(self) -> int:
        """How often the host has waited for the device."""
        return self._queues.synchronisations

    @property
    def launches(self) -> int:
        """How many operations, copies and replays the device was given."""
        return self._queues.launches

    @property
    def late(self) -> bool:
        """Whether work happens when it is waited for."""
        return self._queues.late

    @property
    def largest(self) -> int | None:
        """Bytes of the largest tensor that finds room; a larger one is out of memory. A test may set it."""
        return self._device.largest

    @largest.setter
    def largest(self, size: int | None) -> None:
        self._device.largest = size

    def reset(self) -> None:
        """Count from here."""
        self._queues.synchronisations = self._queues.launches = 0


@contextmanager
def device_double(
    *, late: bool = False, seed: int = 0, devices: int = 1, memory: int = 16 * GIB, capability: tuple[int, int] = (9, 0)
) -> Iterator[Double]:
    """A machine with CUDA devices; afterwards it is what it was."""
    queues = Queues(late=late, seed=seed)
    device = tensor.Device(queues)
    double = Double(device, memory)
    with ExitStack() as stack:
        for name, value in _cuda(double, queues, devices, capability).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch.accelerator, "current_stream", torch.cuda.current_stream))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        stack.enter_context(mock.patch.object(machine, "_has_driver", lambda: True))
        stack.enter_context(mock.patch.object(tensor, "device", device))
        stack.enter_context(mock.patch.object(threading.Thread, "run", _seeing(threading.Thread.run)))
        stack.enter_context(Calls())
        yield double


def _seeing(run: Any) -> Any:
    """A thread's work with the device in sight."""

    def seen(self: threading.Thread) -> None:
        with Calls():
            run(self)

    return seen


def _cuda(double: Double, queues: Queues, devices: int, capability: tuple[int, int]) -> dict[str, Any]:
    """What stands in ``torch.cuda``, by name."""
    at = SimpleNamespace(index=0)

    def set_device(device: Any) -> None:
        at.index = device if isinstance(device, int) else torch.device(device).index or 0

    def properties(device: Any = None) -> SimpleNamespace:
        number = numbered("cuda" if device is None else device).index
        if number >= devices:
            raise AssertionError("Invalid device id")
        return SimpleNamespace(
            name=f"Double {number}",
            uuid=f"00000000-0000-0000-0000-{number:012d}",
            total_memory=double.memory,
            major=capability[0],
            minor=capability[1],
            multi_processor_count=1,
        )

    @contextmanager
    def stream(chosen: Stream | None) -> Iterator[None]:
        before = queues.current
        queues.current = before if chosen is None else chosen
        try:
            yield
        finally:
            queues.current = before

    def graph(captured: Graph, pool: Any = None, stream: Stream | None = None, **_: Any) -> Any:
        return captured.captured(Stream(queues=queues) if stream is None else stream)

    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: devices,
        "current_device": lambda: at.index,
        "set_device": set_device,
        "device": lambda device: nullcontext(),
        "get_device_name": lambda device=None: properties(device).name,
        "get_device_properties": properties,
        "get_device_capability": lambda device=None: capability,
        "is_bf16_supported": lambda including_emulation=True: True,
        "mem_get_info": lambda device=None: (double.free, double.memory),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "empty_cache": lambda: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_sync_debug_mode": lambda: queues.debug,
        "set_sync_debug_mode": lambda mode: setattr(queues, "debug", mode),
        "synchronize": lambda device=None: queues.synchronise(*queues.streams),
        "Stream": partial(Stream, queues=queues),
        "Event": partial(Event, queues=queues),
        "CUDAGraph": partial(Graph, queues=queues),
        "current_stream": lambda device=None: queues.current,
        "default_stream": lambda device=None: queues.default,
        "set_stream": lambda chosen: setattr(queues, "current", chosen),
        "stream": stream,
        "graph": graph,
        "graph_pool_handle": lambda: (0, 1),
        "is_current_stream_capturing": lambda: queues.capturing is not None,
    }
