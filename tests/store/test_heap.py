"""Texts read by us are the texts that h5py reads."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from pipeline.store import Contents, create_partial, open_partial


def test_strings_of_every_length_are_what_h5py_reads(tmp_path: Path, make_contents: Callable[..., Contents]) -> None:
    """Many collections, lengths around the padding of 8, and one longer than a collection's usual 4096 bytes."""
    from dataclasses import replace

    chance = random.Random(0)
    ids = sorted(
        {bytes(chance.choices(range(1, 256), k=chance.randrange(1, 200))) for _ in range(3000)} | {b"x" * 9000}
    )
    made = make_contents(len(ids))
    partial = create_partial(tmp_path / "a.h5", replace(made, ids=ids))
    ours = open_partial(partial).ids
    with h5py.File(partial) as file:
        assert ours == list(file["/items/id"][:])
    assert ours == ids
    assert np.array_equal(open_partial(partial).labels, made.labels)
