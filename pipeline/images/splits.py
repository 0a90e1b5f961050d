"""Which images train, which select, which test, where the source does not say it itself.

Knows labels, explicit splits and content digests. Images are told apart by content, never by name or place, so that
copies of one image never fall on two sides and a renamed folder keeps its splits.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ConfigError
from pipeline.base.items import NONE, SPLITS, TEST, TRAIN, VAL
from pipeline.base.spelling import option
from pipeline.base.words import many
from pipeline.images.digests import NO_DIGEST
from pipeline.images.listing import Listing

_CARVED = (VAL, TEST)
_SMALLEST = 3  # distinct images a class needs before any of them is taken away from train


@dataclass(frozen=True, eq=False)
class SplitPlan:
    """``splits`` (N,) uint8 for each image of the listing, what was done in words, and whether anything was carved."""

    splits: NDArray[np.uint8]
    notes: tuple[str, ...]
    carved: bool


def needs_carving(listing: Listing) -> bool:
    """True when val or test is missing and there are labelled images to carve it from: digests are then needed."""
    return bool(_pool(listing).any()) and bool(_missing(listing))


def assign_splits(
    listing: Listing,
    digests: NDArray[np.uint8] | None,
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> SplitPlan:
    """The source's own splits, with a missing val or test carved from train, stratified by class and by content.

    Within each class the distinct digests are ordered by SHA-256(seed ":" digest); the first round(fraction * n) go to
    val, the next to test, at least one each where the class has three distinct images or more; a smaller class stays in
    train. All copies of an image land together, also those with other labels. Images whose copy is already in the
    source's own val or test stay where they are. The outcome does not depend on the listing's order or names.

    Args:
        listing: the source's images.
        digests: (N, 32) uint8; may be None when :func:`needs_carving` says False.
        val_fraction: share of the distinct train images for a missing val; 0 carves none.
        test_fraction: the same for a missing test.
        seed: another seed gives another draw.

    Raises:
        ConfigError: a fraction outside [0, 1), or two that leave nothing for train.
    """
    fractions = {VAL: val_fraction, TEST: test_fraction}
    _check_fractions(fractions)
    splits = listing.splits.copy()
    wanted = {s: fractions[s] for s in _missing(listing) if fractions[s] > 0}
    pool = _pool(listing)
    if not pool.any() or not _missing(listing):
        return SplitPlan(splits, (), carved=False)
    unsplit = not (listing.splits != NONE).any()
    splits[pool] = TRAIN
    small: list[int] = []
    if wanted:
        if digests is None or digests.shape != (len(listing), len(NO_DIGEST)):
            raise ValueError(f"digests must have the shape ({len(listing)}, {len(NO_DIGEST)}) to carve splits")
        moved, small = _carve(listing, digests, pool, wanted, seed)
        for i, split in moved.items():
            splits[i] = split
    counts = {s: int((splits[pool] == s).sum()) for s in (TRAIN, VAL, TEST)}
    notes = _notes(listing, counts, fractions, seed, unsplit=unsplit, small=small)
    return SplitPlan(splits, notes, carved=bool((splits[pool] != TRAIN).any()))


def _pool(listing: Listing) -> NDArray[np.bool_]:
    """(N,) bool: labelled images that may be moved: those of train, or all when the source has no splits."""
    movable = TRAIN if (listing.splits != NONE).any() else NONE
    return np.asarray((listing.labels >= 0) & (listing.splits == movable))


def _missing(listing: Listing) -> list[int]:
    return [s for s in _CARVED if not ((listing.splits == s) & (listing.labels >= 0)).any()]


def _check_fractions(fractions: dict[int, float]) -> None:
    for split, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise ConfigError(f"{option(f'{SPLITS[split]}_fraction')} is {fraction}: it must be at least 0 and below 1")
    if not sum(fractions.values()) < 1:
        both = " + ".join(f"{fraction:g}" for fraction in fractions.values())
        raise ConfigError(
            f"{option('val_fraction')} and {option('test_fraction')} add up to {both}: leave something for "
            "train (sum below 1)"
        )


def _carve(
    listing: Listing, digests: NDArray[np.uint8], pool: NDArray[np.bool_], wanted: dict[int, float], seed: int
) -> tuple[dict[int, int], list[int]]:
    """(image -> its new split, classes too small to give any away)."""
    content = [row.tobytes() for row in np.ascontiguousarray(digests)]
    held = {content[i] for i in np.flatnonzero((listing.splits == VAL) | (listing.splits == TEST))}
    held.add(NO_DIGEST)  # an unreadable file is no image to select or test on
    copies: dict[bytes, list[int]] = {}
    members: dict[int, set[bytes]] = {}
    for i in np.flatnonzero(pool):
        if content[i] not in held:
            copies.setdefault(content[i], []).append(int(i))
            members.setdefault(int(listing.labels[i]), set()).add(content[i])
    side: dict[bytes, int] = {}
    small: list[int] = []
    # Smallest class first: an image with labels of two classes is then dealt out by the class that can least spare it.
    for c, distinct in sorted(members.items(), key=lambda entry: (len(entry[1]), listing.classes[entry[0]])):
        if len(distinct) < _SMALLEST:
            small.append(c)
        _deal(distinct, side, _quotas(len(distinct), wanted), seed)
    return {i: side[d] for d, images in copies.items() for i in images if side[d] != TRAIN}, sorted(small)


def _deal(distinct: set[bytes], side: dict[bytes, int], quotas: dict[int, int], seed: int) -> None:
    """Give each of a class's digests a side; those that an earlier class has placed count towards the quotas."""
    salt = f"{seed}:".encode()
    free = sorted((d for d in distinct if d not in side), key=lambda d: hashlib.sha256(salt + d).digest())
    placed = [side[d] for d in distinct if d in side]
    start = 0
    spare = len(distinct) - (sum(s != TRAIN for s in placed)) - 1  # one distinct image must be left for train
    for split, quota in quotas.items():
        n = max(0, min(quota - placed.count(split), len(free) - start, spare))
        side.update(dict.fromkeys(free[start : start + n], split))
        start, spare = start + n, spare - n
    side.update(dict.fromkeys(free[start:], TRAIN))


