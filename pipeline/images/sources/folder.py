"""A folder as a source: split folders of class folders, class folders, or images alone.

Knows what the names and depths of folders mean. Opens no image; the files themselves are found by ``walk``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from pipeline.base.errors import DataError
from pipeline.base.items import NONE, SPLITS
from pipeline.base.workspace import Workspace
from pipeline.images.formats import passed_over
from pipeline.images.listing import FOLDER_FORM, SPLIT_WORDS, Images, Item, Listing, assemble, shown, shown_source
from pipeline.images.sources.files import Files, path_of, real_name
from pipeline.images.sources.walk import Walk, walk

FORM = FOLDER_FORM
_CURE = "say which is meant with a CSV manifest (columns path,label,split), or move the others away"


@dataclass
class _Top:
    """One folder directly under the root: does it hold images itself, and which folders in it hold some."""

    direct: bool = False
    inner: set[bytes] = field(default_factory=set)


def images(spec: str, place: str) -> Images:
    """The files below the place."""
    return Files(place)


def claims(spec: str) -> bool:
    """A folder that is there."""
    return os.path.isdir(path_of(spec))


def listing(spec: str, desk: Workspace) -> Listing:
    """The folder's images, under its own name."""
    path = path_of(spec)
    return list_folder(spec, path, name=real_name(path))


def list_folder(source: str, root: bytes, *, name: str, notes: Iterable[str] = ()) -> Listing:
    """The images under ``root``, with classes and splits read off the folders' names.

    Raises:
        DataError: no images, or folders that can be read in two ways.
    """
    found = walk(root)
    tops: dict[bytes, _Top] = {}
    for file in found.files:
        parts = file.path.split(b"/", 2)
        if len(parts) > 1:
            top = tops.setdefault(parts[0], _Top())
            if len(parts) == 2:
                top.direct = True
            else:
                top.inner.add(parts[1])
    splits = _split_folders(shown_source(source), tops)
    if splits:
        items = _split_items(found, splits)
    elif tops:
        items = _class_items(found)
    else:
        items = [Item(f.path, None, NONE, f.size, f.mtime_ns) for f in found.files]
    _note_empty_folders(found, tops, splits)
    if not splits and len(tops) == 1:
        _refuse_wrapper(shown_source(source), *tops.popitem())
    listed = assemble(items, source=source, name=name, images=Files(root), skipped=found.skipped, notes=notes)
    return replace(listed, warnings=tuple(passed_over(found.skipped)))


def _split_folders(source: str, tops: dict[bytes, _Top]) -> dict[bytes, int]:
    """The folders that are splits, with their numbers; empty when the folders are classes.

    Raises:
        DataError: both readings are possible, or two folders mean the same split.
    """
    named = {t: SPLIT_WORDS[t.lower().decode("ascii")] for t in tops if _is_split_name(t)}
    holding = [t for t in named if tops[t].inner]
    mixed = [t for t in named if tops[t].direct]
    rivals = [t for t in tops if t not in named and tops[t].direct]
    if not holding:
        if named and len(named) == len(tops):
            raise DataError(
                f"{source}: {_names(named)} hold images but no class folders: they could be unlabelled splits, or "
                f"classes of those names: {_CURE}"
            )
        return {}
    if mixed:
        raise DataError(
            f"{source}: {_names(mixed)} holds images directly while {_names(holding)} holds class folders: it could be "
            f"a split with images of no class, or a class of that name: {_CURE}"
        )
    if rivals and len(holding) == 1:
        raise DataError(
            f"{source}: {_names(holding)} holds folders and {_names(rivals)} beside it holds images: "
            f"{_names(holding)} could be a split, or a class like its neighbours: {_CURE}"
        )
    twice = [t for t in holding if sum(named[t] == named[other] for other in holding) > 1]
    if twice:
        raise DataError(f"{source}: {_names(twice)} mean the same split ({SPLITS[named[twice[0]]]}): keep one of them")
    return {t: named[t] for t in holding}


def _is_split_name(folder: bytes) -> bool:
    return folder.lower() in {name.encode() for name in SPLIT_WORDS}


def _names(folders: Iterable[bytes]) -> str:
    ordered = sorted(folders)
    text = " and ".join(shown(f) + "/" for f in ordered[:3])
    return text + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")


def _class_name(folder: bytes) -> str:
    return folder.decode("utf-8", "backslashreplace")


def _split_items(found: Walk, splits: dict[bytes, int]) -> list[Item]:
    items = []
    for path, size, mtime_ns in found.files:
        parts = path.split(b"/", 2)
        if parts[0] in splits:
            items.append(Item(path, _class_name(parts[1]), splits[parts[0]], size, mtime_ns))
        else:
            found.skip("beside the split folders", path)
    return items


def _class_items(found: Walk) -> list[Item]:
    items = []
    for path, size, mtime_ns in found.files:
        top, slash, _ = path.partition(b"/")
        if slash:
            items.append(Item(path, _class_name(top), NONE, size, mtime_ns))
        else:
            found.skip("beside the class folders", path)
    return items


def _note_empty_folders(found: Walk, tops: dict[bytes, _Top], splits: dict[bytes, int]) -> None:
    """List class folders (and split folders) that hold no image at any depth."""
    used = set(tops) | {outer + b"/" + inner for outer, top in tops.items() for inner in top.inner}
    for folder in found.folders:
        outer, slash, inner = folder.partition(b"/")
        if b"/" in inner or folder in used:
            continue
        if (slash and outer in splits) or (not slash and tops and not splits):
            found.skip("empty class folder", folder + b"/")
        elif not slash:
            found.skip("folder without images", folder + b"/")


def _refuse_wrapper(source: str, name: bytes, top: _Top) -> None:
    """A download often unpacks into one folder around the real ones: say which to give instead of 'one class only'."""
    if not top.direct and len(top.inner) > 1:
        raise DataError(
            f"{source}: it holds only {shown(name)}/, and that holds {_names(top.inner)}: "
            f"give {source.rstrip('/')}/{shown(name)} instead"
        )
