"""Resizing and cropping equal torchvision's, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode, functional
from torchvision.transforms._presets import ImageClassification

from pipeline.base.errors import ConfigError
from pipeline.images import Geometry, ImageFailure, to_pixels


def reference(image: Image.Image, geometry: Geometry) -> np.ndarray:
    """The preset's own steps up to the conversion to float."""
    mode = InterpolationMode(geometry.interpolation)
    resized = functional.resize(image, [geometry.resize], interpolation=mode, antialias=True)
    return functional.pil_to_tensor(functional.center_crop(resized, [geometry.crop])).numpy()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "crop"), [(64, 56), (58, 56), (32, 32), (37, 29), (24, 40)])
def test_many_odd_sizes_give_torchvisions_bytes(noise, resize, crop, interpolation):
    rng = np.random.default_rng(resize)
    geometry = Geometry(resize, crop, interpolation)
    for _ in range(40):
        height, width = (int(n) for n in rng.integers(8, 200, 2))
        image = Image.fromarray(noise(height, width))
        assert np.array_equal(to_pixels(image, geometry), reference(image, geometry)), (width, height)


@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (232, 224)])
@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (640, 480), (333, 501), (256, 256), (32, 32), (300, 700), (1, 9)]
)
def test_photograph_sizes_give_torchvisions_bytes(noise, size, resize, crop):
    image = Image.fromarray(noise(size[1], size[0]))
    for interpolation in ("bilinear", "bicubic"):
        geometry = Geometry(resize, crop, interpolation)
        assert np.array_equal(to_pixels(image, geometry), reference(image, geometry))


def test_the_whole_preset_gives_the_same_tensor_once_normalised(noise):
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    image = Image.fromarray(noise(90, 120))
    preset = ImageClassification(crop_size=56, resize_size=64, mean=mean.tolist(), std=std.tolist())(image).numpy()
    ours = (to_pixels(image, Geometry(64, 56)) / 255 - mean[:, None, None]) / std[:, None, None]
    assert np.abs(preset - ours).max() < 1e-6


def test_pixels_are_contiguous_channels_first_bytes(noise):
    got = to_pixels(Image.fromarray(noise(20, 30)), Geometry(16, 14))
    assert (got.shape, got.dtype, got.flags.c_contiguous) == ((3, 14, 14), np.uint8, True)


@pytest.mark.parametrize(
    ("arguments", "words"), [((0, 1), "at least 1"), ((1, 0), "at least 1"), ((8, 8, "cubic"), "bilinear, bicubic")]
)
def test_illegal_geometry_is_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        Geometry(*arguments)


def test_a_hair_that_would_fill_memory_when_resized_is_too_large() -> None:
    """Few pixels in the file, many once its short side is 232."""
    with pytest.raises(ImageFailure, match=r"too_large: 3 x 2000000 pixels become"):
        to_pixels(Image.new("RGB", (3, 2_000_000)), Geometry(232, 224))
