"""timm's networks: names, transforms, features and stages; the references are timm's own functions."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from pipeline.base.errors import ConfigError, WeightsError
from pipeline.base.workspace import Workspace
from pipeline.trunk.families.family import anatomy_of, family_of, skeleton
from pipeline.trunk.identity import Changes, with_changes
from pipeline.trunk.surgery import behead, build, trunk_at
from pipeline.trunk.weights import load_model, resolve_weights

timm = pytest.importorskip("timm", reason="timm is not installed")

from pipeline.trunk.families import timm as family  # noqa: E402

NETWORKS = (
    "resnet18",
    "vit_tiny_patch16_224",
    "convnext_atto",
    "tf_efficientnet_lite0",
    "regnetx_002",
    "mobilenetv3_small_050",
)
SIZE = 64
SQUASHED = "timm:convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384"


def plain(name: str, seed: int = 0) -> nn.Module:
    """timm's own network, its norms with figures as after training."""
    given = {"img_size": SIZE} if name.startswith("vit") else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=10, **given).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


def images(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


# -- names ------------------------------------------------------------------------------------------------------------


def test_names_are_timms_with_or_without_a_tag() -> None:
    assert list(family.names()) == timm.list_models()
    for name in ("resnet50", "resnet50.a1_in1k", "resnet50.tv2_in1k", "vit_tiny_patch16_224"):
        assert family.known(name)
    for name in ("resnet51", "resnet50.tv9_in1k", "resnet51.a1_in1k"):
        assert not family.known(name)


def test_the_tags_are_those_of_timms_list_its_default_first() -> None:
    tags = family.entries("resnet50")
    assert {f"resnet50.{tag}" for tag in tags} == set(timm.list_pretrained("resnet50.*"))
    assert tags[0] == timm.get_pretrained_cfg("resnet50").tag
    assert family.entry("resnet50", None).name == tags[0]
    assert family.entry("resnet50.tv2_in1k", None).name == "tv2_in1k"
    with pytest.raises(KeyError):
        family.entry("resnet50", "tv9_in1k")


@pytest.mark.parametrize(
    ("asked", "offered"),
    [("timm:resnet51", "timm:resnet50"), ("timm:vit_tny_patch16_224", "timm:vit_tiny_patch16_224")],
)
def test_an_unknown_name_is_refused_with_the_nearest(asked: str, offered: str) -> None:
    with pytest.raises(ConfigError, match=f"trunk='{asked}' is not known: did you mean .*{offered}"):
        family_of(asked)


def test_an_unknown_tag_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trunk='timm:resnet50.tv9_in1k' is not known"):
        family_of("timm:resnet50.tv9_in1k")
    with pytest.raises(WeightsError, match="timm:resnet18 has no weights 'tv9': choose from a1_in1k.*tv_in1k"):
        resolve_weights("tv9", "timm:resnet18", Workspace(tmp_path))


# -- transforms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "crop"),
    [
        ("resnet50.tv2_in1k", 224),
        ("resnet50.a1_in1k", 288),
        ("vit_tiny_patch16_224", 224),
        ("convnext_atto", 288),
        ("tf_efficientnet_lite0.in1k", 224),
        ("mobilenetv3_small_050", 224),
    ],
)
def test_the_transform_is_timms_for_testing(name: str, crop: int) -> None:
    with torch.device("meta"):
        config = timm.data.resolve_model_data_config(timm.create_model(name, pretrained=False), use_test_size=True)
    steps = timm.data.create_transform(**config, is_training=False).transforms
    found = family.entry(name, None)
    assert config["input_size"] == (3, found.transform.crop, found.transform.crop)
    assert found.transform.crop == crop == steps[1].size[0]
    assert found.transform.resize == steps[0].size
    assert found.transform.interpolation == config["interpolation"] == steps[0].interpolation.value
    assert (found.transform.mean, found.transform.std) == (tuple(config["mean"]), tuple(config["std"]))
    assert found.missing == ""


def test_a_crop_mode_that_is_not_ours_is_refused_by_name_unless_the_transform_is_given(tmp_path: Path) -> None:
    assert timm.get_pretrained_cfg(SQUASHED.removeprefix("timm:")).crop_mode == "squash"
    info = resolve_weights("random:0", "timm:resnet18", Workspace(tmp_path), SQUASHED)
    assert info.preset == SQUASHED
    for few in (Changes(), Changes(image_size=64), Changes(resize=64, crop=64)):
        with pytest.raises(ConfigError, match=f"{SQUASHED} want crop mode squash.*give resize, crop and"):
            with_changes(info, few)
    given = with_changes(info, Changes(resize=72, crop=64, interpolation="bilinear")).transform
    assert (given.resize, given.crop, given.interpolation) == (72, 64, "bilinear")


# -- features and stages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_timms_own_before_the_classifier(name: str) -> None:
    model = plain(name)
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(images()), pre_logits=True)
        anatomy = anatomy_of(f"timm:{name}", model)
        features = behead(model, anatomy)(images())
    assert features.shape == (2, anatomy.dim)
    assert torch.equal(features, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_built_is_timms_for_the_same_seed(name: str) -> None:
    given = {"img_size": SIZE} if name.startswith("vit") else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        expected = timm.create_model(name, num_classes=10, **given).state_dict()
    ours = build(f"timm:{name}", num_classes=10, image_size=SIZE, seed=4).state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[n], tensor) for n, tensor in expected.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_stages_are_the_groups_of_timms_own_matcher(name: str) -> None:
    model = plain(name)
    anatomy = anatomy_of(f"timm:{name}", model)
    groups = timm.models.group_parameters(model, model.group_matcher(coarse=True))  # number -> names
    head = {f"{anatomy.classifier}.weight", f"{anatomy.classifier}.bias"}
    bodies = [set(groups[number]) for number in sorted(groups) if not head & set(groups[number])]
    for names in (set(groups[number]) for number in groups if head & set(groups[number])):
        bodies[-1] |= names - head  # a norm that comes with the classifier
    assert [set(stage.parameters) for stage in anatomy.stages] == bodies
    listed = [p for stage in anatomy.stages for p in stage.parameters]
    assert sorted([*listed, *head]) == sorted(n for n, _ in model.named_parameters())
    assert len({stage.name for stage in anatomy.stages}) == len(anatomy.stages)


