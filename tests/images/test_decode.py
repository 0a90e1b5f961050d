"""Bad bytes become failures with a reason; good bytes are never harmed by what surrounds them."""

from __future__ import annotations

import io
import json
import math
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from pipeline.base.errors import ConfigError, PipelineError
from pipeline.images import (
    FAILURE_KINDS,
    MAX_PIXELS,
    ImageFailure,
    decode,
    decode_policy,
    formats,
    read_file,
    readable,
)
from pipeline.images.decode import MAX_SIDE

decoding = sys.modules["pipeline.images.decode"]  # the room gives the function that name
HEIF = pytest.param("HEIF", marks=pytest.mark.skipif("HEIC" not in readable(), reason="pillow-heif is not installed"))
FORMATS = ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", HEIF]


def failure(blob: bytes) -> ImageFailure:
    with pytest.raises(ImageFailure) as caught:
        decode(blob)
    assert caught.value.kind in FAILURE_KINDS
    assert "\n" not in caught.value.reason
    return caught.value


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def test_a_failure_is_no_pipeline_error_because_the_job_goes_on():
    assert not issubclass(ImageFailure, PipelineError)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_file_cut_short_is_truncated(noise, encode, kind, share):
    blob = encode(Image.fromarray(noise(64, 64)), kind)
    assert failure(blob[: int(len(blob) * share)]).kind == "truncated"


def test_a_progressive_jpeg_cut_short_is_truncated(noise, encode):
    """It would decode to a blurred image, which must not pass for the whole one."""
    blob = encode(Image.fromarray(noise(64, 64)), "JPEG", progressive=True)
    assert failure(blob[: len(blob) // 2]).kind == "truncated"


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"", "empty"),
        (b"this is a note, not an image\n" * 9, "text"),
        (b"<html><body>404</body></html>", "text"),
        (bytes(range(256)) * 4, "not an image of a readable format (JPEG, PNG, GIF, BMP, TIFF, WebP, AVIF"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "not an image"),
    ],
)
def test_what_is_no_image_is_unreadable_and_the_reason_says_what_it_is(blob, words):
    bad = failure(blob)
    assert bad.kind in ("unreadable", "truncated")
    assert words in bad.reason


def test_empty_and_text_files_are_unreadable_and_not_truncated():
    assert failure(b"").kind == failure(b"hello").kind == "unreadable"


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_fail_cleanly_or_decode(noise, encode, kind):
    """Whatever a decoder raises on bad bytes comes out as an ImageFailure."""
    good = encode(Image.fromarray(noise(24, 24)), kind)
    rng = np.random.default_rng(0)
    for _ in range(120):
        blob = bytearray(good)
        for at in rng.integers(0, len(blob), 4):
            blob[at] = rng.integers(0, 256)
        try:
            image = decode(bytes(blob[: rng.integers(1, len(blob) + 1)]))
        except ImageFailure as bad:
            assert bad.kind in FAILURE_KINDS
        else:
            assert image.mode == "RGB"


def test_the_pixel_limit_is_checked_before_pixels_are_decoded():
    """At the limit the (tiny) data are read and found short; above it they are not touched."""
    side = math.isqrt(MAX_PIXELS)
    assert failure(png_header(side, side)).kind == "truncated"
    above = failure(png_header(side + 1, side))
    assert above.kind == "too_large"
    assert f"{MAX_PIXELS:,}" in above.reason


@pytest.mark.parametrize(("width", "height"), [(MAX_PIXELS, 1), (1, MAX_PIXELS), (MAX_SIDE + 1, 10)])
def test_a_line_of_pixels_is_no_picture(width, height):
    assert failure(png_header(MAX_SIDE, 10)).kind == "truncated"
    found = failure(png_header(width, height))
    assert found.kind == "too_large" and f"{width} x {height} pixels, the limit is 65,535 in a line" in found.reason


def scans_of(blob: bytes, times: int) -> bytes:
    """A progressive JPEG whose last scan comes ``times`` times."""
    last = blob.rindex(b"\xff\xda")
    return blob[:last] + blob[last:-2] * times + blob[-2:]


