"""Every colour mode comes out as the RGB that a viewer would show."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.images import ImageFailure, decode


def pixels(blob: bytes) -> np.ndarray:
    image = decode(blob)
    assert image.mode == "RGB"
    return np.asarray(image)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """float64 composite over white: colour (H, W, 3), alpha (H, W) in 0..255."""
    a = alpha.astype(np.float64)[..., None] / 255
    return colour.astype(np.float64) * a + 255 * (1 - a)


def grey_of(levels: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(levels)[..., None], 3, axis=2)


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG put together byte by byte; ``rows`` includes each row's filter byte."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    key = chunk(b"tRNS", extra) if extra else b""
    return b"\x89PNG\r\n\x1a\n" + head + key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def raw_tiff(array: np.ndarray, *, sample_format: int, order: str = "<") -> bytes:
    """An uncompressed one-channel TIFF of any number type and byte order."""
    data = array.astype(array.dtype.newbyteorder(order)).tobytes()
    height, width = array.shape
    tags = [
        (256, 4, width), (257, 4, height), (258, 3, array.itemsize * 8), (259, 3, 1), (262, 3, 1), (273, 4, 8),
        (277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, sample_format),
    ]  # fmt: skip
    ifd = struct.pack(order + "H", len(tags))
    for tag, kind, value in tags:
        body = struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value)
        ifd += struct.pack(order + "HHI", tag, kind, 1) + body
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "I", 8 + len(data)) + data + ifd + bytes(4)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "JPEG"])
def test_plain_rgb_and_grey_equal_pillows_own_conversion(noise, encode, kind):
    for array in (noise(13, 17), noise(13, 17, 1)[..., 0]):
        blob = encode(Image.fromarray(array), kind)
        with Image.open(io.BytesIO(blob)) as reference:
            assert np.array_equal(pixels(blob), np.asarray(reference.convert("RGB")))


def test_rgb_in_a_lossless_file_comes_back_exactly(noise, encode):
    array = noise(13, 17)
    assert np.array_equal(pixels(encode(Image.fromarray(array), "PNG")), array)
    assert np.array_equal(pixels(encode(Image.fromarray(array), "WEBP", lossless=True)), array)


def test_one_bit_images_are_black_and_white(encode):
    bits = np.eye(9, dtype=bool)
    for kind in ("PNG", "BMP", "TIFF"):
        assert np.array_equal(pixels(encode(Image.fromarray(bits), kind)), grey_of(bits * np.uint8(255)))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_rgba_is_laid_over_white(noise, encode, kind):
    array = noise(16, 16, 4)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    got = pixels(encode(Image.fromarray(array), kind, **options))
    assert np.abs(got - over_white(array[..., :3], array[..., 3])).max() <= 1


def test_fully_transparent_pixels_are_white_whatever_their_colour(encode):
    array = np.zeros((4, 4, 4), np.uint8)
    assert (pixels(encode(Image.fromarray(array), "PNG")) == 255).all()


def test_grey_with_alpha_is_laid_over_white(noise, encode):
    array = noise(16, 16, 2)
    got = pixels(encode(Image.fromarray(array, "LA"), "PNG"))
    assert np.abs(got - over_white(grey_of(array[..., 0]), array[..., 1])).max() <= 1


def palette_image() -> tuple[Image.Image, np.ndarray]:
    image = Image.new("P", (4, 1))
    colours = np.array([[10, 20, 30], [200, 100, 0], [0, 0, 255], [255, 255, 0]], np.uint8)
    image.putpalette(colours.tobytes())
    image.frombytes(bytes([0, 1, 2, 3]))
    return image, colours[None]


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_palette_images_show_their_palettes_colours(encode, kind):
    image, colours = palette_image()
    assert np.array_equal(pixels(encode(image, kind)), colours)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(encode, kind):
    image, colours = palette_image()
    expected = colours.copy()
    expected[0, 2] = 255
    assert np.array_equal(pixels(encode(image, kind, transparency=2)), expected)


def test_a_palette_with_an_alpha_for_each_entry_is_laid_over_white(encode):
    image, colours = palette_image()
    alpha = np.array([[255, 128, 0, 64]], np.uint8)
    got = pixels(encode(image, "PNG", transparency=alpha.tobytes()))
    assert np.abs(got - over_white(colours, alpha)).max() <= 1


def test_a_transparent_colour_of_an_rgb_or_grey_png_is_white(encode):
    array = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    assert pixels(encode(Image.fromarray(array), "PNG", transparency=(4, 5, 6))).tolist() == [[[1, 2, 3], [255] * 3]]
    grey = np.array([[7, 9]], np.uint8)
    assert pixels(encode(Image.fromarray(grey), "PNG", transparency=9)).tolist() == [[[7] * 3, [255] * 3]]


def test_palette_with_alpha_in_memory_is_laid_over_white():
    """PA: no common file format gives it, other decoders may."""
    from pipeline.images.colour import to_rgb

    image, colours = palette_image()
    image = image.convert("PA")
    image.putalpha(Image.frombytes("L", (4, 1), bytes([255, 0, 255, 0])))
    expected = colours.copy()
    expected[0, [1, 3]] = 255
    assert np.array_equal(np.asarray(to_rgb(image)), expected)


def test_cmyk_is_ink_in_tiff_and_in_adobes_inverted_jpeg(encode):
    """Both hold full cyan on the left and nothing (white paper) on the right."""
    array = np.zeros((16, 32, 4), np.uint8)
    array[:, :16, 0] = 255
    image = Image.fromarray(array, "CMYK")
    jpeg = encode(image, "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in jpeg
    for blob, tolerance in ((encode(image, "TIFF"), 0), (jpeg, 3)):
        got = pixels(blob).astype(int)
        assert np.abs(got[8, 4] - [0, 255, 255]).max() <= tolerance
        assert np.abs(got[8, 28] - [255, 255, 255]).max() <= tolerance


def test_ycbcr_is_converted(encode):
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    got = pixels(encode(red.convert("YCbCr"), "TIFF")).astype(int)
    assert np.abs(got - [255, 0, 0]).max() <= 2


LEVELS_16 = np.array([[0, 1, 128, 129, 256, 257, 32767, 32768, 65407, 65535]], np.uint16)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_grey_is_scaled_and_not_clipped(order):
    """Pillow's own conversion clips everything above 255 to white."""
    expected = grey_of(np.rint(LEVELS_16.astype(np.float64) * 255 / 65535))
    assert np.array_equal(pixels(raw_tiff(LEVELS_16, sample_format=1, order=order)), expected)


