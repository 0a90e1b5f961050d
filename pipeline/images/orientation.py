"""Turning an image upright by the orientation that its camera recorded.

Knows one tag of EXIF and of XMP. Reads it without Pillow's EXIF parser, which warns of and stumbles over the broken
blocks that many editors leave behind; a block that makes no sense here means 'upright'.
"""

from __future__ import annotations

import re
import struct

from PIL import Image

_TAG = 0x0112  # Orientation (EXIF 2.32, table 4)
_SHORT = 3

# What undoes each orientation (EXIF 2.32, figure 'relationship between the coordinates').
_UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_XMP = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")


def upright(pixels: Image.Image, loaded: Image.Image) -> Image.Image:
    """``pixels`` turned by the orientation that the ``loaded`` image file names."""
    if loaded.format in ("TIFF", "HEIF"):  # turned while it was loaded
        return pixels
    undo = _UNDO.get(recorded_orientation(loaded))
    return pixels if undo is None else pixels.transpose(undo)


def recorded_orientation(image: Image.Image) -> int:
    """1 to 8: EXIF's orientation, else XMP's, else 1."""
    exif = image.info.get("exif")
    found = _from_exif(exif) if isinstance(exif, bytes) else None
    if found is not None or image.format == "AVIF":  # which keeps its own; Pillow gives it as EXIF's
        return found or 1
    xmp = image.info.get("xmp", image.info.get("XML:com.adobe.xmp", b""))
    match = _XMP.search(xmp.encode() if isinstance(xmp, str) else xmp)
    return int(match[1]) if match else 1


def _from_exif(block: bytes) -> int | None:
    """The orientation in the first directory of a TIFF-structured EXIF block; None when there is none to be read."""
    tiff = block.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for k in range(count):
            tag, kind, n, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * k)
            if tag == _TAG:
                return value if kind == _SHORT and n == 1 and 1 <= value <= 8 else None
    except struct.error:  # the block is cut short
        return None
    return None
