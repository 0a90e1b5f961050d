"""The file format: what h5py alone finds, and what decides identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import h5py

from pipeline.base.items import ITEM_STATES
from pipeline.store import difference, key_of
from pipeline.store.format import DATASETS, FORMAT, FORMAT_VERSION


def test_h5py_alone_finds_the_published_layout(make_cache: Callable[..., Path]) -> None:
    path = make_cache()
    found: dict[str, h5py.Dataset] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, o: found.update({"/" + name: o}) if isinstance(o, h5py.Dataset) else None)
        assert set(found) == DATASETS
        features = found["/features"]
        assert (features.shape, features.dtype, features.chunks, features.compression) == ((50, 8), "<f4", None, None)
        assert features.id.get_offset() % 4096 == 0
        assert found["/items/digest"].shape == (50, 32)
        assert h5py.check_enum_dtype(found["/items/state"].dtype) == ITEM_STATES
        assert found["/labels/y"].dtype == "<i8"
        assert found["/labels/split"].dtype == "u1"
        assert found["/items/id"][3] == b"a/\xff\n0003 \xf0\x9f\x90\x9d.png"
        assert [c.decode() for c in found["/labels/classes"][:]] == ["ñ", "a", "b"]
        assert found["/blocks/state"][:].tolist() == [1, 1, 1, 1]
        assert found["/blocks/crc32"].dtype == "<u4"
        assert file.attrs["format"].decode() == FORMAT
        assert file.attrs["format_version"] == FORMAT_VERSION
        assert file.attrs["block_rows"] == 16
        assert hashlib.sha256(file.attrs["provenance"]).hexdigest() == file.attrs["key"].decode()
        assert "torch" in json.loads(file.attrs["versions"])


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
