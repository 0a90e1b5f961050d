"""Reading: views, not copies; the same bytes in every process; no damage passes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.base.errors import CacheError
from pipeline.store import Cache, Contents, Writer, create_partial, open_cache
from pipeline.store.format import block_sums
from pipeline.store.rows import load_rows

Make = Callable[..., Path]


def test_a_split_is_a_view_of_the_file(make_cache: Make, X: np.ndarray) -> None:
    """Rows come from a memory map; nothing is copied and nothing can be written."""
    cache = open_cache(make_cache())
    train = cache.split("train")
    assert np.shares_memory(train.X, cache.features)
    assert not train.X.flags.writeable
    np.testing.assert_array_equal(train.X, X[: len(train)])
    np.testing.assert_array_equal(train.y, np.arange(len(train)) % 3)
    assert train.ids == cache.ids[: len(train)]


def test_failed_rows_are_never_served(make_cache: Make, X: np.ndarray) -> None:
    states = np.ones(50, np.uint8)
    states[[0, 5, 20]] = 3
    cache = open_cache(make_cache(states=states))
    train = cache.split("train")
    keep = np.flatnonzero(states[:17] == 1)
    np.testing.assert_array_equal(train.X, X[keep])
    np.testing.assert_array_equal(np.concatenate([x for x, _ in train.batches(4)]), X[keep])
    np.testing.assert_array_equal(np.concatenate([y for _, y in train.batches(4)]), keep % 3)
    assert cache.counts() == {"none": 0, "train": 15, "val": 16, "test": 16}


def test_rows_are_counted_by_class_and_split_as_they_lie(make_cache: Make) -> None:
    states = np.ones(50, np.uint8)
    states[[0, 7]] = 2
    cache = open_cache(make_cache(states=states))
    good = cache.states == 1
    for c, name in enumerate(cache.classes):
        for s, split in enumerate(("none", "train", "val", "test")):
            assert cache.class_counts()[name][split] == (good & (cache.labels == c) & (cache.splits == s)).sum()
    assert cache.counts() == {"none": 0, **{split: len(cache.rows(split)) for split in ("train", "val", "test")}}
    assert cache.unlabelled() == 0 and cache.failed() == {"unreadable": 2}


def test_rows_without_a_label_are_counted(tmp_path: Path, made: Contents, X: np.ndarray, write: Any) -> None:
    write(tmp_path / "a.h5", dataclasses.replace(made, labels=np.full(50, -1), classes=()), X)
    cache = open_cache(tmp_path / "a.h5")
    assert cache.unlabelled() == 50 and cache.class_counts() == {} and sum(cache.counts().values()) == 50


@pytest.mark.parametrize("classes", [3, 300])
def test_counting_goes_over_the_rows_once_however_many_classes_there_are(
    tmp_path: Path, made: Contents, X: np.ndarray, write: Any, monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    names = tuple(map(str, range(classes)))
    write(tmp_path / "a.h5", dataclasses.replace(made, classes=names), X)
    cache, passes, count = open_cache(tmp_path / "a.h5"), [], np.bincount
    monkeypatch.setattr(np, "bincount", lambda x, **options: (passes.append(len(x)), count(x, **options))[1])
    assert len(cache.class_counts()) == classes
    cache.counts(), cache.unlabelled()
    assert passes == [50]


def test_items_come_one_by_one_and_many_at_once(make_cache: Make, X: np.ndarray) -> None:
    val = open_cache(make_cache()).split("val")
    row, label = val[2]
    np.testing.assert_array_equal(row, X[17 + 2])
    assert label == (17 + 2) % 3
    many = val.__getitems__([4, 0, 4])
    np.testing.assert_array_equal(np.stack([x for x, _ in many]), X[[21, 17, 21]])


def _checksum(cache: Cache, queue: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    queue.put(zlib.crc32(np.ascontiguousarray(cache.split("test").X).tobytes()))


@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(m, marks=pytest.mark.slow) for m in ("spawn", "forkserver"))]
)
def test_every_kind_of_child_process_reads_the_same_bytes(make_cache: Make, method: str) -> None:
    cache = open_cache(make_cache())
    expected = zlib.crc32(np.ascontiguousarray(cache.split("test").X).tobytes())
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_checksum, args=(cache, queue))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join()


def test_a_pickled_cache_carries_no_features(make_cache: Make) -> None:
    cache = open_cache(make_cache(rows=2000, dim=64))
    assert len(cache.features)
    assert len(pickle.dumps(cache)) < 100_000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cache)).features, cache.features)


@pytest.mark.parametrize("name", ["/labels/y", "/labels/split"])
def test_a_damaged_label_is_found_on_opening(make_cache: Make, name: str) -> None:
    path = make_cache()
    flip(path, open_cache(path)._structure.offset(name))
    with pytest.raises(CacheError, match="checksum"):
        open_cache(path)


def test_a_damaged_id_is_found_when_one_is_asked_for(make_cache: Make) -> None:
    path = make_cache()
    blob = bytearray(path.read_bytes())
    blob[blob.index(b"0031 ")] ^= 1
    path.write_bytes(blob)
    cache = open_cache(path)
    for ask in (lambda: cache.ids, lambda: cache.ids, lambda: cache.split("val").ids, cache.verify):
        with pytest.raises(CacheError, match="item ids do not match their checksum"):
            ask()
    with pytest.raises(CacheError, match="item ids"):
        open_cache(path, verify=True)


def test_ids_that_were_replaced_after_the_cache_was_opened_are_not_served(make_cache: Make) -> None:
    path = make_cache()
    cache = open_cache(path)
    blob = bytearray(path.read_bytes())
    blob[blob.index(b"0031 ")] ^= 1
    path.write_bytes(blob)
    with pytest.raises(CacheError, match="replaced while open"):
        cache.ids[0]


def test_what_needs_no_id_reads_none(make_cache: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read, array = make_cache(), [], Cache._array
    monkeypatch.setattr(Cache, "_array", lambda self, name, kind: (read.append(name), array(self, name, kind))[1])
    cache = open_cache(path)
    train = load_rows(cache, "train")
    assert len(train) and cache.content and cache.counts() and cache.class_counts()
    assert not [name for name in read if name.startswith("/items/id")]
    assert cache.ids[31] == cache.ids[31]
    assert read.count("/items/id/text") == read.count("/items/id/end") == 1
    read.clear()
    assert pickle.loads(pickle.dumps(cache)).ids == cache.ids  # read anew there, not sent
    assert read.count("/items/id/text") == 1


def test_a_damaged_row_is_found_by_its_block(make_cache: Make) -> None:
    path = make_cache()
    flip(path, open_cache(path)._structure.offset("/features") + 20 * 32)
    cache = open_cache(path)
    cache.verify(np.arange(16))
    with pytest.raises(CacheError, match="block 1 .rows 16 to 31"):
        cache.verify()


def test_a_state_that_denies_its_row_is_found(make_cache: Make) -> None:
    """Under a checksum that holds: a file that was made to mislead."""
    path = make_cache()
    with h5py.File(path, "r+") as file:
        file["/items/state"][9] = 2
        parts = np.array(file["/items/digest"]), np.array(file["/items/state"]).astype("u1")
        file["/blocks/items_crc32"][:] = block_sums(16, *parts)
    with pytest.raises(CacheError, match="row 9: a failed item has features"):
        open_cache(path, verify=True)


@pytest.mark.parametrize("dataset", ["/items/state", "/items/digest", "/blocks/items_crc32"])
def test_a_damaged_digest_or_state_is_found_when_the_file_is_opened(make_cache: Make, dataset: str) -> None:
    path = make_cache()
    flip(path, open_cache(path)._structure.offset(dataset) + 9)
    with pytest.raises(CacheError, match="digests or states of block . do not match|an item has state"):
        open_cache(path)


@pytest.mark.parametrize("dataset", ["/items/size", "/items/mtime_ns", "/blocks/stats_crc32"])
def test_damaged_sizes_and_times_count_as_unknown(make_cache: Make, dataset: str) -> None:
    path = make_cache()
    before = open_cache(path).stats
    flip(path, open_cache(path)._structure.offset(dataset) + 1)
    for values, sound in zip(open_cache(path).stats, before, strict=True):
        assert (values[:16] == -1).all() and (values[16:] == sound[16:]).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ids": [b"same.png"] * 50}, "an item's id is there twice"),
        ({"classes": ("a", "a", "b")}, "a class name is there twice"),
        ({"labels": np.full(50, 3)}, "a label or split is none that there is"),
        ({"labels": np.full(50, -2)}, "a label or split is none that there is"),
        ({"splits": np.full(50, 4, np.uint8)}, "a label or split is none that there is"),
    ],
)
def test_what_no_cache_says_is_refused(
    tmp_path: Path,
    make_contents: Callable[..., Contents],
    write: Callable[..., None],
    X: np.ndarray,
    change: dict[str, Any],
    words: str,
) -> None:
    """Under checksums that hold."""
    write(tmp_path / "c.h5", dataclasses.replace(make_contents(), **change), X)
    with pytest.raises(CacheError, match=words):
        open_cache(tmp_path / "c.h5").ids


def test_unknown_splits_are_named(make_cache: Make) -> None:
    with pytest.raises(CacheError, match="'dev'.*none, train, val, test"):
        open_cache(make_cache()).split("dev")


def test_float16_is_served_as_float16(
    tmp_path: Path, make_contents: Callable[..., Contents], write: Callable[..., None], X: np.ndarray
) -> None:
    write(tmp_path / "h.h5", make_contents(dtype="float16"), X)
    cache = open_cache(tmp_path / "h.h5", verify=True)
    assert cache.features.dtype == np.float16
    np.testing.assert_array_equal(cache.features, X.astype(np.float16))


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def _first(batch: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, list[int]]:
    return np.stack([x for x, _ in batch]), [y for _, y in batch]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create 8 worker processes:UserWarning")  # on fewer cores
@pytest.mark.parametrize(
    ("workers", "method"),
    [
        (0, "fork"),
        (2, "fork"),
        (2, "forkserver"),
        pytest.param(2, "spawn", marks=pytest.mark.slow),
        *(pytest.param(8, method, marks=pytest.mark.slow) for method in ("fork", "spawn", "forkserver")),
    ],
)
def test_torch_loads_the_same_bytes_with_any_kind_and_number_of_workers(
    make_cache: Make, X: np.ndarray, method: str, workers: int
) -> None:
    """A map-style dataset for DataLoader; the map has been touched before the workers start."""
    from torch.utils.data import DataLoader

    train = open_cache(make_cache()).split("train")
    assert train.X[0, 0] == X[0, 0]
    context = {"multiprocessing_context": method} if workers else {}
    batches = list(DataLoader(train, batch_size=5, num_workers=workers, collate_fn=_first, **context))  # type: ignore[arg-type, call-overload, var-annotated]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), X[: len(train)])
    assert [y for _, ys in batches for y in ys] == train.y.tolist()


def test_features_hand_over_to_torch_and_scikit_learn_without_a_copy(make_cache: Make) -> None:
    import torch
    from sklearn.utils import check_array

    train = open_cache(make_cache()).split("train")
    assert np.shares_memory(check_array(train.X), train.cache.features)
    # torch warns that the map is read-only, which is meant; nothing is copied.
    with pytest.warns(UserWarning, match="not writable"):
        tensor = torch.from_numpy(train.X)
    assert tensor.data_ptr() == train.X.ctypes.data


COLUMNS = {"width": ["8"] * 50, "a/b %2F": [f"\u4e2d{i}" for i in range(50)], ".": [""] * 50, "\xe4": ["\udcff"] * 50}


def with_columns(folder: Path, made: Contents, X: np.ndarray, columns: dict[str, list[str]]) -> Path:
    path = folder / "c.h5"
    create_partial(path, dataclasses.replace(made, columns=columns))
    with Writer(path) as writer:
        for block in range(len(writer.done)):
            start, stop = writer.span(block)
            writer.write_block(block, X[start:stop], made.digests[start:stop], np.ones(stop - start, np.uint8))
        writer.publish()
    return path


def test_columns_of_any_name_and_text_come_back(tmp_path: Path, made: Contents, X: np.ndarray) -> None:
    path = with_columns(tmp_path, made, X, COLUMNS)
    assert open_cache(path, verify=True).columns == COLUMNS
    with h5py.File(path) as file:
        assert "a%2Fb %252F" in file["/items/columns"]


def test_a_cache_without_columns_is_what_it_was(make_cache: Make) -> None:
    path = make_cache()
    assert open_cache(path).columns == {}
    with h5py.File(path) as file:
        assert "columns_sha256" not in file.attrs and "columns" not in file["/items"]


@pytest.mark.parametrize("name", ["text", "end"])
def test_a_damaged_column_is_found_when_it_is_asked_for(
    tmp_path: Path, made: Contents, X: np.ndarray, name: str
) -> None:
    path = with_columns(tmp_path, made, X, {"width": ["18"] * 50})
    with h5py.File(path, "r+") as file:
        file[f"/items/columns/width/{name}"][7] += 1
    with pytest.raises(CacheError, match="columns do not match their checksum: damaged"):
        open_cache(path).columns
