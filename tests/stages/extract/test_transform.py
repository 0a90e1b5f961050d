"""The transform: the weights' own, another's, or as it is given; it is in the key and is found again from it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

from pipeline import extract, open_cache, predict, train
from pipeline.base.errors import ConfigError, WeightsError
from pipeline.base.workspace import Workspace
from pipeline.cli.commands import COMMANDS
from pipeline.cli.parser import parse, settings_of
from pipeline.heads.artifact import load_head
from pipeline.runs.recipe import Recipe, provenance_of
from pipeline.stages.extract.settings import ExtractSettings
from pipeline.trunk.surgery import build

Quick = dict[str, Any]
SMALL = {"trunk": "mobilenet_v2", "dtype": "float32"}  # two sets of weights, and features of 1e-9 where they are random
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


def recipe_of(made: Any, root: Path) -> Recipe:
    cache = open_cache(made.cache)
    return Recipe.of(provenance_of(cache), cache.about["weights"], Workspace(root))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # MobileNetV2's second weights resize to 232 and not to 256: 32 * 232 / 224 = 33.1
        ({}, {"resize": 33, "crop": 32, "interpolation": "bilinear", **IMAGENET}),
        ({"preset": "IMAGENET1K_V1"}, {"resize": 37, "crop": 32, "interpolation": "bilinear", **IMAGENET}),
        pytest.param(
            {"preset": "timm:vit_tiny_patch16_224"},
            {"resize": 35, "crop": 32, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3},
            marks=needs_timm,
        ),
        (
            {"image_size": None, "resize": 48, "crop": 40, "interpolation": "bicubic", "mean": 0.25, "std": 0.5},
            {"resize": 48, "crop": 40, "interpolation": "bicubic", "mean": [0.25] * 3, "std": [0.5] * 3},
        ),
        (
            {"mean": (0.25, 0.5, 0.75), "interpolation": "bicubic"},
            {"resize": 33, "crop": 32, "interpolation": "bicubic", "mean": [0.25, 0.5, 0.75], "std": IMAGENET["std"]},
        ),
    ],
)
def test_what_is_asked_for_is_in_the_key_and_found_again(
    photos: Path, tmp_path: Path, quick: Quick, options: Quick, expected: dict[str, Any]
) -> None:
    made = extract(photos, workspace=tmp_path, **{**quick, **SMALL, **options})
    cache, recipe = open_cache(made.cache), recipe_of(made, tmp_path)
    assert cache.provenance["transform"] == {**expected, "antialias": True}
    assert recipe.provenance() == cache.provenance
    geometry = recipe.geometry()
    found = (geometry.resize, geometry.crop, geometry.interpolation)
    assert found == (expected["resize"], expected["crop"], expected["interpolation"])


def test_rows_are_what_plain_torchvision_gives_for_that_transform(photos: Path, tmp_path: Path) -> None:
    mean, std = (0.25, 0.5, 0.75), (0.5, 0.5, 0.25)
    made = extract(
        photos,
        **{"trunk": "mobilenet_v2", "weights": "random:3", "engine": "torch", "dtype": "float32"},
        **{"resize": 44, "crop": 36, "interpolation": "bicubic", "mean": mean, "std": std},
        workspace=tmp_path,
    )
    torch.manual_seed(3)
    model = torchvision.models.mobilenet_v2(weights=None).eval()
    model.classifier = torch.nn.Identity()
    steps = [v2.Resize(44, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(36), v2.PILToTensor()]
    transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    cache = open_cache(made.cache)
    for row in (0, 30, 59):
        with Image.open(photos / os.fsdecode(cache.ids[row])) as image, torch.inference_mode():
            expected = model(transform(image)[None])[0].numpy()
        assert np.abs(cache.features[row] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_run_sees_images_as_its_cache_did(photos: Path, tmp_path: Path, quick: Quick) -> None:
    """The preset is given once; prediction finds the transform in the run."""
    made = extract(photos, workspace=tmp_path, **{**quick, **SMALL, "preset": "IMAGENET1K_V1"})
    head = train(made.cache, solver="adamw", epochs=2, workspace=tmp_path)
    cache = open_cache(made.cache)
    image = photos / os.fsdecode(cache.ids[0])
    (told,) = predict(head.run, [image], workspace=tmp_path)
    share = np.exp(load_head(head.run).logits(np.asarray(cache.features[:1], np.float32)) / head.temperature)
    assert told.probability == pytest.approx(float(share.max() / share.sum()), abs=1e-4)


@pytest.mark.slow
@needs_timm
def test_random_weights_are_found_again_where_a_preset_has_another_size(
    photos: Path, tmp_path: Path, quick: Quick
) -> None:
    """A vision transformer draws as many numbers as the images have patches."""
    options = {"trunk": "timm:vit_tiny_patch16_224", "preset": "timm:vit_tiny_patch16_384"}
    made = extract(photos, workspace=tmp_path, **{**quick, **options})
    assert recipe_of(made, tmp_path).provenance() == open_cache(made.cache).provenance


# -- a file says nothing of how its images were made ------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save(build("resnet18", num_classes=4, image_size=32).state_dict(), path)
    return path


GIVEN = {"image_size": None, "resize": 36, "crop": 32, "interpolation": "bilinear", "mean": 0.5, "std": 0.5}


@pytest.mark.slow
def test_a_files_guessed_transform_is_said_once_with_its_cure(
    photos: Path, tmp_path: Path, resnet: Quick, weights_file: Path, listener: Any
) -> None:
    extract(photos, workspace=tmp_path, watch=listener, views=1, **{**resnet, "weights": str(weights_file)})
    (said,) = [line for line in listener.text.splitlines() if "is a guess" in line]
    assert str(weights_file) in said and "that of IMAGENET1K_V1" in said
    assert "short side 37 (bilinear), centre 32, mean 0.485 0.456 0.406, std 0.229 0.224 0.225" in said
    for cure in ("preset", "resize", "crop", "interpolation", "mean", "std"):
        assert cure in said


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"preset": "IMAGENET1K_V1"}, GIVEN], ids=["preset", "given"])
def test_a_transform_that_was_asked_for_is_no_guess(
    photos: Path, tmp_path: Path, resnet: Quick, weights_file: Path, listener: Any, options: Quick
) -> None:
    extract(photos, workspace=tmp_path, watch=listener, **{**resnet, "weights": str(weights_file), **options})
    assert "is a guess" not in listener.text


@pytest.mark.slow
@needs_timm
def test_a_tag_in_the_trunks_name_says_which_transform_a_file_learned_with(
    photos: Path, tmp_path: Path, quick: Quick, listener: Any
) -> None:
    path = tmp_path / "mine.pth"
    torch.save(build("timm:test_resnet", num_classes=4, image_size=32).state_dict(), path)
    for trunk, guesses in (("timm:test_resnet.r160_in1k", 0), ("timm:test_resnet", 1)):
        listener.text = ""
        options = {**quick, "trunk": trunk, "weights": str(path)}
        made = extract(photos, workspace=tmp_path / trunk[5:], watch=listener, **options)
        assert listener.text.count("is a guess") == guesses
        assert recipe_of(made, tmp_path / trunk[5:]).provenance() == open_cache(made.cache).provenance


def test_random_weights_learned_with_nothing(photos: Path, tmp_path: Path, quick: Quick, listener: Any) -> None:
    extract(photos, workspace=tmp_path, watch=listener, **quick)
    assert "is a guess" not in listener.text


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop": 32}, "image_size says what resize and crop say"),
        ({"mean": (0.5, 0.5)}, "mean has 2 values: give one, or three"),
        ({"std": 0.0}, "std is 0.0: it must be above 0"),
        ({"interpolation": "nearest"}, "interpolation 'nearest' is not known: choose from bilinear, bicubic"),
        ({"preset": "IMAGENET1K_V9"}, "preset='IMAGENET1K_V9' is not known: choose from IMAGENET1K_V1, or"),
        ({"trunk": "resnet19"}, "trunk='resnet19' is not known: did you mean .*resnet18"),
        ({"layer": "layer2"}, "layer='layer2' is none of resnet18's: choose from last, previous, avgpool, layer3"),
        pytest.param(
            {"preset": "timm:convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384"},
            "want crop mode squash.*resize, crop and interpolation",
            marks=needs_timm,
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    photos: Path, tmp_path: Path, resnet: Quick, options: Quick, words: str
) -> None:
    with pytest.raises((ConfigError, WeightsError), match=words) as error:
        extract(photos, workspace=tmp_path, **{**resnet, **options})
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("features/*"))


@pytest.mark.parametrize(("words", "mean"), [(["0.5"], (0.5,)), (["0.1", "0.2", "0.3"], (0.1, 0.2, 0.3)), ([], None)])
def test_the_command_line_takes_one_value_or_three(words: list[str], mean: tuple[float, ...] | None) -> None:
    given = ["--mean", *words] if words else []
    settings = settings_of(parse(["extract", "photos", *given], COMMANDS), COMMANDS)
    assert isinstance(settings, ExtractSettings)
    assert settings.mean == settings.changes().mean == mean


# -- without timm -----------------------------------------------------------------------------------------------------


def test_a_trunk_of_a_library_that_is_not_installed_is_refused_with_the_cure(
    photos: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch, without: Callable[[str], None]
) -> None:
    without("timm")
    with pytest.raises(ConfigError, match=r"trunk='timm:resnet18' needs the package timm: pip install"):
        extract(photos, workspace=tmp_path, **{**quick, "trunk": "timm:resnet18"})


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Hides an installed package."""
    import sys

    def hide(package: str) -> None:
        for name in [n for n in sys.modules if n.split(".")[0] == package or n == f"pipeline.trunk.families.{package}"]:
            monkeypatch.delitem(sys.modules, name)
        finder = SimpleNamespace(find_spec=lambda name, *_: _absent(name) if name.split(".")[0] == package else None)
        monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])

    return hide


def _absent(name: str) -> None:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
