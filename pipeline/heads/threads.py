"""Work on many rows by several threads, each with runs of rows of its own.

torch divides each operation among its threads and waits for all of them. On pieces of rows that fit in a processor's
cache, of which a pass over many rows is made, that waiting takes as long as the work; here each thread does its own
pieces from end to end, on one core.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def by_threads(n: int, size: int, work: Callable[[int, int], T]) -> list[T]:
    """What ``work(start, stop)`` gives for runs of n rows, in order: one run for each thread that torch uses.

    Runs are made of whole pieces of ``size`` rows, and are the same whenever there are as many threads. What work
    raises is raised here, once all threads have ended.
    """
    threads, pieces = torch.get_num_threads(), max(1, math.ceil(n / size))
    runs = min(threads, pieces)
    ends = [min(n, size * (pieces * k // runs)) for k in range(1, runs + 1)]
    if runs == 1:
        return [work(0, n)]
    try:
        with ThreadPoolExecutor(runs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, [0, *ends[:-1]], ends))
    finally:
        torch.set_num_threads(threads)  # a thread's number becomes that of all threads to come
