"""What is to be known of rows wherever they are used: those without a label, random features, another precision.

Knows caches, and what runs say of theirs; chooses and counts nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.items import GOOD, NONE, SPLITS
from pipeline.base.watch import Watch
from pipeline.base.words import few, many, percent
from pipeline.base.workspace import Workspace
from pipeline.runs.folder import learned_from_other
from pipeline.store import Cache


def left_out(cache: Cache, splits: Collection[str], watch: Watch, *, to_learn: bool = False) -> None:
    """Say how many good rows of some splits have no label; ``to_learn``: how many have one but are of no split, too."""
    of_splits = np.isin(cache.splits, [SPLITS.index(split) for split in splits])
    bare = int((of_splits & (cache.states == GOOD) & (cache.labels < 0)).sum())
    apart = int(((cache.splits == NONE) & (cache.states == GOOD) & (cache.labels >= 0)).sum()) if to_learn else 0
    found = [(bare, "without a label"), (apart, "with a label, but of no split")]
    if said := ", ".join(f"{many(n, 'row')} {why}" for n, why in found if n):
        watch.say(f"left out: {said}")


def random_features(about: Mapping[str, Any], watch: Watch) -> None:
    """Warn of features that an untrained trunk gives; ``about`` is what the cache says of itself."""
    if about.get("pretrained") is False:
        watch.warn(
            f"the features are those of random weights ({about['weights']}): good for trying things, not for use"
        )


def tell_of_outdated(cache: Cache, desk: Workspace) -> None:
    """Warn of the runs that learned from a cache when it held something else."""
    if stale := learned_from_other(cache.path, cache.content, desk):
        desk.watch.warn(outdated(cache.path, stale))


def outdated(cache: Path, runs: Sequence[str]) -> str:
    """That warning."""
    return f"learned from what {cache.name} held before, and must be trained again: {few(runs)}"


def how_near(found: Mapping[str, Any]) -> str:
    """What the precision check of a cache found, as it stands in what the cache says of itself."""
    return (
        f"against float32 on {many(found['images'], 'image')}: cosine {found['cosine']:.4f} (least "
        f"{found['least_cosine']:.4f}), relative error {percent(found['error'])} (largest "
        f"{percent(found['largest_error'])})"
    )
