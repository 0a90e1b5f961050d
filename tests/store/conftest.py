"""A small cache to read, break and lie about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.store import Contents, Writer, create_partial

ROWS, DIM, BLOCK = 50, 8, 16


def contents(rows: int = ROWS, *, dim: int = DIM, dtype: str = "float32", block_rows: int = BLOCK) -> Contents:
    """Items whose ids hold every awkward byte; splits in runs, as the stage orders them."""
    rng = np.random.default_rng(0)
    return Contents(
        ids=[b"a/\xff\n%04d \xf0\x9f\x90\x9d.png" % i for i in range(rows)],
        digests=rng.integers(0, 256, (rows, 32)).astype(np.uint8),
        sizes=np.arange(rows, dtype=np.int64),
        mtimes_ns=np.arange(rows, dtype=np.int64) * 10,
        labels=np.arange(rows, dtype=np.int64) % 3,
        splits=np.sort(np.arange(rows) % 3 + 1).astype(np.uint8),
        classes=("ñ", "a", "b"),
        dim=dim,
        dtype=dtype,
        block_rows=block_rows,
        provenance={"trunk": {"name": "t"}, "dtype": dtype},
        about={"source": "made", "root": "/nowhere", "notes": []},
    )


def values(rows: int = ROWS, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(rows, dim)).astype(np.float32)


def fill(path: Path, made: Contents, X: np.ndarray, states: np.ndarray | None = None) -> None:
    """Write and publish a cache through the writer."""
    states = np.ones(len(made.ids), np.uint8) if states is None else states
    create_partial(path, made)
    with Writer(path) as writer:
        for block in range(len(writer.done)):
            start, stop = writer.span(block)
            writer.write_block(block, X[start:stop], made.digests[start:stop], states[start:stop])
        writer.publish()


@pytest.fixture
def made() -> Contents:
    return contents()


@pytest.fixture
def X() -> np.ndarray:
    return values()


@pytest.fixture
def write() -> Callable[..., None]:
    return fill


@pytest.fixture
def make_cache(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "made.h5", states: np.ndarray | None = None, **options: object) -> Path:
        made = contents(**options)  # type: ignore[arg-type]
        fill(tmp_path / name, made, values(len(made.ids), made.dim), states)
        return tmp_path / name

    return make


@pytest.fixture
def make_contents() -> Callable[..., Contents]:
    return contents
