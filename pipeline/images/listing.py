"""The answer of every source of images: which there are, in which order, of which class and split; and their bytes.

Knows names, labels, splits and sizes. Knows nothing of where they came from and never opens an image.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import DataError
from pipeline.base.items import SPLITS, TEST, TRAIN, VAL
from pipeline.base.words import many
from pipeline.images.formats import NOT_HERE, NOT_READ, passed_over

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VAL),
    **dict.fromkeys(("test", "testing"), TEST),
}
"""Lower-case words that a folder or a manifest may use for a split."""

UNLABELLED = -1

_NAMED_AT_MOST = 3  # offenders that one line of an error can hold


class Images(Protocol):
    """The images of a listing or of a finished cache by their ids, wherever they lie; many threads ask at once."""

    @property
    def place(self) -> str:
        """Where they lie, in words that the source opens them by again: a cache keeps it as its ``root``."""

    def there(self) -> bool:
        """Whether the place is still there; of single images it says nothing."""

    def read(self, item: bytes) -> bytes:
        """The image's bytes.

        Raises:
            ImageFailure: it vanished or cannot be read.
        """

    def stat(self, item: bytes) -> tuple[int, int]:
        """Size in bytes and time of last change in nanoseconds, now; reads nothing.

        Raises:
            ImageFailure: it vanished or cannot be looked at.
        """

    def name(self, item: bytes) -> str:
        """What people call the image: for a file its path."""


class Item(NamedTuple):
    """One image as a source found it; ``label`` is None where the source gives none."""

    id: bytes
    label: str | None
    split: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of one source, sorted by the bytes of their ids.

    ``labels`` (N,) int64 indexes ``classes``, -1 is unlabelled; ``splits`` (N,) uint8 indexes ``SPLITS``, 0 where the
    source does not say; ``sizes`` in bytes and ``mtimes_ns`` are (N,) int64, a time of -1 is unknown: the file is so
    new that a later change could leave the same time. ``images`` reads them. ``skipped`` maps a reason to the paths, as
    ids are, that were left out for it; ``missing`` are ids that the source names though they are not there (an image
    without bytes: it fails when it is read); ``warnings`` are for the user to look at; ``columns`` are those of a
    manifest that have no meaning here, each with N cells.
    """

    source: str
    name: str
    images: Images
    ids: list[bytes]
    labels: NDArray[np.int64]
    splits: NDArray[np.uint8]
    classes: tuple[str, ...]
    sizes: NDArray[np.int64]
    mtimes_ns: NDArray[np.int64]
    skipped: dict[str, list[bytes]]
    notes: tuple[str, ...]
    missing: tuple[bytes, ...] = ()
    warnings: tuple[str, ...] = ()
    columns: Mapping[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)


def assemble(
    items: Iterable[Item],
    *,
    source: str,
    name: str,
    images: Images,
    skipped: Mapping[str, list[bytes]],
    notes: Iterable[str] = (),
) -> Listing:
    """Sort the items, and number the classes.

    Raises:
        DataError: no image.
    """
    ordered = sorted(items)
    if not ordered:
        unread = passed_over(skipped)
        found = skip_summary(skipped) or ("the folder is empty" if not unread else "")
        why = "; ".join(part for part in (found, *unread) if part)
        raise DataError(f"{shown_source(source)}: no images found ({why}): {LEGAL_FORMS}")
    classes = tuple(sorted({item.label for item in ordered if item.label is not None}))
    number = {label: i for i, label in enumerate(classes)}
    labels = [UNLABELLED if item.label is None else number[item.label] for item in ordered]
    return Listing(
        source=source,
        name=safe_name(name),
        images=images,
        ids=[item.id for item in ordered],
        labels=np.array(labels, np.int64),
        splits=np.array([item.split for item in ordered], np.uint8),
        classes=classes,
        sizes=np.array([item.size for item in ordered], np.int64),
        mtimes_ns=np.array([item.mtime_ns for item in ordered], np.int64),
        skipped={reason: sorted(paths) for reason, paths in sorted(skipped.items()) if paths},
        notes=tuple(notes),
    )


FOLDER_FORM = "a folder of class folders, a folder with train/ val/ test/, a folder of images"
MANIFEST_FORM = "a CSV manifest with the columns path,label[,split]"
LEGAL_FORMS = f"give {FOLDER_FORM}, or {MANIFEST_FORM}"


def safe_name(name: str) -> str:
    """``name`` with only letters, digits, dot, dash and underscore, for use as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:60] or "images"


def shown(raw: bytes) -> str:
    """A path or class name as text on one line; bytes that are not UTF-8 and control characters become escapes."""
    text = raw.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shown_source(source: str) -> str:
    """A source as the user gave it, fit for one line of a message."""
    return shown(source.encode("utf-8", "surrogateescape"))


def skip_summary(skipped: Mapping[str, list[bytes]]) -> str:
    """What was left out, as words: ``3 skipped as hidden, 1 as not an image``; empty when nothing was.

    But for images that cannot be read: of these ``formats.passed_over`` says more.
    """
    counts = [(len(paths), why) for why, paths in sorted(skipped.items()) if paths and why not in (NOT_HERE, NOT_READ)]
    return ", ".join(f"{n} {'skipped as' if i == 0 else 'as'} {reason}" for i, (n, reason) in enumerate(counts))


def require_learnable(listing: Listing) -> None:
    """Find out before long work whether a head can be learned from what is there, where there are labels.

    Raises:
        DataError: one class only, or a class that can be tested but not trained.
    """
    if len(listing.classes) == 1:
        only, n = listing.classes[0], int((listing.labels >= 0).sum())
        raise DataError(
            f"{shown_source(listing.source)}: one class only ({only!r}, {many(n, 'image')}) and a head needs two or "
            "more: to extract features without labels give the folder of the images itself"
        )
    if not (listing.splits == TRAIN).any():
        return
    # counts[c, s]: images of class c in split s
    counts = np.zeros((len(listing.classes), len(SPLITS)), np.int64)
    known = listing.labels >= 0
    np.add.at(counts, (listing.labels[known], listing.splits[known]), 1)
    lacking = np.flatnonzero((counts[:, TRAIN] == 0) & (counts[:, [VAL, TEST]].sum(axis=1) > 0))
    if lacking.size:
        named = "; ".join(
            f"{listing.classes[c]!r} has {counts[c, TRAIN]} train, {counts[c, VAL]} val, {counts[c, TEST]} test images"
            for c in lacking[:_NAMED_AT_MOST]
        )
        more = f" and {lacking.size - _NAMED_AT_MOST} more" if lacking.size > _NAMED_AT_MOST else ""
        raise DataError(
            f"{shown_source(listing.source)}: a class without train images cannot be learned: {named}{more}: "
            "add train images of it or take it out of val and test (names are compared letter by letter)"
        )
