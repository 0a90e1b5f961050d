"""torchvision's classification sets as folders of image files.

Knows how each set names its splits and classes. Imports torchvision only when a set has to be written.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.base.errors import DataError
from pipeline.base.items import SPLITS, TEST, TRAIN, VAL
from pipeline.base.workspace import Workspace
from pipeline.images.formats import IMAGE_EXTENSIONS
from pipeline.images.listing import Images, Listing
from pipeline.images.sources.files import Files
from pipeline.images.sources.folder import list_folder
from pipeline.images.sources.written_once import written_once

PREFIX = "torchvision:"
FORM = f"{PREFIX}NAME"

_Parts = dict[int, dict[str, Any]]  # split -> the constructor's arguments; {0: ...} for a set without splits

_BY_FLAG: _Parts = {TRAIN: {"train": True}, TEST: {"train": False}}
_TRAIN_TEST: _Parts = {TRAIN: {"split": "train"}, TEST: {"split": "test"}}
_TRAIN_VAL: _Parts = {TRAIN: {"split": "train"}, VAL: {"split": "val"}}
_ALL_THREE: _Parts = {**_TRAIN_VAL, TEST: {"split": "test"}}
_UNSPLIT: _Parts = {0: {}}
_FAKE = {"image_size": (3, 16, 16), "num_classes": 3}

SETS: dict[str, _Parts] = {
    "CIFAR10": _BY_FLAG,
    "CIFAR100": _BY_FLAG,
    "Caltech101": _UNSPLIT,
    "Caltech256": _UNSPLIT,
    "Country211": {**_TRAIN_TEST, VAL: {"split": "valid"}},
    "DTD": _ALL_THREE,
    "EMNIST": {split: {"split": "balanced", **flag} for split, flag in _BY_FLAG.items()},
    "EuroSAT": _UNSPLIT,
    "FGVCAircraft": _ALL_THREE,
    "FakeData": {TRAIN: {**_FAKE, "size": 48}, TEST: {**_FAKE, "size": 12, "random_offset": 48}},
    "FashionMNIST": _BY_FLAG,
    "Flowers102": _ALL_THREE,
    "Food101": _TRAIN_TEST,
    "GTSRB": _TRAIN_TEST,
    "Imagenette": _TRAIN_VAL,
    "KMNIST": _BY_FLAG,
    "MNIST": _BY_FLAG,
    "OxfordIIITPet": {TRAIN: {"split": "trainval"}, TEST: {"split": "test"}},
    "RenderedSST2": _ALL_THREE,
    "SEMEION": _UNSPLIT,
    "STL10": _TRAIN_TEST,
    "SUN397": _UNSPLIT,
    "SVHN": _TRAIN_TEST,
    "USPS": _BY_FLAG,
}


def images(spec: str, place: str) -> Images:
    """The files below the place."""
    return Files(place)


def claims(spec: str) -> bool:
    """The prefix, whatever follows."""
    return spec.startswith(PREFIX)


def listing(spec: str, desk: Workspace) -> Listing:
    """The set named by ``torchvision:NAME`` as files in the workspace's ``data``, downloaded on the first call.

    Raises:
        DataError: no such set, or it cannot be downloaded.
    """
    name = spec.removeprefix(PREFIX)
    if name not in SETS:
        near = difflib.get_close_matches(name.lower(), {s.lower(): s for s in SETS}, n=1, cutoff=0.7)
        hint = next((f"did you mean {s}? " for s in SETS if [s.lower()] == near), "")
        raise DataError(f"{spec}: torchvision has no classification set {name!r}: {hint}choose from {', '.join(SETS)}")
    data = desk.data
    folder = written_once(
        data / f"torchvision-{name}", lambda partial: _write(name, data / "torchvision", partial, desk)
    )
    return list_folder(spec, bytes(folder), name=name.lower())


def _write(name: str, downloads: Path, folder: Path, desk: Workspace) -> None:
    parts = {split: _open_set(name, downloads, options) for split, options in SETS[name].items()}
    total = sum(len(part) for part in parts.values())
    with contextlib.ExitStack() as stack:
        advance = stack.enter_context(desk.watch.track(f"writing {name}", total, unit="images")).advance
        for split, part in parts.items():
            _write_part(part, folder / SPLITS[split] if split else folder, advance)


def _open_set(name: str, downloads: Path, options: dict[str, Any]) -> Any:
    """The torchvision dataset, from disk if it is there, else downloaded."""
    import torchvision.datasets

    kind = getattr(torchvision.datasets, name, None)
    if kind is None:
        raise DataError(
            f"{PREFIX}{name}: the installed torchvision {torchvision.__version__} does not have it: update it"
        )
    if name == "FakeData":
        return kind(**options)
    downloads.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):  # some sets print that they are verified
        try:
            return kind(str(downloads), **options, download=False)
        except (RuntimeError, OSError):  # not there, or not whole
            pass
        try:
            return kind(str(downloads), **options, download=True)
        except (RuntimeError, OSError, ImportError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"{PREFIX}{name} could not be downloaded ({reason}); looked for it in {downloads}: connect to the "
                "network, or copy the set's files there, or give a folder of images"
            ) from error


def _write_part(part: Any, folder: Path, advance: Callable[[int], None]) -> None:
    names = getattr(part, "classes", None) or getattr(part, "categories", None)
    made: set[Path] = set()
    for index in range(len(part)):
        image, target = part[index]
        place = folder / _class_folder(names, int(target))
        if place not in made:
            place.mkdir(parents=True)
            made.add(place)
        original = _original_file(part, index)
        if original is None:
            image.save(place / f"{index:06d}.png")
        else:
            _link_or_copy(original, place / f"{index:06d}{original.suffix.lower()}")
        advance(1)


def _class_folder(names: Any, target: int) -> str:
    """The class's name as a folder: a few sets use slashes (``F/A-18``) or several words for one class."""
    if names is None:
        return str(target)
    name = names[target]
    text = name if isinstance(name, str) else name[0]
    return text.strip("/. ").replace("/", "-") or str(target)


def _original_file(part: Any, index: int) -> Path | None:
    """The file that holds image ``index``, where the set keeps its images as files of a kind that we read."""
    for attribute in ("_image_files", "_images", "_samples", "samples"):
        entries = getattr(part, attribute, None)
        if entries is not None and len(entries) == len(part):
            entry = entries[index]
            path = Path(entry[0] if isinstance(entry, tuple) else entry)
            return path if path.suffix.lower() in IMAGE_EXTENSIONS and path.is_file() else None
    return None


def _link_or_copy(original: Path, place: Path) -> None:
    try:
        os.link(original, place)  # the large sets need not lie on the disk twice
    except OSError:
        shutil.copyfile(original, place)
