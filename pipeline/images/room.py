"""Room in memory: big images are at work one at a time, however many threads there are.

Knows bytes and pixels, nothing of what is done with them.
"""

from __future__ import annotations

import contextlib
import threading
from contextlib import AbstractContextManager

BIG_BYTES = 1 << 26  # of a file
BIG_PIXELS = 1 << 25  # of an image: some 100 MB as RGB, five times that while transparency is laid over white

ALONE = threading.RLock()
"""Held by the thread whose big image is at work."""


def alone_if(big: bool) -> AbstractContextManager[object]:
    """Within it, this thread alone is at a big image, if it is one."""
    return ALONE if big else contextlib.nullcontext()
