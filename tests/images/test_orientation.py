"""All eight orientations, in every format that can record one."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.images import decode


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The (H, W, C) array as a camera held that way stores it, written from the EXIF standard's words.

    They say where the stored first row and first column lie in the upright image.
    """
    row_column = {
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.transpose(1, 0, 2),  # left, top
        6: upright.transpose(1, 0, 2)[::-1],  # right, top: stored first row is the upright right side
        7: upright.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
        8: upright.transpose(1, 0, 2)[:, ::-1],  # left, bottom
    }
    return np.ascontiguousarray(row_column[orientation])


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_every_orientation_gives_the_upright_image(noise, encode, kind, orientation):
    upright = noise(5, 9)
    options = {"lossless": True} if kind == "WEBP" else {}
    blob = encode(Image.fromarray(stored(upright, orientation)), kind, exif=exif_of(orientation), **options)
    assert np.array_equal(np.asarray(decode(blob)), upright)


LOSSY = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "HEIF": {"quality": 100, "chroma": "444"},
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", LOSSY)
def test_every_orientation_of_a_lossy_format_gives_the_same_image(encode, kind, orientation):
    """Blocks of one colour survive exactly enough to tell the corners apart; none is turned twice."""
    corners = np.array(
        [[[0, 0, 0], [255, 0, 0]], [[0, 255, 0], [0, 0, 255]], [[255, 255, 255], [128, 128, 128]]], np.uint8
    )
    upright = corners.repeat(16, axis=0).repeat(16, axis=1)
    blob = encode(
        Image.fromarray(stored(upright, orientation)), kind, exif=exif_of(orientation).tobytes(), **LOSSY[kind]
    )
    image = decode(blob)
    assert image.size == (32, 48)
    assert np.abs(np.asarray(image).astype(int) - upright).max() <= 4


@pytest.mark.parametrize("order", ["II", "MM"])
def test_both_byte_orders_of_exif_are_read(noise, encode, order):
    pack = "little" if order == "II" else "big"
    entry = (0x0112).to_bytes(2, pack) + (3).to_bytes(2, pack) + (1).to_bytes(4, pack) + (3).to_bytes(2, pack) + b"\0\0"
    block = order.encode() + (42).to_bytes(2, pack) + (8).to_bytes(4, pack) + (1).to_bytes(2, pack) + entry + bytes(4)
    upright = noise(4, 6)
    blob = encode(Image.fromarray(upright[::-1, ::-1].copy()), "PNG", exif=b"Exif\0\0" + block)
    assert np.array_equal(np.asarray(decode(blob)), upright)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0",  # orientation 99
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0",  # orientation as text
    ],
)
def test_broken_exif_does_not_harm_the_image(noise, encode, exif):
    pixels = noise(8, 8)
    for kind in ("PNG", "JPEG"):
        image = decode(encode(Image.fromarray(pixels), kind, exif=exif))
        assert image.size == (8, 8)
    assert np.array_equal(np.asarray(decode(encode(Image.fromarray(pixels), "PNG", exif=exif))), pixels)


def test_orientation_in_xmp_counts_when_exif_has_none(noise, encode):
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    upright = noise(4, 6)
    blob = encode(Image.fromarray(upright[::-1, ::-1].copy()), "WEBP", lossless=True, xmp=packet)
    assert np.array_equal(np.asarray(decode(blob)), upright)


def test_of_an_avif_its_own_orientation_counts_and_no_packet_beside_it(encode):
    """The format's standard (MIAF) says so: what XMP says was true before the encoder turned the image."""
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert decode(encode(Image.new("RGB", (32, 16)), "AVIF", xmp=packet)).size == (32, 16)
