"""Which images a prediction is asked for: paths, folders, patterns, manifests, sources, lists of them, pixels.

Knows names and what lies on the disk. Opens no image.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from pipeline import images
from pipeline.base.errors import DataError
from pipeline.base.workspace import Workspace
from pipeline.images import IMAGE_EXTENSIONS, Files, ImageFailure, Images
from pipeline.images.memory import picture_of

STANDARD_INPUT = "-"
FILES = Files("")  # by their paths as they were given
_ANY_DEPTH = b"**"
_ENDINGS = tuple(e.encode() for e in IMAGE_EXTENSIONS)


@dataclass(frozen=True)
class Unusable:
    """What was asked for by a name that gives no image, and why: an image that cannot be read."""

    reason: str
    place: str = ""

    def there(self) -> bool:
        """There is nothing."""
        return False

    def read(self, item: bytes) -> bytes:  # noqa: ARG002
        """Raises ImageFailure with the reason."""
        raise ImageFailure("unreadable", self.reason)

    def stat(self, item: bytes) -> tuple[int, int]:  # noqa: ARG002
        """As :meth:`read`."""
        raise ImageFailure("unreadable", self.reason)

    def name(self, item: bytes) -> str:
        """As it was asked for."""
        return os.fsdecode(item)


class Asked(NamedTuple):
    """One image that a prediction is asked for: ``item`` is its id among ``images``, or its name as a ``picture``."""

    images: Images | None
    item: bytes
    picture: Image.Image | None = None

    @property
    def name(self) -> str:
        """What it is called in what is told of it: its path."""
        return os.fsdecode(self.item) if self.images is None else self.images.name(self.item)


def find_images(asked: Sequence[Any], desk: Workspace) -> list[Asked]:
    """The images meant: files as they are, those below folders in the order of their names, standard input's, sources'.

    A CSV, TSV or text file is a manifest; what is no file's name is a pattern where it has ``*``, ``?`` or ``[``. What
    a folder holds besides is told.

    What is named among others and gives no image is one that fails, with its reason: the others are predicted.

    Raises:
        DataError: a path on the command line that is not there, a pattern that fits nothing, a folder or source without
            images, where nothing else is asked for; or what is no image in memory.
    """
    found: list[Asked] = []
    for number, one in enumerate(asked):
        if not isinstance(one, str):
            picture = picture_of(one, f"image {number}")
            name = getattr(picture, "filename", "") or f"image {number}"
            found.append(Asked(None, os.fsencode(name), picture))
        elif one == STANDARD_INPUT:
            # A list goes stale while it is made: what is gone becomes a row with its reason, as a corrupt image does.
            lines = [line for line in sys.stdin.buffer.read().splitlines() if line.strip()]
            for line in lines:
                found += _named(os.fsdecode(line), desk) if os.path.isdir(line) else [Asked(FILES, line)]
        else:
            try:
                found += _named(one, desk)
            except DataError as error:
                if len(asked) == 1:
                    raise
                found.append(Asked(Unusable(str(error)), os.fsencode(one)))
    if not found:
        raise DataError("no images: standard input named none")
    return found


def _named(name: str, desk: Workspace) -> list[Asked]:
    path = os.fsencode(name)
    if os.path.isdir(path):
        below = images.walk(path)
        if skipped := images.skip_summary(below.skipped):
            desk.watch.say(f"{images.shown(path)}: {skipped}")
        for warning in images.passed_over(below.skipped):
            desk.watch.warn(f"{images.shown(path)}: {warning}")
        if not below.files:
            raise DataError(f"{name!a} holds no images: give a folder with {', '.join(sorted(IMAGE_EXTENSIONS))}")
        return [Asked(FILES, os.path.join(path, file)) for file in sorted(f.path for f in below.files)]
    if os.path.isfile(path):
        return _of_manifest(path, desk) if images.is_manifest(name) else [Asked(FILES, path)]
    if images.is_source(name):
        listing = images.list_source(name, desk, to_learn=False)
        return [Asked(listing.images, item) for item in listing.ids]
    if not os.path.lexists(path) and re.search(r"[*?[]", name):
        return [Asked(FILES, file) for file in _fitting(path)]
    what = "is neither a file nor a folder" if os.path.lexists(path) else "is not there"
    raise DataError(f"{name!a} {what}: give image files or folders")


def _of_manifest(path: bytes, desk: Workspace) -> list[Asked]:
    """The images of its rows, in their order; one whose file is not there becomes a row with its reason."""
    manifest = images.read_manifest(path, wanted=("path",))
    for line in manifest.said:
        desk.watch.say(line)
    return [Asked(manifest.images, row.path) for row in manifest.rows]


def _fitting(pattern: bytes) -> list[bytes]:
    """The image files whose paths fit a pattern, in the order of their names; ``**`` is folders of any depth.

    Raises:
        DataError: there are none.
    """
    before, any_depth, after = _parted(pattern)
    if any_depth:
        folders = [folder for folder in glob.glob(before or b".") if os.path.isdir(folder)]
        paths = [
            os.path.join(folder, file.path) if before else file.path
            for folder in folders
            for file in images.walk(folder).files
            if _fits(file.path.split(b"/"), after)
        ]
        others = False
    else:
        found = glob.glob(pattern)
        paths = [path for path in found if os.path.isfile(path) and path.lower().endswith(_ENDINGS)]
        others = bool(found)
    if not paths:
        what = "only folders and files that are no images" if others else "nothing"
        raise DataError(f"{os.fsdecode(pattern)!a} is not there, and as a pattern it fits {what}: ** is for any depth")
    return sorted(set(paths))


def _parted(pattern: bytes) -> tuple[bytes, bool, list[bytes]]:
    """What stands before the first ``**``, whether there is one, and the parts from it on."""
    parts = pattern.split(b"/")
    if _ANY_DEPTH not in parts:
        return pattern, False, []
    at = parts.index(_ANY_DEPTH)
    before = b"/".join(parts[:at])
    return (before or b"/") if at else b"", True, parts[at:]


def _fits(path: Sequence[bytes], pattern: Sequence[bytes]) -> bool:
    """Whether the parts of a path are those of a pattern."""
    if not pattern:
        return not path
    if pattern[0] == _ANY_DEPTH:
        rest = pattern[1:] or [b"*"]
        return any(_fits(path[start:], rest) for start in range(len(path)))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and _fits(path[1:], pattern[1:])
