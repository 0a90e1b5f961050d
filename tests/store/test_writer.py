"""Writing: nothing counts until it is whole, and what counts stays."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import CacheError
from pipeline.store import Contents, Writer, create_partial, open_cache, partial_path

Write = Callable[..., None]


def block_of(writer: Writer, block: int, X: np.ndarray, made: Contents) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    start, stop = writer.span(block)
    return X[start:stop], made.digests[start:stop], np.ones(stop - start, np.uint8)


def test_what_was_written_is_read_back(tmp_path: Path, made: Contents, X: np.ndarray, write: Write) -> None:
    write(tmp_path / "a.h5", made, X)
    cache = open_cache(tmp_path / "a.h5", verify=True)
    np.testing.assert_array_equal(cache.features, X)
    assert cache.ids == made.ids
    np.testing.assert_array_equal(cache.digests, made.digests)


def test_blocks_in_any_order_and_over_two_writers_give_the_same_bytes(
    tmp_path: Path, made: Contents, X: np.ndarray, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted and resumed file is the uninterrupted one, bit for bit."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    write(tmp_path / "a.h5", made, X)
    create_partial(tmp_path / "b.h5", made)
    for blocks in ((3, 0), (2, 1)):
        with Writer(tmp_path / "b.h5") as writer:
            for block in blocks:
                writer.write_block(block, *block_of(writer, block, X, made))
    with Writer(tmp_path / "b.h5") as writer:
        assert writer.done.all()
        writer.publish()
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_an_unfinished_file_is_neither_a_cache_nor_published(tmp_path: Path, made: Contents, X: np.ndarray) -> None:
    """Existing is not complete."""
    create_partial(tmp_path / "a.h5", made)
    with Writer(tmp_path / "a.h5") as writer:
        writer.write_block(0, *block_of(writer, 0, X, made))
        with pytest.raises(CacheError, match="3 of 4 blocks"):
            writer.publish()
    with pytest.raises(CacheError, match="unfinished: run `pipeline extract` again"):
        open_cache(tmp_path / "a.h5")
    partial_path(tmp_path / "a.h5").rename(tmp_path / "forced.h5")
    with pytest.raises(CacheError, match="not finished"):
        open_cache(tmp_path / "forced.h5")


def test_blocks_that_are_taken_back_are_to_do_again(
    tmp_path: Path, made: Contents, X: np.ndarray, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    write(tmp_path / "a.h5", made, X)
    create_partial(tmp_path / "b.h5", made)
    with Writer(tmp_path / "b.h5") as writer:
        for block in range(4):
            writer.write_block(block, *block_of(writer, block, X + 1, made))
        writer.take_back([1, 3])
        assert writer.done.tolist() == [True, False, True, False]
        with pytest.raises(CacheError, match="2 of 4 blocks are to do"):
            writer.publish()
    with Writer(tmp_path / "b.h5") as writer:
        assert writer.done.tolist() == [True, False, True, False]
        for block in range(4):
            writer.write_block(block, *block_of(writer, block, X, made))
        writer.publish()
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_flag_without_its_rows_does_not_count(tmp_path: Path, made: Contents, X: np.ndarray) -> None:
    """A power cut that kept the flag and lost the rows: the block is done again."""
    create_partial(tmp_path / "a.h5", made)
    with Writer(tmp_path / "a.h5") as writer:
        for block in (0, 1):
            writer.write_block(block, *block_of(writer, block, X, made))
        offset = writer.structure.offset("/features")
    with partial_path(tmp_path / "a.h5").open("r+b") as file:
        file.seek(offset + 16 * 8 * 4 + 5)
        file.write(b"\x55")
    with Writer(tmp_path / "a.h5") as writer:
        assert writer.done.tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [(70000.0, "float16", "float32"), (np.nan, "float32", "infinite"), (0.0, "float32", "zero")],
)
def test_rows_that_would_lie_are_refused(
    tmp_path: Path, X: np.ndarray, value: float, dtype: str, words: str, make_contents: Callable[..., Contents]
) -> None:
    """Overflow is an error and never inf; an all-zero or non-finite row is no feature."""
    made = make_contents(dtype=dtype)
    create_partial(tmp_path / "a.h5", made)
    with Writer(tmp_path / "a.h5") as writer:
        features, digests, states = block_of(writer, 0, X.copy(), made)
        features[3] = value
        with pytest.raises(CacheError, match=f"row 3.*{words}"):
            writer.write_block(0, features, digests, states)
        assert not writer.done.any()


def test_failed_rows_are_stored_as_zeros(tmp_path: Path, made: Contents, X: np.ndarray, write: Write) -> None:
    states = np.ones(50, np.uint8)
    states[7] = 2
    write(tmp_path / "a.h5", made, X, states)
    cache = open_cache(tmp_path / "a.h5", verify=True)
    assert not cache.features[7].any()
    assert cache.failed() == {"unreadable": 1}


def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, made: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CacheError, match="No space left on device"):
        create_partial(tmp_path / "a.h5", made)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_job_left_of_a_file_it_was_making_is_removed(tmp_path: Path, made: Contents) -> None:
    (left := tmp_path / f".{socket.gethostname()}-1-0123abcd.draft").mkdir()
    (left / "a.h5.partial").write_bytes(b"half")
    create_partial(tmp_path / "a.h5", made)
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5.partial"]


def test_a_disk_that_fills_up_keeps_the_blocks_before(
    tmp_path: Path, made: Contents, X: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_partial(tmp_path / "a.h5", made)
    with Writer(tmp_path / "a.h5") as writer:
        writer.write_block(0, *block_of(writer, 0, X, made))

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(CacheError, match="what was done so far is kept"):
                writer.write_block(1, *block_of(writer, 1, X, made))
    with Writer(tmp_path / "a.h5") as writer:
        assert writer.done.tolist() == [True, False, False, False]


def test_the_clock_is_not_in_the_bytes(
    tmp_path: Path, made: Contents, X: np.ndarray, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HDF5 notes the time in object headers unless told not to: files made at other times must be equal."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    write(tmp_path / "a.h5", made, X)
    import h5py

    with h5py.File(tmp_path / "a.h5") as file:
        found = ["/"]
        file.visit(found.append)
        for name in found:
            info = h5py.h5o.get_info(file[name].id)
            assert (info.mtime, info.ctime, info.btime) == (0, 0, 0), name
