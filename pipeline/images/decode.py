"""A file's bytes -> one RGB image, by one policy that is written into the cache's key.

Knows image formats, colour modes and orientation. Knows nothing of sizes that a network wants, nor of folders.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import PIL
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from pipeline.base.errors import ConfigError
from pipeline.base.spelling import option
from pipeline.images.colour import to_rgb
from pipeline.images.cover import Cover
from pipeline.images.formats import CURES, readable
from pipeline.images.orientation import recorded_orientation, upright
from pipeline.images.room import ALONE

FAILURE_KINDS = ("unreadable", "truncated", "too_large", "vanished")

MAX_PIXELS: Final = 89_478_485  # Pillow's own figure: a quarter of a GiB at three bytes a pixel
MAX_SIDE: Final = 65_535  # JPEG's and GIF's own limit: a longer line of pixels is no picture
MAX_BYTES: Final = 1 << 30  # of a file: more than MAX_PIXELS take in any mode, uncompressed
FREE_SCANS, MAX_SCAN_PIXELS = 20, 1 << 30  # of a JPEG that is drawn in many scans: some ten seconds' work

_POLICY: dict[str, str | int] = {
    "version": 2,
    "decoder": f"pillow-{PIL.__version__.split('.')[0]}",
    "orientation": "applied",
    "alpha": "over white",
    "16-bit": "scaled to 8",
    "32-bit": "scaled by range",
    "cmyk": "pillow",
    "colour profile": "ignored",
    "frame": "first",
    "max_pixels": MAX_PIXELS,
    "max_side": MAX_SIDE,
    "max_bytes": MAX_BYTES,
    "max_scan_pixels": MAX_SCAN_PIXELS,
}

HEADROOM = 2  # times the sizes that are asked for: below it, nothing is shrunk while it is decoded


def decode_policy(*, scaled: bool) -> dict[str, str | int]:
    """How a file becomes pixels, for a cache's key; ``scaled``: some are shrunk while they are decoded."""
    return {**_POLICY, "scaled": f"JPEG, to {HEADROOM} times the size or more"} if scaled else dict(_POLICY)


class ImageFailure(Exception):
    """One image cannot be used: ``kind`` is one of FAILURE_KINDS, ``reason`` says why in plain words.

    No PipelineError: the job goes on without this image.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason

    def __str__(self) -> str:
        """``kind: reason``."""
        return f"{self.kind}: {self.reason}"


class _Jpeg(JpegImagePlugin.JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Skip what only the resolution needs: it would parse the EXIF block, and complain of a broken one."""


