"""The file format: what h5py alone finds, and what decides identity."""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.base.items import ITEM_STATES
from pipeline.store import difference, format, key_of
from pipeline.store.format import (
    BATCH,
    DATASETS,
    FORMAT,
    FORMAT_VERSION,
    Texts,
    finite_and_zero,
    pack,
    repeated,
    texts_sha256,
    unpack,
)


def test_h5py_alone_finds_the_published_layout(make_cache: Callable[..., Path]) -> None:
    path = make_cache()
    found: dict[str, h5py.Dataset] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, o: found.update({"/" + name: o}) if isinstance(o, h5py.Dataset) else None)
        assert set(found) == DATASETS | {BATCH}
        features = found["/features"]
        assert (features.shape, features.dtype, features.chunks, features.compression) == ((50, 8), "<f4", None, None)
        assert features.id.get_offset() % 4096 == 0
        assert found["/items/digest"].shape == (50, 32)
        assert h5py.check_enum_dtype(found["/items/state"].dtype) == ITEM_STATES
        assert found["/labels/y"].dtype == "<i8"
        assert found["/labels/split"].dtype == "u1"
        texts, ends = found["/items/id/text"][:].tobytes(), [0, *found["/items/id/end"][:]]
        assert texts[ends[3] : ends[4]] == b"a/\xff\n0003 \xf0\x9f\x90\x9d.png"
        texts, ends = found["/labels/classes/text"][:].tobytes(), [0, *found["/labels/classes/end"][:]]
        assert [texts[a:b].decode() for a, b in itertools.pairwise(ends)] == ["ñ", "a", "b"]
        assert found["/blocks/state"][:].tolist() == [1, 1, 1, 1]
        assert (found[BATCH].dtype, found[BATCH][:].tolist()) == ("<i8", [0, 0, 0, 0])
        digests, states = found["/items/digest"][:], found["/items/state"][:].astype("u1")
        for block in range(4):
            rows = slice(16 * block, 16 * block + 16)
            assert found["/blocks/crc32"][block] == zlib.crc32(features[rows].tobytes())
            assert found["/blocks/items_crc32"][block] == zlib.crc32(digests[rows].tobytes() + states[rows].tobytes())
            times = found["/items/mtime_ns"][rows].tobytes()
            assert found["/blocks/stats_crc32"][block] == zlib.crc32(found["/items/size"][rows].tobytes() + times)
        assert file.attrs["format"].decode() == FORMAT
        assert file.attrs["format_version"] == FORMAT_VERSION
        assert file.attrs["block_rows"] == 16
        assert hashlib.sha256(file.attrs["provenance"]).hexdigest() == file.attrs["key"].decode()
        assert "torch" in json.loads(file.attrs["versions"])


@pytest.mark.parametrize("at_once", [1, 2, 65536])
def test_texts_come_out_as_they_went_in_and_their_hash_is_of_each_behind_its_length(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(format, "AT_ONCE", at_once)
    for texts in ([b"a", b"", b"\xff\n\0", b"a" * 3000], [b""], []):
        assert unpack(*pack(texts)) == texts
        digest = hashlib.sha256()
        for text in texts:
            digest.update(len(text).to_bytes(8, "little") + text)
        assert texts_sha256(*pack(texts)) == digest.hexdigest()
    assert repeated(*pack([b"a", b"b", b"a"])) and not repeated(*pack([b"a", b"ab", b"b"]))
    for texts in ([b"", b"\0", b"\0\0", b"ab", b"ba", b"c"], [b""], []):
        assert not repeated(*pack(texts))
        assert repeated(*pack([b"ab", *texts, b"abc" * 99, b"ab"]))


def test_texts_seem_repeated_hardly_ever_and_then_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(format, "unpack", lambda text, end: made.append(len(end)) or unpack(text, end))
    many = [b"class%03d/IMG_%06d.JPEG" % (i % 100, i) for i in range(200_000)]
    assert not repeated(*pack(many)) and not made  # not one of them is made as an object
    monkeypatch.setattr(format, "_hashes", lambda text, end, drawn: np.zeros(len(end), np.uint64))
    assert not repeated(*pack(many[:10])) and repeated(*pack([*many[:10], many[3]])) and made == [10, 11]


def test_packed_texts_are_a_sequence_of_those_that_were_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format, "AT_ONCE", 2)
    texts = [b"a", b"", b"\xff\n\0", b"a" * 300, b""]
    packed = Texts(*pack(texts))
    assert list(packed) == texts and [packed[i] for i in range(-5, 5)] == texts + texts
    assert packed[1:4] == texts[1:4] and packed[::-2] == texts[::-2] and len(packed) == 5
    assert packed == texts and packed == Texts(*pack(texts)) and texts == packed
    assert packed != texts[:4] and packed != [*texts[:4], b"x"] and packed != Texts(*pack([*texts[:4], b"x"]))
    assert b"\xff\n\0" in packed and b"b" not in packed
    with pytest.raises(IndexError):
        packed[5]


def test_a_float16_row_of_2048_features_is_one_page(make_cache: Callable[..., Path]) -> None:
    path = make_cache(rows=4, dtype="float16", dim=2048)
    with h5py.File(path) as file:
        assert file["/features"].id.get_offset() % 4096 == 0
        assert file["/features"].id.get_storage_size() == 4 * 4096


def test_the_key_covers_every_value_and_no_order() -> None:
    assert key_of({"a": 1, "b": {"c": 2}}) == key_of({"b": {"c": 2}, "a": 1})
    assert key_of({"a": 1, "b": {"c": 2}}) != key_of({"a": 1, "b": {"c": 3}})


def test_the_difference_names_fields_by_their_path() -> None:
    left, right = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 5}, "e": 0}
    assert difference(left, right) == [("b.c", 2, 5), ("b.d", 3, None), ("e", None, 0)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_finite_and_zero_rows_are_told_by_their_bits(dtype: type) -> None:
    top, least = np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal
    cells = [0, 0], [0, -0.0], [1, 0], [top, -top], [least, 0], [np.inf, 1], [0, -np.inf], [np.nan, 0]
    rows = np.array(cells, dtype)
    finite, zero = finite_and_zero(rows)
    assert finite.tolist() == np.isfinite(rows).all(axis=1).tolist()
    assert zero.tolist() == (~rows.any(axis=1)).tolist()
