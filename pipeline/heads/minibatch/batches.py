"""Which rows a batch holds, and the rows themselves: all shuffled where they are held, otherwise by pools from blocks.

Knows rows and their numbers only. Rows in a file are read in blocks of neighbours; blocks from all over the file make a
pool in memory, in which the rows are shuffled. So each row is read once an epoch, in runs, and little is held.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from pipeline.heads.rows import StandardRows
from pipeline.heads.staging import on_device

POOL_BYTES = 128 << 20  # of rows as they are stored
BLOCK_ROWS = 16  # more mix worse where rows of a class are neighbours, fewer cost more reads

Index = npt.NDArray[np.int64]


def epoch_batches(n: int, *, batch_size: int, seed: int, epoch: int) -> list[Index]:
    """Row numbers of an epoch's batches: a shuffle by (seed, epoch) cut evenly, none above batch_size, each sorted.

    Even cutting leaves no batch of a few rows at the end, whose noisy gradient would count like a full one.
    """
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return [np.sort(part) for part in np.array_split(order, math.ceil(n / batch_size))]


def epoch_pools(n: int, *, batch_size: int, pool_rows: int, seed: int, epoch: int) -> Iterator[list[Index]]:
    """The same in pools, each a list of batches of together no more than ``pool_rows`` rows, but at least one batch.

    Of as many blocks of BLOCK_ROWS neighbours as there are pools, which follow one another, each pool has one, drawn by
    (seed, epoch): so a pool has its share of each part of the file, and of each class where rows are sorted by it. Then
    its rows are shuffled. Rows that fit in one pool are in the order of ``epoch_batches``.
    """
    if n <= pool_rows:
        yield epoch_batches(n, batch_size=batch_size, seed=seed, epoch=epoch)
        return
    rng = np.random.default_rng([seed, epoch])
    batches, blocks = math.ceil(n / batch_size), math.ceil(n / BLOCK_ROWS)
    pools = math.ceil(batches / max(1, pool_rows // math.ceil(n / batches)))
    drawn = rng.permuted(np.tile(np.arange(pools), (math.ceil(blocks / pools), 1)), axis=1).ravel()[:blocks]
    first = np.lexsort((rng.random(blocks), drawn)) * BLOCK_ROWS  # by pool, in each at random
    order = (first[:, None] + np.arange(BLOCK_ROWS)).ravel()
    order = order[order < n]
    ends = np.cumsum([len(part) for part in np.array_split(order, batches)])
    begin = 0
    for members in np.array_split(ends, pools):
        mixed = rng.permutation(order[begin : members[-1]])
        yield [np.sort(part) for part in np.split(mixed, members[:-1] - begin)]
        begin = members[-1]


def taken(rows: StandardRows, *, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """An epoch's batches as (row numbers (n,), rows (n, D)) on the rows' device, every row once.

    The disk reads a pool ahead. Numbers of rows go to the device once an epoch, of rows that are not held once a pool.
    """
    if rows.resident:
        for at in _sliced(epoch_batches(len(rows), batch_size=batch_size, seed=seed, epoch=epoch), rows.device):
            yield at, rows.take(at)
        return
    pool_rows = POOL_BYTES // rows.stored_bytes
    pools = epoch_pools(len(rows), batch_size=batch_size, pool_rows=pool_rows, seed=seed, epoch=epoch)
    lane = rows.lane(min(len(rows), max(pool_rows, batch_size)))
    for batches, following in itertools.pairwise(itertools.chain(pools, [[]])):
        members = np.sort(np.concatenate(batches))
        pool = rows.pool(members, lane)
        if following:
            rows.announce(np.sort(np.concatenate(following)))
        places = [np.searchsorted(members, index) for index in batches]
        for at, place in zip(_sliced(batches, rows.device), _sliced(places, rows.device), strict=True):
            yield at, pool.take(place)
        del pool  # before the next is read


def _sliced(batches: list[Index], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Batches of row numbers as slices of one array on the device."""
    return torch.split(on_device(np.concatenate(batches), device), [len(index) for index in batches])
