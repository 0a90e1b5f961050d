"""Where the rows of exact heads lie, and how many cases advance together: asked of a device's memory.

Knows shapes, types and devices; nothing of what is computed.
"""

from __future__ import annotations

import torch

from pipeline.base.memory import free_bytes
from pipeline.heads.exact.minimise import GPU_PIECE_BYTES, MEMORY
from pipeline.heads.problem import Problem
from pipeline.heads.rows import StandardRows
from pipeline.heads.staging import on_gpu

LOGITS_BYTES = 1 << 28  # of the logits of the cases that advance together, on a processor
GPU_LOGITS_BYTES = 4 << 30  # ... and on a GPU, whose products grow no faster beyond that
LOGITS_COPIES = 5  # logits, their residual and their change, and what those that stay are copied to
VECTORS = 2 * MEMORY + 12  # of a case, of the size of its weights
PIECES = 8  # of logits that are worked on at once
PRODUCTS = 40  # of a fit, about


def cases_at_once(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> int:
    """How many cases advance together, of ``shape`` (rows, classes, coordinates).

    On a GPU half as many, and half again, until they fit in what it has free: so that a little more or less of that
    mostly leaves the number, and with it the last bits, as they are.
    """
    n, classes, wide = shape
    one = n * classes * dtype.itemsize
    if not on_gpu(device):
        return max(1, LOGITS_BYTES // one)
    cases, takes = max(1, GPU_LOGITS_BYTES // one), LOGITS_COPIES * one + VECTORS * classes * wide * dtype.itemsize
    free = free_bytes(device) - PIECES * GPU_PIECE_BYTES
    while cases > 1 and cases * takes > free:
        cases //= 2
    return cases


def lie(problem: Problem, n_fits: int) -> tuple[bool, bool]:
    """Where the rows lie for so many fits: on a GPU as they are stored, and turned into their eigenbasis in memory.

    Neither: they are read anew for each product. A GPU holds them as they are stored first, for what is not a product.
    """
    allowed = problem.memory_bytes
    stored = StandardRows.held_bytes(problem.X, problem.target) if on_gpu(problem.target) else 0
    on_card = 0 < stored <= allowed
    beside = stored if on_card else 0
    return on_card, turning_pays(problem, n_fits) and beside + turned_bytes(problem) <= allowed


def held_bytes(problem: Problem, n_fits: int) -> int:
    """Memory that the rows take where they are not read anew for each product: stored on a GPU, otherwise turned.

    0 where they are read anew because that is quicker.
    """
    if on_gpu(problem.target):
        return StandardRows.held_bytes(problem.X, problem.target)
    return turned_bytes(problem) if turning_pays(problem, n_fits) else 0


def turned_bytes(problem: Problem) -> int:
    """Memory that the rows take once they are turned into their eigenbasis."""
    n, d = problem.X.shape
    return int(n * min(n, d) * problem.dtype.itemsize)


def turning_pays(problem: Problem, n_fits: int) -> bool:
    """Whether so many fits take less time on rows that are turned once and held than on rows as they are.

    To turn N rows of D features costs N D² multiplications, to turn the weights instead D² for each column of each
    product. Fewer rows than features are turned as they are decomposed; a GPU turns rows in less time than it takes to
    make float32 of them a few times.
    """
    n, d = problem.X.shape
    return n < d or problem.target.type != "cpu" or PRODUCTS * n_fits * problem.n_classes > n
