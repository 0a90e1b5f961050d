"""Streams, events and graphs of the device double: queues of what the device is still to do.

Everything that a stream is given is a task, a function without arguments. A stream that is not late runs it at once; a
late one runs it when somebody waits for it, or at a moment that a seed draws. A graph keeps its tasks and runs them at
each replay.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Task = Callable[[], object]
REFUSED = "CUDA error: operation not permitted when stream is capturing"
HASTE = 0.1  # how likely some stream takes a step whenever any is given a task


class Queues:
    """All streams of the device, and what each thread is at."""

    def __init__(self, *, late: bool, seed: int) -> None:
        self.late = late
        self.lock = threading.RLock()
        self.streams: list[Stream] = []
        self.synchronisations = 0
        self.launches = 0
        self.debug = "default"  # torch.cuda.set_sync_debug_mode's
        self._drawn = random.Random(seed)
        self._thread = threading.local()
        self.default = Stream(queues=self)

    @property
    def current(self) -> Stream:
        """The stream of this thread."""
        return getattr(self._thread, "stream", self.default)

    @current.setter
    def current(self, stream: Stream) -> None:
        self._thread.stream = stream

    @property
    def capturing(self) -> Graph | None:
        """The graph that this thread captures."""
        return getattr(self._thread, "graph", None)

    @capturing.setter
    def capturing(self, graph: Graph | None) -> None:
        self._thread.graph = graph

    @property
    def deferred(self) -> bool:
        """Whether what is launched now happens later."""
        return self.late or self.capturing is not None

    def launch(self, task: Task) -> None:
        """Work for the device, on the stream of this thread or in its graph."""
        with self.lock:
            if self.capturing is not None:
                self.capturing.tasks.append(task)
                return
            self.launches += 1
            self.current.put(task)

    def synchronise(self, *streams: Stream) -> None:
        """The host waits for all that these streams are to do; a synchronisation."""
        self.wait(*((stream, stream.given) for stream in streams))

    def wait(self, *moments: tuple[Stream, int]) -> None:
        """The host waits until each stream has done so many tasks; a synchronisation."""
        if self.capturing is not None:
            raise RuntimeError(REFUSED)
        if self.debug == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        with self.lock:
            self.synchronisations += 1
            for stream, number in moments:
                stream.run_to(number)

    def step(self) -> None:
        """At moments that the seed draws, some stream does its next task."""
        waiting = [stream for stream in self.streams if stream.done < stream.given]
        if waiting and self._drawn.random() < HASTE:
            chosen = self._drawn.choice(waiting)
            chosen.run_to(chosen.done + 1)


class Stream:
    """A queue of tasks in order; stands for ``torch.cuda.Stream``."""

    def __init__(self, device: Any = None, priority: int = 0, *, queues: Queues) -> None:
        self.device, self.priority, self._queues = device, priority, queues
        self._tasks: deque[Task] = deque()
        self.given = self.done = 0
        queues.streams.append(self)

    def put(self, task: Task) -> None:
        """One more task."""
        with self._queues.lock:
            self._tasks.append(task)
            self.given += 1
            if not self._queues.late:
                self.run_to(self.given)
            else:
                self._queues.step()

    def run_to(self, number: int) -> None:
        """Do tasks until so many are done in all."""
        with self._queues.lock:
            while self.done < number:
                self._tasks.popleft()()
                self.done += 1

    def synchronize(self) -> None:
        self._queues.synchronise(self)

    def query(self) -> bool:
        self._queues.step()
        return self.done >= self.given

    def is_capturing(self) -> bool:
        return self._queues.capturing is not None

    def record_event(self, event: Event | None = None) -> Event:
        event = Event(queues=self._queues) if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        if event.moment is not None:  # the moment recorded by now, whatever is recorded later
            stream, number = event.moment
            self.put(lambda: stream.run_to(number))

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())


class Event:
    """A moment of a stream; stands for ``torch.cuda.Event``."""

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False, *, queues: Queues
    ) -> None:
        self._queues = queues
        self.moment: tuple[Stream, int] | None = None

    def record(self, stream: Stream | None = None) -> None:
        stream = self._queues.current if stream is None else stream
        self.moment = (stream, stream.given)

    def wait(self, stream: Stream | None = None) -> None:
        (self._queues.current if stream is None else stream).wait_event(self)

    def query(self) -> bool:
        with self._queues.lock:
            self._queues.step()
        return self.moment is None or self.moment[0].done >= self.moment[1]

    def synchronize(self) -> None:
        self._queues.wait(*([] if self.moment is None else [self.moment]))

    def elapsed_time(self, other: Event) -> float:
        """Milliseconds; nothing takes any time here."""
        return 0.0


class Graph:
    """Tasks that are run again at each replay; stands for ``torch.cuda.CUDAGraph``."""

    def __init__(self, keep_graph: bool = False, *, queues: Queues) -> None:
        self._queues = queues
        self.tasks: list[Task] = []

    def replay(self) -> None:
        tasks = list(self.tasks)
        self._queues.launch(lambda: [task() for task in tasks])

    def reset(self) -> None:
        self.tasks.clear()

    def pool(self) -> tuple[int, int]:
        return (0, id(self))

    @contextmanager
    def captured(self, stream: Stream) -> Iterator[None]:
        """Within, what this thread launches goes into the graph and does not happen."""
        queues = self._queues
        queues.synchronise(*queues.streams)  # as torch.cuda.graph does
        before, queues.current, queues.capturing = queues.current, stream, self
        try:
            yield
        except RuntimeError as error:
            queues.capturing = None
            if REFUSED not in str(error):
                queues.current = before
                raise
            # The end of a recording that has become void fails as well, and leaves its stream the current one.
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")  # noqa: B904
        queues.current, queues.capturing = before, None
