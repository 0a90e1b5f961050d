"""Bytes flipped and cut at random: right rows or a CacheError, never a crash or a wrong row."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import CacheError
from pipeline.store import Cache, open_cache


def read_all(path: Path) -> dict[str, object]:
    """Everything that a user of the cache gets to see of its rows."""
    cache: Cache = open_cache(path, verify=True)
    return {
        "ids": cache.ids,
        "classes": cache.classes,
        "provenance": cache.provenance,
        "digests": cache.digests,
        "states": cache.states,
        "splits": cache.splits,
        "sizes": cache.stats[0],
        "times": cache.stats[1],
        **{
            f"{split} {part}": getattr(cache.split(split), part)
            for split in ("train", "val", "test")
            for part in ("X", "y", "ids")
        },
    }


def hurt(sound: bytes, chance: random.Random) -> bytes:
    """One to four flipped bits, a run of other bytes, or a cut."""
    kind, blob = chance.random(), bytearray(sound)
    if kind < 0.15:
        return bytes(blob[: chance.randrange(len(blob))])
    if kind < 0.3:
        start, length = chance.randrange(len(blob)), chance.randrange(1, 64)
        blob[start : start + length] = chance.randbytes(len(blob[start : start + length]))
    # Half of the flips fall into the parts that say where things are, which lie outside of the rows.
    for _ in range(chance.randrange(1, 5)):
        place = chance.randrange(len(blob)) if chance.random() < 0.5 else chance.randrange(4096)
        blob[place] ^= 1 << chance.randrange(8)
    return bytes(blob)


def fuzz(path: Path, cases: int) -> dict[str, int]:
    sound, truth, chance = path.read_bytes(), read_all(path), random.Random(0)
    seen = {"refused": 0, "right": 0}
    for _ in range(cases):
        path.write_bytes(hurt(sound, chance))
        try:
            got = read_all(path)
        except CacheError:
            seen["refused"] += 1
            continue
        for name, expected in truth.items():
            found = np.asarray(got[name])
            # Sizes and times are a shortcut: damaged ones count as unknown.
            known = (found != -1) if name in ("sizes", "times") else np.ones(found.shape, bool)
            assert found.shape == np.shape(expected), name
            assert np.array_equal(found[known], np.asarray(expected)[known]), name
        seen["right"] += 1
    return seen


def test_damage_is_refused_or_does_no_harm(make_cache: Callable[..., Path]) -> None:
    seen = fuzz(make_cache(), 150)
    assert seen["refused"] > 75, seen


@pytest.mark.slow
def test_damage_is_refused_or_does_no_harm_4000_times(make_cache: Callable[..., Path]) -> None:
    seen = fuzz(make_cache(), 4000)
    print(seen)
    assert seen["refused"] > 2000, seen