def test_the_stages_are_known_by_the_modules_they_lie_in() -> None:
    names = {n: [s.name for s in anatomy_of(f"timm:{n}", plain(n)).stages] for n in ("resnet18", NETWORKS[1])}
    assert names["resnet18"] == ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert names[NETWORKS[1]] == ["stem", *(f"blocks.{i}" for i in range(12))]


def test_what_is_no_weight_of_a_product_is_timms_list_of_what_has_no_decay() -> None:
    model = plain("vit_tiny_patch16_224")
    own = {n for n, p in model.named_parameters() if p.ndim > 1 and n in model.no_weight_decay()}
    assert anatomy_of("timm:vit_tiny_patch16_224", model).no_decay == own == {"pos_embed", "cls_token"}


def test_two_classifiers_are_refused() -> None:
    name = "deit_tiny_distilled_patch16_224"
    model = skeleton(*family_of(f"timm:{name}"), num_classes=10, image_size=224)
    with pytest.raises(ConfigError, match=f"trunk='timm:{name}' has no linear classifier .*several"):
        family.anatomy(name, model)


def test_a_size_that_timm_refuses_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **given: object) -> None:
        assert given["img_size"] == 100
        raise AssertionError("not a multiple of the window\nsize")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ConfigError, match="cannot be made for images of 100 px: not a multiple of the window size"):
        build("timm:vit_tiny_patch16_224", num_classes=2, image_size=100)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224", "convnext_atto"])
@pytest.mark.parametrize("ending", [pytest.param(".pth", marks=pytest.mark.slow), ".safetensors"])
def test_a_file_of_timms_gives_the_features_that_timm_gives(name: str, ending: str, tmp_path: Path) -> None:
    model, path = plain(name, seed=3), tmp_path / f"mine{ending}"
    (torch.save if ending == ".pth" else safetensors.torch.save_file)(model.state_dict(), path)
    info = with_changes(resolve_weights(str(path), f"timm:{name}", Workspace(tmp_path)), Changes(image_size=SIZE))
    loaded = load_model(info)
    anatomy = anatomy_of(info.trunk, loaded)
    classifier = loaded.get_submodule(anatomy.classifier)
    assert classifier.weight.shape == (10, anatomy.dim) and not classifier.weight.any()
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(images()), pre_logits=True)
        assert torch.equal(behead(loaded, anatomy)(images()), expected)


@pytest.mark.slow
def test_position_embeddings_of_another_size_are_resampled_by_timms_filter(tmp_path: Path) -> None:
    name, path = "vit_tiny_patch16_224", tmp_path / "mine.pth"
    own = timm.create_model(name, num_classes=10)
    torch.save(own.state_dict(), path)
    info = with_changes(resolve_weights(str(path), f"timm:{name}", Workspace(tmp_path)), Changes(image_size=SIZE))
    target = timm.create_model(name, num_classes=10, img_size=SIZE)
    expected = timm.models.vision_transformer.checkpoint_filter_fn(dict(own.state_dict()), target)
    found = load_model(info).state_dict()
    assert found["pos_embed"].shape == (1, 1 + (SIZE // 16) ** 2, 192)
    assert torch.equal(found["pos_embed"], expected["pos_embed"])
    assert all(torch.equal(found[n], t) for n, t in own.state_dict().items() if n[:4] not in ("pos_", "head"))


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save(plain("resnet18").state_dict(), path)
    with pytest.raises(WeightsError, match="mine.pth does not fit timm:vit_tiny_patch16_224"):
        resolve_weights(str(path), "timm:vit_tiny_patch16_224", Workspace(tmp_path))


@pytest.mark.slow
def test_random_weights_of_a_preset_for_images_of_another_size_are_the_same_weights(tmp_path: Path) -> None:
    """A position embedding has as many numbers as the images have patches: the identity is that of its own size."""
    trunk, desk = "timm:vit_tiny_patch16_224", Workspace(tmp_path)
    own = resolve_weights("random:0", trunk, desk)
    other = resolve_weights("random:0", trunk, desk, "timm:vit_tiny_patch16_384")
    assert (own.transform.crop, other.transform.crop) == (224, 384)
    assert own.sha256 == other.sha256
    model = load_model(with_changes(other, Changes(image_size=SIZE)))
    with torch.inference_mode():
        assert model(images()).shape == (2, 1000)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_the_layer_before_the_last_is_the_mean_of_its_stages_maps(name: str) -> None:
    """As a hook on that stage of timm's sees them."""
    model = plain(name)
    maps: list[torch.Tensor] = []
    before = model.blocks[-2] if name.startswith("vit") else model.stages[-2]
    before.register_forward_hook(lambda _m, _i, output: maps.append(output.clone()))
    with torch.inference_mode():
        model(images())
        trunk, dim = trunk_at(model, anatomy_of(f"timm:{name}", model), "previous", SIZE)
        features = trunk(images())
    expected = maps[0].double().mean(dim=1 if maps[0].ndim == 3 else (2, 3))
    assert features.shape == (2, dim) == expected.shape
    torch.testing.assert_close(features.double(), expected, rtol=1e-5, atol=1e-6)