# The classes are called directly: Image.open would first apply the process-wide pixel limit, with a warning, and
# would try formats (PostScript, ...) that nobody means here.
_FORMATS: tuple[tuple[str, tuple[bytes, ...], type[ImageFile.ImageFile]], ...] = (
    ("JPEG", (b"\xff\xd8\xff",), _Jpeg),
    ("PNG", (b"\x89PNG\r\n\x1a\n",), PngImagePlugin.PngImageFile),
    ("GIF", (b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    ("BMP", (b"BM",), BmpImagePlugin.BmpImageFile),
    ("TIFF", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    ("WebP", (b"RIFF",), WebPImagePlugin.WebPImageFile),
)

# AVIF and HEIC lie in the same boxes (ISO/IEC 14496-12): which of them it is say the brands of the first one.
_BRANDS = {
    "AVIF": {b"avif", b"avis"},
    "HEIC": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"},
}
_MOST_BRANDS = 64

_retry = threading.Lock()
_ROOM = 12  # bytes a pixel that a decoder may want: a progressive JPEG's coefficients and the pixels


@dataclass(frozen=True)
class Found:
    """What an image was like before it was made a network's: (width, height) as it is seen, and its file's mode.

    ``cover`` says where an image that was shrunk while it was decoded shows the whole one.
    """

    size: tuple[int, int]
    mode: str
    cover: Cover | None = None


def decode(blob: bytes) -> Image.Image:
    """The image of :func:`examine` alone."""
    return examine(blob)[0]


def examine(
    blob: bytes, sized: Callable[[int], object] | None = None, max_pixels: int = MAX_PIXELS, side: int | None = None
) -> tuple[Image.Image, Found]:
    """The image in mode RGB: upright, over white, 8 bits a channel, first frame, fully decoded; and what was found.

    A plain 8-bit RGB or grey image gives exactly the pixels of ``PIL.Image.open(...).convert("RGB")``. ``sized`` is
    called with the number of pixels before any of them is decoded.

    With ``side``, a JPEG that is to become so small is decoded at a half, a quarter or an eighth of its size, as long
    as its short side keeps HEADROOM times as many pixels: libjpeg then makes each block of 8 × 8 pixels one of 4, 2 or
    1, and a photograph of 12 megapixels takes a quarter of the time, most of which goes into reading its code.

    Raises:
        ImageFailure: not an image of a format that we read, cut short, damaged, of more than ``max_pixels`` pixels or
            MAX_SIDE in a line, or a JPEG of more scans than a picture needs.
        MemoryError: there is no room for its pixels.
        ConfigError: another library told Pillow to pass truncated images as whole.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ConfigError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True: set it to False, or cut images count as whole")
    try:
        return _decode(blob, sized, max_pixels, side)
    except Warning:
        # Pillow complains of odd metadata in good images, and the caller's filters turn warnings into errors. Filters
        # are the whole process's, so they are touched only in this rare case and by one thread at a time.
        with ALONE, _retry, warnings.catch_warnings():  # in this order: who is alone may come to need the other lock
            warnings.simplefilter("ignore")
            return _decode(blob, sized, max_pixels, side)


def _decode(
    blob: bytes, sized: Callable[[int], object] | None, max_pixels: int, side: int | None
) -> tuple[Image.Image, Found]:
    name, opener = _format(blob)
    _check_size(_early_size(name, blob), max_pixels)
    image: ImageFile.ImageFile | None = None
    try:
        image = opener(io.BytesIO(blob))
        _check_size(image.size, max_pixels)
        if name == "JPEG":
            _check_scans(blob, image.size)
        if sized is not None:
            sized(image.width * image.height)
        cover = None if side is None or name != "JPEG" else _shrink(image, HEADROOM * side)
        image.load()
        mode = image.mode
        seen = upright(to_rgb(image), image)
        if cover is None:
            return seen, Found(seen.size, mode)
        cover = cover.upright(image.size, recorded_orientation(image))
        return seen, Found(cover.size, mode, cover)
    except (ImageFailure, MemoryError, Warning):
        raise
    except Image.DecompressionBombError as error:
        raise ImageFailure("too_large", "more pixels than Pillow takes of such a file") from error
    except Exception as error:  # decoders meet hostile bytes: whatever they raise, this one image is what is wrong
        if image is not None:
            # A codec that finds no memory calls the file broken: asked here, it is MemoryError.
            np.empty(image.width * image.height * _ROOM, np.uint8)
        words = " ".join(str(error).split()) or type(error).__name__
        if "truncated" in words.lower() or _is_cut_short(name, blob):
            raise ImageFailure("truncated", f"the {name} data stop before the image is complete ({words})") from error
        raise ImageFailure("unreadable", f"the {name} data are damaged or of an unsupported kind ({words})") from error


def _shrink(image: ImageFile.ImageFile, side: int) -> Cover | None:
    """Have a JPEG decoded at a fraction of its size, its short side ``side`` pixels or more; None: it stays whole."""
    size = image.size
    drafted = image.draft(None, (side, side))
    return None if drafted is None or image.size == size else Cover(size, drafted[1])


def _format(blob: bytes) -> tuple[str, Callable[[io.BytesIO], ImageFile.ImageFile]]:
    if not blob:
        raise ImageFailure("unreadable", "the file is empty")
    for name, signatures, opener in _FORMATS:
        if blob.startswith(signatures) and (name != "WebP" or blob[8:12] == b"WEBP"):
            return name, opener
    if boxed := _boxed(blob):
        if boxed not in readable():
            raise ImageFailure("unreadable", f"a {boxed} image: reading it needs {CURES[boxed]}")
        return boxed, _boxed_opener(boxed)
    legal = ", ".join(readable())
    if not any(byte < 9 for byte in blob[:512]):
        raise ImageFailure("unreadable", f"the file holds text, not an image (readable: {legal})")
    raise ImageFailure("unreadable", f"not an image of a readable format ({legal})")


def _boxed(blob: bytes) -> str | None:
    """AVIF or HEIC, where the bytes begin as one of them does."""
    if blob[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(blob[:4], "big"), len(blob), 16 + 4 * _MOST_BRANDS)
    brands = {blob[8:12], *(blob[at : at + 4] for at in range(16, end, 4))}
    return next((name for name, ours in _BRANDS.items() if brands & ours), None)


def _boxed_opener(name: str) -> Callable[[io.BytesIO], ImageFile.ImageFile]:
    # here: an older Pillow has no AVIF, and pillow-heif need not be installed
    if name == "AVIF":
        from PIL import AvifImagePlugin

        return AvifImagePlugin.AvifImageFile
    from pillow_heif import HeifImageFile

    opener: Callable[[io.BytesIO], ImageFile.ImageFile] = HeifImageFile
    return opener


def _early_size(name: str, blob: bytes) -> tuple[int, int]:
    """The canvas of a GIF, which Pillow may allocate while opening; other formats are checked after opening."""
    if name != "GIF":
        return 0, 0
    return int.from_bytes(blob[6:8], "little"), int.from_bytes(blob[8:10], "little")


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        limit = f"the limit is {max_pixels:,} in all ({option('max_pixels')} of extract)"
        raise ImageFailure("too_large", f"{width} x {height} pixels, {limit}")
    if max(width, height) > MAX_SIDE:
        raise ImageFailure("too_large", f"{width} x {height} pixels, the limit is {MAX_SIDE:,} in a line")


def _check_scans(blob: bytes, size: tuple[int, int]) -> None:
    """A progressive JPEG is drawn in ten scans or so, each of which goes over all pixels; hostile ones have thousands.

    Raises:
        ImageFailure: there are more than FREE_SCANS, and they come to more than MAX_SCAN_PIXELS.
    """
    most = max(FREE_SCANS, MAX_SCAN_PIXELS // max(1, size[0] * size[1]))
    # Bytes that look like a scan's beginning may stand in metadata, or in what follows the image: counted with care
    # only where there are many.
    if blob.count(_SCAN) > most and (scans := _scans(blob, most)) > most:
        raise ImageFailure("too_large", f"more than {most:,} scans (the file has at least {scans:,})")


_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")  # after the pixels' code: no stuffing, no restart


def _scans(blob: bytes, most: int) -> int:
    """How many scans a JPEG has up to its end (ITU-T T.81, annex B); counting ends at ``most`` + 1."""
    scans, at = 0, 2
    while scans <= most and (found := _MARKER.search(blob, at)):
        at, marker = found.end(), found[1][0]
        if marker == 0xD9:
            break
        scans += marker == 0xDA
        at += int.from_bytes(blob[at : at + 2], "big")
    return scans


def _is_cut_short(name: str, blob: bytes) -> bool:
    """True when the end that the format prescribes is not there."""
    if name == "JPEG":
        return b"\xff\xd9" not in blob[-64:]
    if name == "PNG":
        return b"IEND" not in blob[-64:]
    if name == "GIF":
        return not blob.rstrip(b"\0").endswith(b";")
    if name == "WebP":
        return len(blob) < int.from_bytes(blob[4:8], "little") + 8
    if name == "BMP":
        return len(blob) < int.from_bytes(blob[2:6], "little")
    if name in _BRANDS:
        return _boxes_end(blob) > len(blob)
    return False


def _boxes_end(blob: bytes) -> int:
    """Where the last of a file's outer boxes ends, as it says itself; the file's end where it says nothing of it."""
    at = 0
    while at + 16 <= len(blob):
        size = int.from_bytes(blob[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(blob[at + 8 : at + 16], "big")
        if size < 8:
            return len(blob)
        at += size
    return at