def _quotas(n: int, wanted: dict[int, float]) -> dict[int, int]:
    """How many of ``n`` distinct images each wanted split gets; at least one, and at least one left for train."""
    if n < _SMALLEST:
        return dict.fromkeys(wanted, 0)
    quotas = {split: max(1, math.floor(fraction * n + 0.5)) for split, fraction in wanted.items()}
    while sum(quotas.values()) > n - 1:
        largest = max(quotas, key=lambda split: quotas[split])
        quotas[largest] -= 1
    return quotas


def _notes(
    listing: Listing, counts: dict[int, int], fractions: dict[int, float], seed: int, *, unsplit: bool, small: list[int]
) -> tuple[str, ...]:
    """What is said of images that were dealt out; ``counts``: how many are now in each split."""
    total = sum(counts.values())
    notes = []
    if unsplit:
        shares = ", ".join(f"{fractions[s] * 100:g} % {SPLITS[s]}" for s in _CARVED)
        parts = ", ".join(f"{n:,} {SPLITS[s]}" for s, n in counts.items())
        notes.append(
            f"no splits in the source: {many(total, 'image')} divided by content into {parts} ({shares}, seed {seed})"
        )
    else:
        notes += [
            f"no {SPLITS[s]} split in the source: {counts[s]:,} of {total:,} train images set aside as {SPLITS[s]} "
            f"({fractions[s] * 100:g} %, seed {seed})"
            for s in _missing(listing)
        ]
    if small:
        named = ", ".join(repr(listing.classes[c]) for c in small[:3]) + (" ..." if len(small) > 3 else "")
        notes.append(f"classes with fewer than {_SMALLEST} distinct images stay in train whole: {len(small)} ({named})")
    return tuple(notes)