def test_a_jpeg_of_thousands_of_scans_is_refused_and_what_only_looks_like_scans_is_not(noise, encode, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_SCAN_PIXELS", 30 * 64 * 64)
    image = Image.fromarray(noise(64, 64))
    blob = encode(image, "JPEG", progressive=True)
    own = blob.count(b"\xff\xda")
    pixels = np.asarray(decode(blob))
    assert decode(scans_of(blob, 31 - own)).size == (64, 64)
    found = failure(scans_of(blob, 2000))
    assert (found.kind, "more than 30 scans" in found.reason) == ("too_large", True)
    decoys = encode(image, "JPEG", progressive=True, exif=b"Exif\0\0" + b"\xff\xda" * 1000) + b"\xff\xda" * 1000
    assert np.array_equal(np.asarray(decode(decoys)), pixels)


@pytest.mark.parametrize("size", [(10_000, 9_000), (20_000, 20_000)])
def test_large_images_are_too_large_without_a_warning_of_pillow(size):
    """Pillow warns above its limit and raises above twice that; warnings are errors in these tests."""
    assert failure(png_header(*size)).kind == "too_large"
    gif = b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + bytes(20)
    assert failure(gif).kind == "too_large"


def test_pillows_own_limit_is_left_alone(noise, encode):
    before = Image.MAX_IMAGE_PIXELS
    decode(encode(Image.fromarray(noise(8, 8)), "PNG"))
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_library_that_lets_truncated_images_pass_is_an_error_and_not_a_silent_grey(noise, encode, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ConfigError, match="LOAD_TRUNCATED_IMAGES"):
        decode(encode(Image.fromarray(noise(8, 8)), "PNG"))


def tiff_with_odd_metadata() -> bytes:
    """A good TIFF with a tag whose data lie past the end of the file, of which Pillow warns."""
    tags = [
        (256, 4, 1, 2), (257, 4, 1, 1), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (270, 2, 9999, 7000),
        (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, 1, 2),
    ]  # fmt: skip
    ifd = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHI", t, k, n) + (struct.pack("<HH", v, 0) if k == 3 else struct.pack("<I", v))
        for t, k, n, v in tags
    )
    return b"II*\0" + struct.pack("<I", 10) + b"\x0a\xfa" + ifd + bytes(4)


def test_odd_metadata_that_pillow_warns_of_does_not_harm_a_good_image():
    blob = tiff_with_odd_metadata()
    with pytest.warns(UserWarning), Image.open(io.BytesIO(blob)) as image:
        image.load()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.asarray(decode(blob))[..., 0].tolist() == [[10, 250]]


def test_an_images_extension_does_not_matter_only_its_bytes(noise, encode, tmp_path):
    array = noise(8, 8)
    (tmp_path / "really_png.jpg").write_bytes(encode(Image.fromarray(array), "PNG"))
    assert np.array_equal(np.asarray(decode(read_file(bytes(tmp_path / "really_png.jpg")))), array)


def test_reading_says_vanished_or_why_it_cannot(tmp_path):
    with pytest.raises(ImageFailure) as gone:
        read_file(bytes(tmp_path / "gone.png"))
    assert gone.value.kind == "vanished"
    with pytest.raises(ImageFailure, match="cannot be read") as folder:
        read_file(bytes(tmp_path))
    assert folder.value.kind == "unreadable"


def test_the_policy_is_plain_json_for_the_caches_key():
    policy = decode_policy(scaled=False)
    assert json.loads(json.dumps(policy)) == policy
    assert policy["max_pixels"] == MAX_PIXELS


def test_a_codec_without_memory_is_not_taken_for_a_broken_image(noise, encode, monkeypatch):
    """Progressive JPEG and WebP say 'broken' where they find no room."""
    blob = encode(Image.fromarray(noise(64, 64)), "JPEG", progressive=True)

    def no_room(*_):
        raise MemoryError

    monkeypatch.setattr(decoding._Jpeg, "load", lambda self: (_ for _ in ()).throw(OSError("broken data stream")))
    assert failure(blob).kind == "unreadable"
    monkeypatch.setattr(decoding.np, "empty", no_room)
    with pytest.raises(MemoryError):
        decode(blob)


