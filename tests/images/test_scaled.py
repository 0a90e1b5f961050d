"""Images that are shrunk while they are decoded: which, how far, and how little it changes what a network sees."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.images import HEADROOM, Augmentation, Geometry, View, decode_policy, to_pixels
from pipeline.images.augment import SCALE as CROP_SCALE
from pipeline.images.cover import Cover
from pipeline.images.decode import ImageFailure, examine
from pipeline.images.views import SCALE as VIEW_SCALE
from pipeline.images.views import random_box

CENTRE = Geometry(32, 28, scaled=True)


def scene(height: int, width: int) -> Image.Image:
    """Colours that change slowly, and a corner that tells how the image lies."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    colours = np.stack([128 + 127 * np.sin(7 * x + 3 * y), 255 * y, 128 + 127 * np.cos(9 * y - 2 * x)], axis=2)
    colours[: height // 5, : width // 5] = (250, 20, 20)
    return Image.fromarray(colours.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def seen(blob: bytes, geometry: Geometry, digest: bytes = b"") -> np.ndarray:
    image, found = examine(blob, side=geometry.side)
    return to_pixels(image, geometry, digest, found.cover)


@pytest.mark.parametrize(
    ("short", "by"), [(63, 1), (64, 1), (127, 1), (128, 2), (255, 2), (256, 4), (511, 4), (512, 8), (1500, 8)]
)
def test_a_jpeg_is_shrunk_as_far_as_twice_the_size_allows(short: int, by: int) -> None:
    blob = jpeg(scene(short, short + 40))
    image, found = examine(blob, side=32)
    assert image.size == (-(-(short + 40) // by), -(-short // by))
    assert found.size == (short + 40, short)  # as the file has it
    assert min(image.size) >= HEADROOM * 32 or by == 1
    assert examine(blob)[0].size == (short + 40, short)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_other_formats_are_decoded_whole(encode, kind: str) -> None:
    blob = encode(scene(600, 800), kind)
    assert np.array_equal(np.asarray(examine(blob, side=32)[0]), np.asarray(examine(blob)[0]))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:2:0"}], ids=str)
def test_what_a_network_sees_stays_the_same_but_for_rounding(mode: str, options: dict[str, Any]) -> None:
    blob = jpeg(scene(600, 800).convert(mode), **options)
    exact, scaled = (
        to_pixels(examine(blob, side=g.side)[0], g).astype(int) for g in (replace(CENTRE, scaled=False), CENTRE)
    )
    difference = np.abs(exact - scaled)
    assert difference.any()  # it was another way
    assert difference.mean() < 0.5
    assert difference.max() < 12  # at the corner's edge


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (63, 63)])
def test_an_image_that_is_not_large_keeps_its_bits(size: tuple[int, int]) -> None:
    blob = jpeg(scene(*size))
    assert np.array_equal(np.asarray(examine(blob, side=32)[0]), np.asarray(examine(blob)[0]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_upright_and_lies_where_it_did(orientation: int) -> None:
    """517 and 643 are no multiples of 8: what is left over lies on another side once the image is turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stripes = (np.arange(517 * 643).reshape(517, 643) % 643 // 40 + np.arange(517)[:, None] // 30) % 2 * 200
    blob = jpeg(Image.fromarray(stripes.astype(np.uint8)), exif=exif)
    (whole, as_found), (small, found) = examine(blob), examine(blob, side=32)
    assert (found.size, found.mode) == (as_found.size, as_found.mode) and as_found.cover is None
    assert found.cover is not None and found.cover.size == whole.size
    left, top, right, bottom = found.cover.box
    assert (right - left, bottom - top) == (whole.width / 8, whole.height / 8)
    assert small.size == (math.ceil(whole.width / 8), math.ceil(whole.height / 8))
    exact = to_pixels(whole, CENTRE).astype(int)
    placed = np.abs(to_pixels(small, CENTRE, cover=found.cover) - exact).mean()
    assert placed < 2.5  # of edges of 200, at every seventh pixel
    misplaced = replace(found.cover, box=(0.0, 0.0, float(small.width), float(small.height)))
    assert np.abs(to_pixels(small, CENTRE, cover=misplaced) - exact).mean() > 1.2 * placed


def test_a_part_of_a_shrunk_image_is_never_outside_of_it() -> None:
    cover = Cover((4243, 2829), (1061 - 4243 / 4, 0.0, 1061.0, 2829 / 4))
    left, top, right, bottom = cover.within((1000, 500, 4243, 2829))
    assert (left, top) == pytest.approx((1061 - 4243 / 4 + 250, 125))
    assert (right, bottom) == (1061.0, 2829 / 4)
    assert cover.within((0, 0, 4243, 2829)) == cover.box


def test_what_is_wrong_with_a_file_is_found_as_before(noise) -> None:
    blob = jpeg(Image.fromarray(noise(600, 800)))
    with pytest.raises(ImageFailure, match="truncated"):
        examine(blob[: len(blob) // 2], side=32)
    with pytest.raises(ImageFailure, match="too_large"):
        examine(blob, max_pixels=1000, side=32)
    told: list[int] = []
    examine(blob, told.append, side=32)
    assert told == [600 * 800]  # a decoder of a progressive JPEG holds them all


@pytest.mark.parametrize(
    ("geometry", "scale"),
    [
        (replace(CENTRE, view=View(1, 0)), VIEW_SCALE),
        (replace(CENTRE, augmentation=Augmentation("crop", 0, 0)), CROP_SCALE),
    ],
)
@pytest.mark.parametrize("size", [(400, 300), (300, 400), (300, 300), (1200, 300)])
def test_a_part_drawn_at_random_keeps_twice_the_size_too(
    geometry: Geometry, scale: tuple[float, float], size: tuple[int, int]
) -> None:
    assert geometry.side is not None
    times = min(size) / (HEADROOM * geometry.side)  # as if an image of this size had just passed
    rng = np.random.default_rng(0)
    for _ in range(300):
        left, top, right, bottom = random_box(*size, rng, scale)
        assert min(right - left, bottom - top) + 1 >= times * HEADROOM * geometry.crop


@pytest.mark.parametrize(
    "drawn", [{"view": View(1, 0)}, {"augmentation": Augmentation("weights", 0, 3, True)}], ids=str
)
def test_what_is_drawn_is_the_same_part(drawn: dict[str, Any]) -> None:
    blob = jpeg(scene(1501, 2003))
    geometry = replace(CENTRE, **drawn)
    assert geometry.side is not None and 1501 // (HEADROOM * geometry.side) >= 2
    for number in range(20):
        exact, scaled = (
            seen(blob, g, bytes([number])).astype(int) for g in (replace(geometry, scaled=False), geometry)
        )
        assert np.abs(exact - scaled).mean() < 2


def test_flips_alone_shrink_as_the_centre_does_and_exact_never() -> None:
    assert replace(CENTRE, augmentation=Augmentation("flip", 0, 0)).side == CENTRE.side == 32
    assert replace(CENTRE, scaled=False, view=View(1, 0)).side is None


def test_the_policies_differ_in_one_field_and_are_plain_json() -> None:
    exact, scaled = decode_policy(scaled=False), decode_policy(scaled=True)
    assert json.loads(json.dumps(scaled)) == scaled
    assert {name for name in scaled if scaled[name] != exact.get(name)} == {"scaled"}
    assert set(scaled) - set(exact) == {"scaled"}
