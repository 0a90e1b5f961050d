"""Which rows the batches of an epoch hold, and how often and in what pieces a file's rows are read for them."""

import dataclasses
import itertools
import weakref

import numpy as np
import pytest
import torch

from pipeline.heads.minibatch import batches
from pipeline.heads.minibatch.batches import BLOCK_ROWS, epoch_batches, epoch_pools, taken
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.fit import fit_minibatch
from pipeline.heads.problem import Problem, Split
from pipeline.heads.rows import MappedRows, StandardRows, runs, unkept
from pipeline.heads.standardize import fit_standardization

ORDER = {"seed": 3, "epoch": 2}
DIM = 16


def test_batches_hold_each_row_once_and_none_is_much_smaller():
    found = epoch_batches(1025, batch_size=256, **ORDER)
    assert sorted(len(b) for b in found) == [205] * 5
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.arange(1025))


def test_epochs_are_shuffled_differently():
    one, two = (epoch_batches(100, batch_size=50, seed=0, epoch=e)[0] for e in (1, 2))
    assert not np.array_equal(one, two)


@pytest.mark.parametrize(
    ("n", "batch_size", "pool_rows"),
    [(1025, 256, 500), (1000, 32, 100), (1003, 32, 32), (1003, 32, 5), (999, 1000, 64)],
)
def test_pools_hold_each_row_once_in_batches_of_the_same_sizes(n, batch_size, pool_rows):
    pools = list(epoch_pools(n, batch_size=batch_size, pool_rows=pool_rows, **ORDER))
    found = list(itertools.chain(*pools))
    assert [len(b) for b in found] == [len(b) for b in epoch_batches(n, batch_size=batch_size, **ORDER)]
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.arange(n))
    assert all(sum(map(len, pool)) <= pool_rows or len(pool) == 1 for pool in pools)


def test_the_order_of_pools_is_that_of_seed_and_epoch():
    def order(**which):
        return np.concatenate(list(itertools.chain(*epoch_pools(1000, batch_size=32, pool_rows=100, **which))))

    np.testing.assert_array_equal(order(seed=3, epoch=2), order(seed=3, epoch=2))
    assert not np.array_equal(order(seed=3, epoch=2), order(seed=3, epoch=1))
    assert not np.array_equal(order(seed=3, epoch=2), order(seed=4, epoch=2))


def test_rows_of_one_pool_are_shuffled_as_held_ones_are():
    [pool] = epoch_pools(1000, batch_size=32, pool_rows=1000, **ORDER)
    for one, other in zip(pool, epoch_batches(1000, batch_size=32, **ORDER), strict=True):
        np.testing.assert_array_equal(one, other)


def imbalance(pools, y):
    """Pearson's statistic of the class counts in a batch, mean over batches and degrees of freedom: 1 by chance."""
    classes = y.max() + 1
    counts = np.array([np.bincount(y[b], minlength=classes) for b in itertools.chain(*pools)])
    expected = counts.sum(axis=1, keepdims=True) * np.bincount(y) / len(y)
    return ((counts - expected) ** 2 / expected).sum(axis=1).mean() / (classes - 1)


def test_classes_that_lie_together_in_the_file_are_mixed_in_every_batch(monkeypatch):
    y = np.arange(60_000) * 20 // 60_000
    rule = {"batch_size": 256, "pool_rows": 8192, **ORDER}
    assert imbalance(epoch_pools(len(y), **rule), y) < 1.1
    monkeypatch.setattr(batches, "BLOCK_ROWS", 512)  # as badly mixed as it would be with long blocks
    assert imbalance(epoch_pools(len(y), **rule), y) > 5


class Recorded(MappedRows):
    """Rows that note which of them are read, and how many copies of rows are alive at a read."""

    def __init__(self, X, pages):
        super().__init__(X, pages)
        self.read, self.announced, self.alive, self._copies = [], [], [], []

    def __getitem__(self, at):
        self.alive.append(sum(copy() is not None for copy in self._copies))
        rows = super().__getitem__(at)
        if not isinstance(at, slice):
            self.read.append(at)
            self._copies.append(weakref.ref(rows))
        return rows

    def announce(self, index):
        self.announced.append(index)
        super().announce(index)


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Class-sorted float16 rows of a file, the pool holding 100 of them; labels."""
    y = np.arange(1003) * 4 // 1003
    X = 0.5 * np.random.default_rng(99).standard_normal((4, DIM))[y]
    X += np.random.default_rng(0).standard_normal(X.shape)
    np.save(tmp_path / "x.npy", X.astype(np.float16))
    monkeypatch.setattr(batches, "POOL_BYTES", 100 * DIM * 2)
    return np.load(tmp_path / "x.npy", mmap_mode="r"), y


@pytest.fixture
def recorded(stored):
    X, _ = stored
    return Recorded(X, unkept(X)._pages)


def test_an_epoch_reads_each_row_once_in_runs_and_one_pool_at_a_time(recorded):
    X = recorded
    rows = StandardRows(X, None, torch.device("cpu"), resident=False)
    assert sum(len(index) for index, _ in taken(rows, batch_size=32, **ORDER)) == 1003
    np.testing.assert_array_equal(np.sort(np.concatenate(X.read)), np.arange(1003))
    assert max(map(len, X.read)) <= 100
    cut = len(X.read) - 1  # blocks that begin in one pool and end in the next
    assert sum(len(list(runs(at))) for at in X.read) <= -(-1003 // BLOCK_ROWS) + cut
    assert max(X.alive) == 0


def test_the_next_pool_is_announced_while_one_is_in_use(recorded):
    X = recorded
    rows = StandardRows(X, None, torch.device("cpu"), resident=False)
    seen = [(len(X.announced), len(X.read)) for _ in taken(rows, batch_size=32, **ORDER)]
    assert all(announced == min(read, len(X.read) - 1) for announced, read in seen)
    for ahead, read in zip(X.announced, X.read[1:], strict=True):
        np.testing.assert_array_equal(ahead, read)


def test_rows_from_pools_have_the_bits_of_held_ones(recorded):
    X = recorded
    s = fit_standardization(X)
    held = StandardRows(X, s, torch.device("cpu"), resident=True)
    for index, x in taken(StandardRows(X, s, torch.device("cpu"), resident=False), batch_size=32, **ORDER):
        assert torch.equal(x, held.take(index))


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_head_from_pools_of_class_sorted_rows_is_as_good_as_from_held_ones(stored, schedule):
    X, y = stored
    problem = Problem(X, y, 4, val=Split(X, y))
    config = MinibatchConfig(epochs=4, batch_size=32, lr=0.01, schedule=schedule)
    [streamed] = fit_minibatch(dataclasses.replace(problem, memory=0), [config])
    held = [fit_minibatch(problem, [MinibatchConfig(**{**vars(config), "seed": s})])[0] for s in range(3)]
    losses = [result.trace[-1].val_loss for result in held]
    assert streamed.trace[-1].val_loss == pytest.approx(np.mean(losses), rel=0.02)
    assert not np.array_equal(streamed.weight, held[0].weight)  # its batches are others
    [again] = fit_minibatch(dataclasses.replace(problem, memory=0), [config])
    np.testing.assert_array_equal(streamed.weight, again.weight)
