"""Caches as a machine with another kind of device makes them, for tests on one that has none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from pipeline import open_cache, store
from pipeline.store.rewrite import kept


def as_made_on(device: str, cache: Path, *, begun: bool = False, precision: str = "float32", **engine: str) -> Path:
    """The cache, of one block, as another kind of device makes it: of its key, and named by that if it was by its own.

    The one that was there goes. ``begun`` leaves the new one without a row; ``engine`` gives its name and version.
    """
    old = open_cache(cache)
    made_by = {
        **old.provenance,
        "precision": precision,
        "engine": {**old.provenance["engine"], "device": device, **engine},
    }
    rows = np.arange(len(old))
    contents = dataclasses.replace(kept(old, rows, "test"), provenance=made_by, about=old.about)
    key = store.key_of(made_by)
    out = cache.with_name(cache.name.replace(old.key[:8], key[:8]))
    store.create_partial(out, contents)
    if not begun:
        with store.Writer(out) as writer:
            writer.write_block(0, np.array(old.features), old.digests, old.states)
            writer.publish()
    if begun or out != cache:
        cache.unlink()
    return out
