"""What the commands of upkeep hand back: plain values, no work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Place = tuple[str, str, str]
"""An image in a report: its split, its class or "", its path."""


@dataclass(frozen=True)
class InspectReport:
    """What each cache holds, and of two the fields in which they differ."""

    caches: list[dict[str, Any]]
    difference: dict[str, list[Any]] | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"caches": self.caches, "difference": self.difference}


@dataclass(frozen=True)
class Sample:
    """Rows extracted afresh: how many, the largest difference as a share of its row's largest feature, the limit."""

    rows: int
    max_difference: float
    tolerance: float
    engine: str


@dataclass(frozen=True)
class VerifyReport:
    """What was checked and found right; what is wrong is raised instead. ``changes`` counts and names at most ten."""

    cache: Path
    rows: int
    blocks: int
    failed: int
    source: str | None = None
    changes: dict[str, dict[str, Any]] | None = None
    sample: Sample | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "cache": str(self.cache)}


@dataclass(frozen=True)
class Copies:
    """Groups of good rows with the same bytes; a group is a list of (split, class or "", path).

    ``leaks`` lie in two or more of train, val and test, ``conflicts`` have two or more labels; ``within`` counts the
    surplus copies inside one split, ``in_train`` those of them in train.
    """

    leaks: list[list[Place]]
    conflicts: list[list[Place]]
    within: int
    in_train: int


@dataclass(frozen=True)
class Near:
    """Pairs of different images whose features have a cosine of ``threshold`` or more; those across splits come first.

    ``pairs`` holds (cosine, left, right) of at most ``NEAR_KEPT`` of them; the counts are of all. ``dimensions``: the
    cosine was taken where an upper bound of it in so many dimensions reached the threshold, None where it was taken of
    every pair; ``recall``, the share of such pairs that either way finds, is 1.
    """

    threshold: float
    count: int
    across_splits: int
    conflicting: int
    pairs: list[tuple[float, Place, Place]]
    dimensions: int | None = None
    recall: float = 1.0


@dataclass(frozen=True)
class Alike:
    """The train or val image whose features are most like another image's: its path, its class, the cosine."""

    path: str
    label: str
    cosine: float


@dataclass(frozen=True)
class Suspect:
    """An image whose label looks wrong: ``number`` and ``label`` are the class it carries, ``proposed`` the likeliest.

    ``self_confidence`` is the probability of its label by heads that did not learn from it, ``margin`` that less the
    probability of the likeliest other class. ``alike`` is there where the image most like it, copies apart, has another
    label.
    """

    path: str
    split: str
    number: int
    label: str
    proposed: str
    self_confidence: float
    margin: float
    alike: Alike | None


@dataclass(frozen=True)
class Pair:
    """Images that carry ``label`` and seem to be of the class ``other``: counted surely, and estimated of all."""

    label: str
    other: str
    counted: int
    estimated: float


@dataclass(frozen=True)
class Trial:
    """How many of the labels ``flipped`` for a trial are among the ``listed`` suspects that are found then.

    ``among_first`` of as many suspects as were flipped, the most suspect ones.
    """

    flipped: int
    found: int
    listed: int
    among_first: int


@dataclass(frozen=True)
class Labels:
    """What cross-validated exact heads say of ``rows`` labels; ``suspects`` the most suspect first, ``pairs`` the most.

    ``C`` is the penalty, which of ``chosen_from`` the left-out rows have chosen by log-loss; ``accuracy`` that of its
    heads on them.
    ``share`` of the labels is estimated to be wrong, ``interval`` its 95 % interval; what the heads confuse counts as
    well. Classes ``omitted`` have too few images to be judged. ``trial`` says how good such a list is, where there are
    images enough to try it. ``test`` holds the same of test rows by the head of train and val, where asked for: there
    ``folds`` is 0, ``seen`` counts those that are not judged as they are in train or val, too, by their bytes or their
    group, and ``scored_before`` says how many other runs had been scored on them.
    """

    rows: int
    folds: int
    C: float
    chosen_from: int
    accuracy: float
    share: float
    interval: tuple[float, float]
    suspects: list[Suspect]
    pairs: list[Pair]
    omitted: list[str]
    trial: Trial | None = None
    test: Labels | None = None
    seen: int = 0
    scored_before: int | None = None


@dataclass(frozen=True)
class AuditReport:
    """Everything found, of the cache as it is now (after ``--drop-leaks``); ``findings`` are the warnings' words.

    ``labels`` is there where they were asked for, and ``suspects`` the file that names those that look wrong.
    """

    cache: Path
    rows: int
    classes: dict[str, dict[str, int]]
    unlabelled: int
    imbalance: float | None
    copies: Copies
    empty: dict[str, list[str]]
    tiny: dict[str, list[str]]
    failed: dict[str, str]
    near: Near | None
    dropped: list[str]
    findings: list[str]
    labels: Labels | None = None
    suspects: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        suspects = None if self.suspects is None else str(self.suspects)
        return {**dataclasses.asdict(self), "cache": str(self.cache), "suspects": suspects}


@dataclass(frozen=True)
class RelabelResult:
    """What became of the rows: how many have another class, split or path than before, which were dropped.

    ``copied`` rows are copies of an image that the cache had fewer of; ``written`` is False where nothing differed.
    """

    cache: Path
    rows: int
    relabelled: int
    resplit: int
    renamed: int
    copied: int
    dropped: list[str]
    classes: list[str]
    counts: dict[str, int]
    notes: list[str]
    written: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "cache": str(self.cache)}


@dataclass(frozen=True)
class ListedRun:
    """A run in a list; ``settings`` are those that are not the defaults.

    ``val`` is the accuracy on val, of which ``val_chosen_from`` candidates were chosen from; ``test`` the accuracy on
    ``test_rows`` test images, on which ``scored_before`` other runs had been scored: all None where not known.
    Of several methods in one run there is ``scored_before`` alone, where they were scored on test.
    ``damaged`` says why it cannot be used; ``pretrained`` is False where the features are those of random weights.
    """

    run: Path
    number: int
    stage: str
    data: str
    settings: dict[str, Any]
    val: float | None = None
    val_chosen_from: int = 1
    test: float | None = None
    test_rows: int | None = None
    scored_before: int | None = None
    seconds: float | None = None
    when: str = ""
    note: str = ""
    damaged: str = ""
    pretrained: bool = True


@dataclass(frozen=True)
class ListedCache:
    """A cache in a list; ``size`` is in bytes, ``runs`` are the names of those that learned from it.

    ``made`` says how its features came about: precision and decoding, where not float32 and shrunk while decoding.
    ``damaged`` says why it cannot be used.
    """

    cache: Path
    name: str
    source: str
    trunk: str
    rows: int
    splits: dict[str, int]
    classes: int
    size: int
    runs: tuple[str, ...] = ()
    when: str = ""
    note: str = ""
    damaged: str = ""
    made: str = ""


@dataclass(frozen=True)
class CatalogReport:
    """What was listed, in its order; after a change, what it is now."""

    of: Literal["runs", "caches"]
    rows: tuple[ListedRun | ListedCache, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = [dataclasses.asdict(row) for row in self.rows]
        return {self.of: [{k: str(v) if isinstance(v, Path) else v for k, v in row.items()} for row in plain]}
