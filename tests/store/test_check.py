"""Hostile and damaged files are refused by name, before anything is allocated."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.base.errors import CacheError
from pipeline.store import open_cache


def remade(name: str, make: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    """Replace one dataset of a sound cache by what ``make`` puts there."""

    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            del file[name]
            make(file)

    return change


def external_link(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["/labels/y"]
        file["/labels/y"] = h5py.ExternalLink("other.h5", "/labels/y")


def soft_link(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["/labels/y"]
        file["/labels/y"] = h5py.SoftLink("/items/size")


def external_storage(file: h5py.File) -> None:
    file.create_dataset("/features", (50, 8), "<f4", external=[("/etc/hostname", 0, 1600)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((50, 8), "<f4")
    layout[:] = h5py.VirtualSource("missing.h5", "x", (50, 8))
    file.create_virtual_dataset("/features", layout)


def huge(file: h5py.File) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    space = h5py.h5s.create_simple((1 << 40, 1 << 20))
    h5py.h5d.create(file.id, b"/features", h5py.h5t.IEEE_F32LE, space, plist)


def heap_text(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["about"] = "{}"


def ends(*values: int) -> Callable[[Path], None]:
    """Where the class names end, made other."""

    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file["/labels/classes/end"][:] = values

    return change


HOSTILE = {
    "external link": (external_link, "link .ExternalLink"),
    "soft link": (soft_link, "link .SoftLink"),
    "external storage": (remade("/features", external_storage), "external storage"),
    "virtual dataset": (remade("/features", virtual), "virtual dataset"),
    "filter": (
        remade("/features", lambda f: f.create_dataset("/features", (50, 8), "<f4", compression="gzip")),
        "filter",
    ),
    "chunked": (
        remade("/features", lambda f: f.create_dataset("/features", (50, 8), "<f4", chunks=True)),
        "contiguous",
    ),
    "huge shape": (remade("/features", huge), "declares .* bytes in a file of"),
    "wrong type": (
        remade("/features", lambda f: f.create_dataset("/features", data=np.ones((50, 8), "i4"))),
        "type int32",
    ),
    "wrong shape": (remade("/labels/y", lambda f: f.create_dataset("/labels/y", data=np.zeros(49, "<i8"))), "49"),
    "big-endian": (
        remade("/labels/y", lambda f: f.create_dataset("/labels/y", data=np.zeros(50, ">i8"))),
        "big-endian",
    ),
    "a group for a dataset": (remade("/labels/y", lambda f: f.create_group("/labels/y")), "not a dataset"),
    "more than the format": (lambda p: add(p, "/extra"), "/extra"),
    "less than the format": (remade("/blocks/crc32", lambda _: None), "/blocks/crc32"),
    "newer version": (lambda p: attribute(p, "format_version", 3), "version 3 is newer than 2"),
    "a version of before": (lambda p: attribute(p, "format_version", 1), "1 was never released: remove it, and"),
    "other format": (lambda p: attribute(p, "format", "something"), "not a feature cache"),
    "text in a heap": (heap_text, "fixed length"),
    "text beyond the texts": (ends(2, 3, 1 << 40), "does not end where it says"),
    "text that ends before it begins": (ends(3, 2, 4), "does not end where it says"),
    "texts of another type": (
        remade("/items/id/text", lambda f: f.create_dataset("/items/id/text", data=np.ones(9, "<i8"))),
        "/items/id/text is int64",
    ),
    "fewer texts than rows": (
        remade("/items/id/end", lambda f: f.create_dataset("/items/id/end", data=np.ones(9, "<i8"))),
        r"/items/id/end is int64 \(9,\)",
    ),
    "a column of fewer texts than rows": (lambda p: column(p, 49), "/items/columns/camera/end"),
    "groups of another shape": (lambda p: add(p, "/items/group"), "/items/group"),
    "targets of another shape": (lambda p: add(p, "/labels/targets"), "/labels/targets"),
    "provenance changed": (
        lambda p: attribute(p, "provenance", "{}"),
        "settings fingerprint .key. is not that of its settings",
    ),
}


def add(path: Path, name: str) -> None:
    with h5py.File(path, "r+") as file:
        file[name] = np.zeros(3)


def column(path: Path, rows: int) -> None:
    with h5py.File(path, "r+") as file:
        file["/items/columns/camera/text"] = np.zeros(rows, "u1")
        file["/items/columns/camera/end"] = np.arange(1, rows + 1)


def test_what_later_versions_may_add_is_known_and_harms_nothing(make_cache: Callable[..., Path]) -> None:
    path = make_cache()
    column(path, 50)
    with h5py.File(path, "r+") as file:
        file["/items/group"] = np.zeros(50, "<i8")
        file["/labels/targets"] = np.zeros((50, 3), "u1")
    assert len(open_cache(path, verify=True)) == 50


def attribute(path: Path, name: str, value: object) -> None:
    with h5py.File(path, "r+") as file:
        if isinstance(value, str):
            file.attrs.create(name, value.encode(), dtype=h5py.string_dtype("utf-8", len(value)))
        else:
            file.attrs[name] = value


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_by_name(make_cache: Callable[..., Path], case: str) -> None:
    change, words = HOSTILE[case]
    path = make_cache()
    change(path)
    with pytest.raises(CacheError, match=words) as refusal:
        open_cache(path).ids
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_file_is_refused(make_cache: Callable[..., Path], share: float) -> None:
    path = make_cache()
    blob = path.read_bytes()
    path.write_bytes(blob[: int(share * len(blob))])
    with pytest.raises(CacheError):
        open_cache(path)


def test_what_is_no_cache_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    with pytest.raises(CacheError, match=r"pipe.h5: it is not a regular file"):
        open_cache(tmp_path / "pipe.h5")
    (tmp_path / "text.h5").write_text("hello, this is no HDF5 file")
    with pytest.raises(CacheError, match="not an HDF5 file"):
        open_cache(tmp_path / "text.h5")
    with pytest.raises(CacheError, match="no feature cache at .*pipeline extract"):
        open_cache(tmp_path / "missing.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(CacheError, match="not a feature cache"):
        open_cache(tmp_path / "other.h5")