def test_the_two_locks_of_decoding_are_always_taken_in_one_order(noise, encode, monkeypatch):
    """Who is at a big image alone and meets a warning, and who retries after a warning and finds its image big."""
    blob = encode(Image.fromarray(noise(64, 64)), "PNG")
    load = decoding.PngImagePlugin.PngImageFile.load

    calls = []

    def warning_first(self):
        calls.append(1)
        if len(calls) == 1:
            raise UserWarning("odd metadata")
        return load(self)

    monkeypatch.setattr(decoding.PngImagePlugin.PngImageFile, "load", warning_first)
    taken = []

    class Told:
        def __init__(self, name, lock):
            self.name, self.lock = name, lock

        def __enter__(self):
            taken.append(self.name)
            return self.lock.__enter__()

        def __exit__(self, *error):
            return self.lock.__exit__(*error)

    monkeypatch.setattr(decoding, "ALONE", Told("alone", decoding.ALONE))
    monkeypatch.setattr(decoding, "_retry", Told("retry", decoding._retry))
    assert np.array_equal(np.asarray(decode(blob)), noise(64, 64))
    assert taken == ["alone", "retry"]


def smooth(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8: a picture of slow changes, which every lossy format keeps to a few levels."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y // height, 255 * x // width, 255 * (x + y) // (width + height)], axis=2).astype(np.uint8)


@pytest.mark.parametrize("kind", ["AVIF", HEIF])
def test_avif_and_heic_are_read(encode, kind):
    pixels = smooth(48, 80)
    seen = np.asarray(decode(encode(Image.fromarray(pixels), kind, quality=90))).astype(int)
    assert seen.shape == pixels.shape and np.abs(seen - pixels).max() <= 16


@pytest.mark.parametrize("kind", ["AVIF", HEIF])
def test_transparent_avif_and_heic_are_over_white(encode, kind):
    clear = np.zeros((32, 32, 4), np.uint8)
    clear[16:, :, 3] = 255
    seen = np.asarray(decode(encode(Image.fromarray(clear), kind, quality=90)))
    assert seen[:12].min() >= 250 and seen[20:].max() <= 5


def test_of_an_animated_avif_the_first_frame_is_read(encode):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "lime")]
    blob = encode(frames[0], "AVIF", save_all=True, append_images=frames[1:], duration=100)
    red, green, blue = np.asarray(decode(blob)).reshape(-1, 3).mean(axis=0)
    assert red > 240 and green < 15 and blue < 15


def test_a_heic_of_ten_bits_is_scaled_to_eight():
    heif = pytest.importorskip("pillow_heif")
    wide = smooth(32, 32).astype(np.uint16) * 257
    buffer = io.BytesIO()
    heif.from_bytes("RGB;16", (32, 32), wide.tobytes()).save(buffer, quality=90)
    seen = np.asarray(decode(buffer.getvalue())).astype(int)
    assert np.abs(seen - smooth(32, 32)).max() <= 16


def test_without_its_package_a_heic_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(decoding, "readable", lambda: formats.FORMATS[:-1])
    for major, brands in ((b"heic", b"mif1heic"), (b"mif1", b"mif1heix"), (b"msf1", b"hevc")):
        blob = struct.pack(">I4s4sI", 16 + len(brands), b"ftyp", major, 0) + brands + bytes(100)
        bad = failure(blob)
        assert bad.kind == "unreadable" and "a HEIC image" in bad.reason and "pip install pillow-heif" in bad.reason


def test_a_film_in_the_same_boxes_is_no_image():
    blob = struct.pack(">I4s4sI", 24, b"ftyp", b"isom", 0) + b"isommp42" + bytes(100)
    assert "not an image of a readable format" in failure(blob).reason


def test_an_avif_that_is_called_heif_is_an_avif(encode):
    """Its first brand is that of the boxes alone."""
    blob = encode(Image.new("RGB", (16, 16), "red"), "AVIF")
    assert blob[8:12] == b"avif"
    other = blob[:8] + b"mif1" + blob[12:]
    assert np.array_equal(np.asarray(decode(other)), np.asarray(decode(blob)))


def test_the_limit_of_pixels_can_be_another():
    small = encode_png(30, 30)
    assert decoding.examine(small, None, 900)[1].size == (30, 30)
    with pytest.raises(ImageFailure, match=r"30 x 30 pixels, the limit is 899 in all \(max_pixels of extract"):
        decoding.examine(small, None, 899)
    side = math.isqrt(MAX_PIXELS) + 1
    with pytest.raises(ImageFailure, match="stop before the image is complete"):
        decoding.examine(png_header(side, side), None, side * side)


def encode_png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_a_new_format_changes_no_key():
    """What the policy says is in every cache's key; formats that could not be read before gave no rows."""
    policy = decode_policy(scaled=False)
    assert policy["version"] == 2 and not any("avif" in str(value).lower() for value in policy.values())
