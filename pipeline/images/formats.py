"""The image formats by the endings of their files: which are read, which could be read, which are not.

Knows names and which packages are installed. Opens no image.
"""

from __future__ import annotations

import functools
import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence

from PIL import features

from pipeline.base.words import many

_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WebP": (".webp",),
    "AVIF": (".avif",),
    "HEIC": (".heic", ".heif", ".hif"),
}
FORMATS = tuple(_ENDINGS)
IMAGE_EXTENSIONS = tuple(ending for endings in _ENDINGS.values() for ending in endings)
_OF_BYTES = {ending.encode(): name for name, endings in _ENDINGS.items() for ending in endings}

_RAW = b".cr2 .cr3 .nef .nrw .arw .dng .orf .rw2 .raf .pef .srw"
_OTHERS = b".jxl .jp2 .j2k .svg .psd .tga .exr .hdr .ppm .pgm .pbm .pnm .eps .ico .dcm"
_UNREAD = frozenset((*_RAW.split(), *_OTHERS.split()))

CURES = {
    "AVIF": "a Pillow from 11.3 on (`pip install --upgrade pillow`)",
    "HEIC": "the package pillow-heif (`pip install pillow-heif`)",
}
NOT_HERE, NOT_READ = "image that cannot be read here", "image of a format that is not read"
"""Why a file that is an image by its name is passed over."""


@functools.cache
def readable() -> tuple[str, ...]:
    """The formats that can be read here, in the order of FORMATS."""
    lacking = {
        "AVIF": not features.check("avif"),
        "HEIC": importlib.util.find_spec("pillow_heif") is None,
    }
    return tuple(name for name in FORMATS if not lacking.get(name))


def ending_of(path: bytes) -> bytes:
    """The ending of a file's name with its dot, in lower case; empty where it has none."""
    name = path[path.rfind(b"/") + 1 :]
    at = name.rfind(b".")
    return name[at:].lower() if at > 0 else b""


def format_of(path: bytes) -> str | None:
    """The format that a file's name says it is of, readable here or not; None where it is none that is ever read."""
    return _OF_BYTES.get(ending_of(path))


def passed_over_as(path: bytes) -> str | None:
    """NOT_HERE or NOT_READ where a file's name says that it is an image and it cannot be read; else None."""
    name = format_of(path)
    if name is not None:
        return None if name in readable() else NOT_HERE
    return NOT_READ if ending_of(path) in _UNREAD else None


def passed_over(skipped: Mapping[str, Sequence[bytes]]) -> list[str]:
    """A warning for the images that were passed over, by what would cure it; ``skipped`` has paths by reason."""
    lines = []
    lacking = Counter(format_of(path) for path in skipped.get(NOT_HERE, ()))
    for name, number in lacking.items():
        lines.append(f"{many(number, f'{name} image')} passed over: reading them needs {CURES[str(name)]}")
    endings = Counter(ending_of(path).decode("ascii") for path in skipped.get(NOT_READ, ()))
    if endings:
        listed = ", ".join(f"{number:,} {ending}" for ending, number in sorted(endings.items()))
        lines.append(
            f"{many(endings.total(), 'image')} passed over, of formats that are not read ({listed}): convert them to "
            "JPEG, PNG or TIFF"
        )
    return lines
