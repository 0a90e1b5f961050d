"""Files made to mislead are refused in a moment and with little memory: 5 seconds, 256 MB."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.base.errors import CacheError
from pipeline.store import open_cache

ROOM, SECONDS = 256 << 20, 5
MANY = 1 << 32


def late(shape: tuple[int, ...], dtype: str, file: h5py.File, name: str) -> None:
    """A contiguous dataset of that shape whose bytes are claimed, in a file with holes."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
    h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), plist)


def replaced(name: str, make: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            if name in file:
                del file[name]
            make(file)

    return change


def billions_of_rows(path: Path) -> None:
    """Every dataset has four billion rows, and the file has the size for them: holes."""
    with h5py.File(path, "r+") as file:
        dim = file["features"].shape[1]
        shapes: list[tuple[str, tuple[int, ...], str]] = [
            ("/features", (MANY, dim), "<f4"),
            ("/items/digest", (MANY, 32), "u1"),
            ("/items/size", (MANY,), "<i8"),
            ("/items/mtime_ns", (MANY,), "<i8"),
            ("/labels/y", (MANY,), "<i8"),
            ("/labels/split", (MANY,), "u1"),
            ("/items/id/end", (MANY,), "<i8"),
        ]
        states = file["/items/state"].dtype
        for name, shape, dtype in shapes:
            del file[name]
            late(shape, dtype, file, name)
        del file["/items/state"]
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        kind = h5py.h5t.py_create(states, logical=True)
        h5py.h5d.create(file.id, b"/items/state", kind, h5py.h5s.create_simple((MANY,)), plist)
        blocks = -(-MANY // int(file.attrs["block_rows"]))
        for name, dtype in (("state", "u1"), ("crc32", "<u4"), ("items_crc32", "<u4"), ("stats_crc32", "<u4")):
            del file[f"/blocks/{name}"]
            late((blocks,), dtype, file, f"/blocks/{name}")


def sparse(path: Path) -> None:
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    os.truncate(path, 200 << 30)


def thousands_of_names(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        target = file["labels/y"].id
        for number in range(5_000):
            h5py.h5o.link(target, file["items"].id, b"%06d" % number)


def deep(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        group = file.create_group("/items/columns")
        for _ in range(3000):
            group = group.create_group("a")


def circle(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        columns = file.create_group("/items/columns")
        columns["again"] = file["/items"]
        columns["itself"] = columns


def ends_beyond(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["/items/id/end"][:] = np.arange(1, len(file["/items/id/end"]) + 1) << 55


def nested_about(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        text = b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}"
        file.attrs.create("about", text, dtype=h5py.string_dtype("utf-8", len(text)))


CASES: dict[str, Callable[[Path], None]] = {
    "a sparse file of 200 GB": sparse,
    "billions of rows in holes": billions_of_rows,
    "a compressed 64 GB": replaced(
        "/features",
        lambda f: f.create_dataset("/features", (1 << 21, 1 << 13), "<f4", chunks=(1, 1 << 13), compression="gzip"),
    ),
    "a chunked terabyte": replaced(
        "/features", lambda f: f.create_dataset("/features", (1 << 25, 1 << 13), "<f4", chunks=(1, 1 << 13))
    ),
    "elements of 2 GB": replaced(
        "/labels/y", lambda f: f.create_dataset("/labels/y", (50,), np.dtype(("V", (1 << 31) - 1)), chunks=(1,))
    ),
    "texts of any length": replaced(
        "/items/id", lambda f: f.create_dataset("/items/id", (50,), h5py.string_dtype("utf-8"))
    ),
    "references": replaced("/labels/y", lambda f: f.create_dataset("/labels/y", (50,), h5py.ref_dtype)),
    "thousands of names": thousands_of_names,
    "three thousand groups deep": deep,
    "groups in a circle": circle,
    "ids that end beyond the file": ends_beyond,
    "words nested 30,000 deep": nested_about,
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_made_to_mislead_is_refused_in_little_room_and_time(make_cache: Callable[..., Path], case: str) -> None:
    path = make_cache()
    CASES[case](path)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + ROOM,) * 2)
            try:
                cache = open_cache(path)
                cache.verify()
                word = f"opened: {len(cache.ids)}"
            except CacheError as error:
                word = f"refused: {error}"
            os.write(theirs, word.encode("utf-8", "replace")[:60_000])
        except BaseException as error:
            os.write(theirs, f"raised: {type(error).__name__}: {error}"[:1000].encode("utf-8", "replace"))
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        told = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"ended by signal {-status}"
    assert told.startswith("refused: ") and "\n" not in told, told
    assert len(told) < 600, "one line that can be read"
