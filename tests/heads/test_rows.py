"""The rows that a solver sees: standardised, and of a memory map no pages that stay."""

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from pipeline.heads.rows import PAGE_TABLE_BYTES, MappedRows, StandardRows, unkept
from pipeline.heads.standardize import fit_standardization

CPU = torch.device("cpu")


def features(n=40, d=6):
    return np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)


@pytest.mark.parametrize("resident", [True, False])
def test_rows_from_a_float16_map_are_standardised_float32(tmp_path, resident):
    stored = np.memmap(tmp_path / "x.bin", dtype=np.float16, mode="w+", shape=(40, 6))
    stored[:] = features() * 3 + 1
    stored.flush()
    X = np.memmap(tmp_path / "x.bin", dtype=np.float16, mode="r", shape=(40, 6))
    rows = StandardRows(X, fit_standardization(X), CPU, resident=resident)
    expected = StandardScaler().fit_transform(X.astype(np.float64))
    index = torch.tensor([2, 5, 39])
    taken = rows.take(index)
    assert taken.dtype == torch.float32
    np.testing.assert_allclose(taken.numpy(), expected[index], atol=1e-6)
    np.testing.assert_allclose(np.concatenate([piece.numpy() for _, piece in rows.chunks()]), expected, atol=1e-6)


def test_held_rows_are_a_copy():
    X = features()
    before = X.copy()
    StandardRows(X, fit_standardization(X), CPU, resident=True)
    np.testing.assert_array_equal(X, before)


@pytest.fixture
def mapped(tmp_path):
    rows = np.random.default_rng(0).standard_normal((3000, 2048)).astype(np.float16)
    with (tmp_path / "rows.bin").open("wb") as file:
        file.write(bytes(100))  # rows that begin in the middle of a page
        file.write(rows.tobytes())
    return rows, np.memmap(tmp_path / "rows.bin", np.float16, mode="r", offset=100, shape=rows.shape)


def mapped_bytes(path):
    """Resident bytes of this process's maps of a file."""
    text, found, ours = Path("/proc/self/smaps").read_text(), 0, False
    for line in text.splitlines():
        if line.endswith(str(path)):
            ours = True
        elif line.startswith("Rss:") and ours:
            found, ours = found + 1024 * int(line.split()[1]), False
    return found


def test_rows_are_those_of_the_map(mapped):
    rows, X = mapped
    part = X[10:2900]  # a split is a run of the cache's rows
    found = unkept(part)
    assert isinstance(found, MappedRows)
    assert (found.shape, found.dtype, found.ndim, found.size, len(found)) == ((2890, 2048), X.dtype, 2, part.size, 2890)
    np.testing.assert_array_equal(found[5:700], rows[15:710])
    picked = np.array([0, 3, 2889])
    np.testing.assert_array_equal(found[picked], rows[10 + picked])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="resident pages are read from Linux's smaps")
def test_pages_that_were_read_are_let_go(mapped, tmp_path):
    _, X = mapped
    path = tmp_path / "rows.bin"
    assert float(np.asarray(X).sum(dtype="f8")) and mapped_bytes(path) > 10e6  # 12 MB, the usual way
    found = unkept(X)
    total = sum(float(found[start : start + 500].sum(dtype="f8")) for start in range(0, 3000, 500))
    assert total == pytest.approx(float(np.asarray(X, "f8").sum()))
    found[np.arange(0, 3000, 7)]
    assert mapped_bytes(path) == 0


class Advised(mmap.mmap):
    """A map that notes what is advised of it."""

    def madvise(self, option, start, length):
        self.advice = [*getattr(self, "advice", []), (option, start, length)]
        super().madvise(option, start, length)

    def advised(self, option):
        return [(start, length) for which, start, length in self.advice if which == option]


@pytest.fixture
def advised(mapped, tmp_path):
    rows, _ = mapped
    with (tmp_path / "rows.bin").open("rb") as file:
        pages = Advised(file.fileno(), 0, access=mmap.ACCESS_READ)
    yield MappedRows(np.frombuffer(pages, np.float16, offset=100).reshape(rows.shape), pages)


def test_letting_pages_go_looks_at_those_that_were_read_alone(advised):
    """Looked at whole after each piece, a map would take the square of its rows."""
    for start in range(0, 3000, 10):
        advised[start : start + 10]
    looked_at = [length for _, length in advised._pages.advised(mmap.MADV_DONTNEED)]
    assert len(looked_at) == 300
    assert max(looked_at) <= 2 * PAGE_TABLE_BYTES


def test_no_more_than_the_rows_is_announced(advised):
    advised.announce(np.array([3, 4, 5, 900, 2999]))
    expected = [(first * 4096 + 100, end * 4096 + 100) for first, end in ((3, 6), (900, 901), (2999, 3000))]
    found = advised._pages.advised(mmap.MADV_WILLNEED)
    for (begin, end), (start, length) in zip(expected, found, strict=True):
        assert begin - mmap.PAGESIZE < start <= begin
        assert start + length == end


@pytest.mark.parametrize("mode", ["c", "r+"])
def test_a_map_that_can_be_written_is_left_alone(mapped, tmp_path, mode):
    """Of a copy-on-write map, letting pages go would lose what was written."""
    X = np.memmap(tmp_path / "rows.bin", np.float16, mode=mode, offset=100, shape=(3000, 2048))
    X.setflags(write=False)
    assert unkept(X) is X
    assert unkept(X[5:]) is not None and not isinstance(unkept(X[5:]), MappedRows)


def test_an_array_in_memory_is_left_alone():
    X = np.zeros((4, 3), np.float32)
    assert unkept(X) is X
