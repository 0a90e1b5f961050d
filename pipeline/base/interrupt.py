"""Stopping a long job at a safe point when the user or the system asks for it, and saying what is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.base.errors import Interrupted

ANEW = "nothing was changed: the same command begins anew"
NO_HALF_RUN = "no half run is left: the same command begins anew"
GOES_ON = "the same command goes on from there"
AGAIN = 0.05  # seconds until a stop that had to wait is tried again


@contextmanager
def on_interrupt(kept: str) -> Iterator[None]:
    """Within it, Ctrl-C comes with what is ``kept`` and what the same command will do; of several the innermost's.

    It stays a KeyboardInterrupt, with a note (PEP 678): no code that handles errors takes it for one.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        if not getattr(stop, "__notes__", ()):
            stop.add_note(f"stopped; {kept}")
        raise


def is_stop(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C, or what Python made of it where it came while a class was made or a library imported."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or is_stop(error.__cause__))


def told(stop: BaseException) -> str:
    """What Ctrl-C came with."""
    return str(next(iter(getattr(stop, "__notes__", ())), f"stopped; {ANEW}"))


@contextmanager
def held_while_importing() -> Iterator[None]:
    """Within it, a Ctrl-C that comes while a library is imported waits until that is done.

    A library's C++ code may call Python while it is set up, and expects no exception from that: it ends the process by
    abort() instead of by a line. Nothing is changed outside the main thread, nor where Ctrl-C is not Python's own, as
    in a job that a shell has put in the background.
    """
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def stop(_number: int, frame: FrameType | None) -> None:
        if not _importing(frame):
            raise KeyboardInterrupt
        again = threading.Timer(AGAIN, signal.raise_signal, [signal.SIGINT])
        again.daemon = True
        again.start()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


class StopRequest:
    """Whether a stop was asked for; ``signal`` is the signal's number, 0 when none came."""

    def __init__(self) -> None:
        self.signal = 0

    def raise_if_asked(self, message: str) -> None:
        """Raise :class:`Interrupted` with ``message`` when a stop was asked for."""
        if self.signal:
            raise Interrupted(message, signal=self.signal)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into a request; a second Ctrl-C stops at once.

    Outside the main thread, where Python does not deliver signals, the request never comes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, _frame: FrameType | None) -> None:
        if request.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = number

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
