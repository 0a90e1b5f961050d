"""A family of networks in one file and one entry, through every stage: two convolutions, another classifier's name.

No BatchNorm, nothing of a ResNet's names; its stages, its cut and its head are what the family and the network say.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from pipeline import evaluate, export, extract, finetune, open_cache, predict, search, train
from pipeline.base.errors import ConfigError
from pipeline.cli.main import main
from pipeline.heads.artifact import load_head
from pipeline.trunk.families import FAMILIES
from pipeline.trunk.families.family import Anatomy, Entry, Stage, require_linear
from pipeline.trunk.identity import Transform

DIM = 12
TRANSFORM = Transform(resize=36, crop=32, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


class Pebble(nn.Module):
    """What would come from somebody's library."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.far = nn.Conv2d(8, DIM, 3, stride=2, padding=1)
        self.decide = nn.Linear(DIM, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = torch.relu(self.far(torch.relu(self.near(x))))
        return self.decide(maps.mean(dim=(2, 3)))


class Pebbles:
    """What would be the file of the family."""

    @staticmethod
    def names() -> Sequence[str]:
        return ("pebble",)

    @staticmethod
    def known(name: str) -> bool:
        return name == "pebble"

    @staticmethod
    def entries(name: str) -> Sequence[str]:
        return ("ROUND",)

    @staticmethod
    def entry(name: str, weights: str | None) -> Entry:
        if weights not in (None, "ROUND"):
            raise KeyError(weights)
        return Entry("ROUND", TRANSFORM, None)

    @staticmethod
    def build(name: str, *, num_classes: int, image_size: int, pretrained: bool) -> nn.Module:
        return Pebble(num_classes)

    @staticmethod
    def code(name: str, *, num_classes: int, image_size: int, pretrained: bool) -> tuple[str, str]:
        return "pebbles", f"pebbles.Pebble({num_classes})"

    @staticmethod
    def load(
        name: str, state: Mapping[str, torch.Tensor], *, image_size: int
    ) -> tuple[nn.Module, Mapping[str, torch.Tensor]]:
        return Pebble(len(state["decide.weight"])), state

    @staticmethod
    def anatomy(name: str, model: nn.Module) -> Anatomy:
        head = require_linear(name, model.get_submodule("decide"), "decide")
        stages = tuple(Stage(part, (f"{part}.weight", f"{part}.bias")) for part in ("near", "far"))
        return Anatomy("decide", head.in_features, stages)


@pytest.fixture(scope="module", autouse=True)
def pebbles() -> Any:
    """The file where it would lie, and the entry."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pipeline.trunk.families.pebbles", Pebbles)
        patch.setitem(FAMILIES, "pebbles:", "pebbles")
        yield


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Weights that somebody saved, a cache of theirs and a head."""
    root = tmp_path_factory.mktemp("workspace")
    torch.manual_seed(4)
    network, weights = Pebble(5), root / "pebble.safetensors"
    safetensors.torch.save_file(network.state_dict(), weights)
    cache = extract(photos, trunk="pebbles:pebble", weights=weights, workspace=root).cache
    return SimpleNamespace(root=root, network=network.eval(), cache=cache, head=train(cache, C=10, workspace=root))


def test_its_features_are_what_goes_into_its_classifier_of_images_by_its_transform(
    made: SimpleNamespace, photos: Path
) -> None:
    torchvision = pytest.importorskip("torchvision")
    from PIL import Image

    preset = torchvision.transforms._presets.ImageClassification(
        crop_size=32,
        resize_size=36,
        mean=TRANSFORM.mean,
        std=TRANSFORM.std,
        interpolation=torchvision.transforms.InterpolationMode.BICUBIC,
    )
    cache, (row, *_) = open_cache(made.cache), open_cache(made.cache).split("val").rows
    with Image.open(photos / cache.ids[row].decode()) as image, torch.inference_mode():
        x = preset(image.convert("RGB"))[None]
        maps = torch.relu(made.network.far(torch.relu(made.network.near(x))))
    assert cache.provenance["trunk"] == {"name": "pebbles:pebble", "layer": "last"}
    np.testing.assert_allclose(cache.features[row], maps.mean(dim=(2, 3))[0].numpy(), rtol=2e-3, atol=1e-4)


def test_the_stage_before_the_last_can_be_asked_for(made: SimpleNamespace, photos: Path) -> None:
    found = extract(
        photos,
        trunk="pebbles:pebble",
        weights="random:0",
        layer="previous",
        out=made.root / "p.h5",
        workspace=made.root,
    )
    assert open_cache(found.cache).features.shape[1] == 8


def test_a_search_chooses_and_the_test_split_scores(made: SimpleNamespace) -> None:
    found = search(made.cache, workspace=made.root)
    assert evaluate(found.run, workspace=made.root).test["n"] == 9


@pytest.mark.parametrize(("part", "groups"), [("all", 3), ("last", 2), ("head", 1)])
def test_it_is_fine_tuned_in_its_own_stages(made: SimpleNamespace, part: str, groups: int) -> None:
    tuned = finetune(made.head.run, train=part, epochs=1, lr_trunk=1e-2, lr_head=1e-2, workspace=made.root)
    assert tuned.certificate_max_abs <= tuned.certificate_tolerance
    after = safetensors.torch.load_file(tuned.run / "model.safetensors")
    assert set(after) == set(made.network.state_dict())
    same = {name.split(".")[0] for name in after if torch.equal(after[name], made.network.state_dict()[name])}
    assert len({"near", "far", "decide"} - same) in (1, groups)  # where no epoch was better, the start is kept
    assert evaluate(tuned.run, workspace=made.root).test["n"] == 9


@pytest.mark.slow
def test_it_predicts_and_its_export_is_its_own_network(made: SimpleNamespace, photos: Path) -> None:
    found = predict(made.head.run, photos, workspace=made.root)
    assert {p.class_name for p in found} <= {"ant", "bee", "cat"}
    tensors = safetensors.torch.load_file(export(made.head.run, format="state_dict", workspace=made.root).file)
    plain = Pebble(3)
    plain.load_state_dict(tensors, strict=True)
    head = load_head(made.head.run)
    assert head.layer is not None
    np.testing.assert_array_equal(tensors["decide.weight"].numpy(), head.layer[0])
    for format in ("onnx", "torch_export"):
        parity = export(made.head.run, format=format, workspace=made.root).parity
        assert max(parity.values()) < 1e-5


def test_what_it_has_not_is_refused_in_its_words(made: SimpleNamespace, photos: Path, capsys: Any) -> None:
    with pytest.raises(ConfigError, match=r"pebbles:pebbel.*did you mean pebbles:pebble"):
        extract(photos, trunk="pebbles:pebbel", workspace=made.root)
    with pytest.raises(ConfigError, match=r"train='layer4' is a ResNet's word.*head, far, near"):
        finetune(made.head.run, train="layer4", workspace=made.root)
    assert main(["trace", made.head.run.name, "--workspace", str(made.root)]) == 0
    assert "decide" in capsys.readouterr().out