def test_16_bit_grey_png_is_scaled_and_its_transparent_level_is_white():
    rows = b"\0" + LEVELS_16.astype(">u2").tobytes()
    expected = np.rint(LEVELS_16.astype(np.float64) * 255 / 65535)
    assert np.array_equal(pixels(raw_png(10, 1, 16, 0, rows)), grey_of(expected))
    expected[0, 5] = 255
    assert np.array_equal(pixels(raw_png(10, 1, 16, 0, rows, extra=struct.pack(">H", 257))), grey_of(expected))


def test_every_16_bit_mode_of_pillow_gives_the_same_grey():
    from pipeline.images.colour import to_rgb

    expected = grey_of(np.rint(LEVELS_16.astype(np.float64) * 255 / 65535))
    for mode, dtype in (("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2")):
        image = Image.frombytes(mode, (10, 1), LEVELS_16.astype(dtype).tobytes())
        assert np.array_equal(np.asarray(to_rgb(image)), expected), mode


def test_a_16_bit_png_that_pillow_opens_as_32_bit_is_16_bit_all_the_same():
    from pipeline.images.colour import to_rgb

    image = Image.fromarray(np.array([[0, 257, 200]], np.int32))
    image.format = "PNG"
    image.info["transparency"] = 257
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 255, 1]


def test_16_bit_rgb_png_keeps_its_colours():
    colours = np.array([[[0, 32768, 65535], [257, 514, 771]]], np.uint16)
    rows = b"\0" + colours.astype(">u2").tobytes()
    got = pixels(raw_png(2, 1, 16, 2, rows)).astype(int)
    assert np.abs(got - colours / 257).max() <= 1
    keyed = pixels(raw_png(2, 1, 16, 2, rows, extra=struct.pack(">HHH", 0, 32768, 65535)))
    assert keyed[0, 0].tolist() == [255, 255, 255]
    assert keyed[0, 1].tolist() == got[0, 1].tolist()


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([0, 128, 255], [0, 128, 255]),
        ([0, 32768, 65535], [0, 128, 255]),
        ([-100, 0, 100], [0, 128, 255]),
        ([0, 500_000, 1_000_000], [0, 128, 255]),
        ([-7, -7, -7], [0, 0, 0]),
    ],
)
def test_32_bit_integers_are_brought_into_range(levels, expected):
    blob = raw_tiff(np.array([levels], np.int32), sample_format=2)
    assert np.abs(pixels(blob)[0, :, 0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 0.25, 0.5], [0, 64, 128]),
        ([0.0, 100.4, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 3.0], [0, 64, 255]),
        ([2.0, 1000.0, 2000.0], [0, 127, 255]),
        ([5e3, 5e3, 5e3], [0, 0, 0]),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_floats_are_brought_into_range(levels, expected, order):
    blob = raw_tiff(np.array([levels], np.float32), sample_format=3, order=order)
    assert np.abs(pixels(blob)[0, :, 0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_floats_that_are_not_numbers_are_unreadable(bad):
    with pytest.raises(ImageFailure, match="not finite") as caught:
        decode(raw_tiff(np.array([[0.0, bad]], np.float32), sample_format=3))
    assert caught.value.kind == "unreadable"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_many_is_taken(encode, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    blob = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(blob)) as check:
        assert check.n_frames == 3
    assert (pixels(blob) == [255, 0, 0]).all()


def test_progressive_jpeg_equals_pillows_decoding(noise, encode):
    blob = encode(Image.fromarray(noise(40, 56)), "JPEG", progressive=True)
    with Image.open(io.BytesIO(blob)) as reference:
        assert reference.info["progressive"]
        assert np.array_equal(pixels(blob), np.asarray(reference))
