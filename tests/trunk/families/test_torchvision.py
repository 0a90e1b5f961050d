"""torchvision's networks: what they consist of and what their weights want; the references are torchvision's own."""

from __future__ import annotations

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from pipeline.base.errors import ConfigError
from pipeline.images import Geometry, to_pixels
from pipeline.trunk.families import torchvision as family
from pipeline.trunk.families.family import Anatomy, family_of, skeleton
from pipeline.trunk.surgery import behead, build

# One of each family, with the size of its images: the smallest that is quick and that it can take.
NETWORKS = {
    "resnet18": 64,
    "vit_b_32": 64,
    "convnext_tiny": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "maxvit_t": 224,
    "regnet_y_400mf": 64,
    "densenet121": 64,
    "vgg11": 64,
    "alexnet": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "shufflenet_v2_x0_5": 64,
}
LARGE = {"maxvit_t", "efficientnet_v2_s", "swin_v2_t"}  # others of their kind stand beside them
SOME = [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in NETWORKS]


def made(name: str) -> tuple[nn.Module, Anatomy]:
    """The network without numbers where it can be made so, and what it consists of."""
    found, plain = family_of(name)
    model = skeleton(found, plain, num_classes=10, image_size=NETWORKS[name]).eval()
    return model, found.anatomy(plain, model)


def images(name: str, model: nn.Module) -> torch.Tensor:
    size = NETWORKS[name]
    return torch.zeros(2, 3, size, size, device=next(model.parameters()).device)


@pytest.mark.parametrize("name", SOME)
def test_features_are_what_goes_into_the_module_that_gives_the_logits(name: str) -> None:
    """As hooks on all modules see a real forward pass; beheaded, the network gives them."""
    model, anatomy = made(name)
    given: dict[str, object] = {}
    taken: dict[str, torch.Tensor] = {}

    def note(where: str) -> None:
        module = model.get_submodule(where)
        module.register_forward_hook(lambda _m, _i, output: given.__setitem__(where, output))
        module.register_forward_pre_hook(lambda _m, inputs: taken.__setitem__(where, inputs[0]))

    for where, module in model.named_modules():
        if where and not [*module.children()]:
            note(where)
    with torch.inference_mode():
        logits = model(images(name, model))
        (classifier,) = [where for where, output in given.items() if output is logits]
        features = taken[classifier]
        beheaded = behead(model, anatomy)(images(name, model))
    assert classifier == anatomy.classifier
    assert features.shape == beheaded.shape == (2, anatomy.dim)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        pytest.param("vit_b_32", marks=pytest.mark.slow),
        pytest.param("swin_t", marks=pytest.mark.slow),
        "mobilenet_v3_small",
        pytest.param("densenet121", marks=pytest.mark.slow),
        "googlenet",
    ],
)
def test_a_beheaded_network_gives_those_features_bit_for_bit(name: str) -> None:
    model = build(name, num_classes=10, image_size=64)
    anatomy = family.anatomy(name, model)
    taken: list[torch.Tensor] = []
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model.get_submodule(anatomy.classifier).register_forward_pre_hook(lambda _m, inputs: taken.append(inputs[0]))
    with torch.inference_mode():
        model(x)
        assert torch.equal(behead(model, anatomy)(x), taken[0])


@pytest.mark.parametrize("name", SOME)
def test_every_parameter_is_in_exactly_one_stage_or_in_the_classifier(name: str) -> None:
    model, anatomy = made(name)
    head = [n for n, _ in model.named_parameters() if n.rpartition(".")[0] == anatomy.classifier]
    assert f"{anatomy.classifier}.weight" in head  # MaxViT's has no bias
    listed = [p for stage in anatomy.stages for p in stage.parameters] + head
    assert len(listed) == len(set(listed))
    assert set(listed) == {n for n, _ in model.named_parameters()}
    assert len({stage.name for stage in anatomy.stages}) == len(anatomy.stages) > 1
    assert all(stage.parameters for stage in anatomy.stages)


@pytest.mark.parametrize("name", SOME)
def test_stages_come_in_the_order_of_the_forward_pass(name: str) -> None:
    """As hooks see it: no stage's module begins before all of an earlier stage's have begun."""
    model, anatomy = made(name)
    stage_of = {p.rpartition(".")[0]: n for n, stage in enumerate(anatomy.stages) for p in stage.parameters}
    begun: list[int] = []
    for where, number in stage_of.items():
        module = model.get_submodule(where)
        if not [*module.children()]:
            module.register_forward_pre_hook(lambda _m, _i, number=number: begun.append(number))
    with torch.inference_mode():
        model(images(name, model))
    assert begun == sorted(begun)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", ["stem", "layer1", "layer2", "layer3", "layer4"]),
        ("convnext_tiny", ["stem", "features.1", "features.3", "features.5", "features.7"]),
        ("vit_b_32", ["stem", *(f"encoder.layers.encoder_layer_{i}" for i in range(12))]),
        ("efficientnet_b0", ["stem", *(f"features.{i}" for i in range(1, 8))]),
        ("densenet121", ["stem", *(f"features.denseblock{i}" for i in range(1, 5))]),
    ],
)
def test_the_stages_are_those_that_the_papers_draw(name: str, stages: list[str]) -> None:
    assert [stage.name for stage in made(name)[1].stages] == stages


def test_what_is_between_two_stages_goes_with_the_later_and_what_is_last_with_the_last() -> None:
    tops = {
        name: [{p.removeprefix("features.").split(".")[0] for p in s.parameters} for s in made(name)[1].stages]
        for name in ("convnext_tiny", "densenet121", "efficientnet_b0")
    }
    assert tops["convnext_tiny"] == [{"0"}, {"1"}, {"2", "3"}, {"4", "5"}, {"6", "7", "classifier"}]
    assert tops["densenet121"] == [
        {"conv0", "norm0"},
        {"denseblock1"},
        *({f"transition{i}", f"denseblock{i + 1}"} for i in (1, 2)),
        {"transition3", "denseblock4", "norm5"},
    ]
    assert tops["efficientnet_b0"][-1] == {"7", "8"}
    vit = made("vit_b_32")[1]
    assert {"class_token", "conv_proj.weight", "encoder.pos_embedding"} <= set(vit.stages[0].parameters)
    assert "encoder.ln.weight" in vit.stages[-1].parameters


def test_what_is_no_weight_of_a_product_is_known() -> None:
    assert made("vit_b_32")[1].no_decay == {"class_token", "encoder.pos_embedding"}
    assert {n.rpartition(".")[2] for n in made("swin_t")[1].no_decay} == {"relative_position_bias_table"}
    assert {n.rpartition(".")[2] for n in made("convnext_tiny")[1].no_decay} == {"layer_scale"}
    assert not made("resnet18")[1].no_decay


def test_a_classifier_of_another_kind_is_refused_by_name() -> None:
    for name in ("squeezenet1_0", "squeezenet1_1"):
        model = skeleton(*family_of(name), num_classes=10, image_size=64)
        with pytest.raises(ConfigError, match=rf"trunk='{name}' has no linear classifier .*classifier.1, a Conv2d"):
            family.anatomy(name, model)


def test_all_networks_for_images_are_there_and_no_others() -> None:
    assert set(NETWORKS) <= set(family.names())
    assert list(family.names()) == torchvision.models.list_models(module=torchvision.models)
    assert not family.known("fcn_resnet50") and not family.known("resnet51")


def test_auxiliary_classifiers_are_left_out() -> None:
    for name in ("googlenet", "inception_v3"):
        assert not [n for n, _ in made(name)[0].named_parameters() if n.lower().startswith("aux")]


@pytest.mark.parametrize("name", ["maxvit_t", "vit_b_32"])
def test_a_size_that_a_network_cannot_take_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"image_size=100 is none that {name} can take"):
        build(name, num_classes=10, image_size=100)


def test_the_transform_of_every_entry_is_its_own_presets() -> None:
    for name in family.names():
        for own in torchvision.models.get_model_weights(name):
            preset, found = own.transforms(), family.entry(name, own.name)
            transform = found.transform
            assert ([transform.resize], [transform.crop]) == (preset.resize_size, preset.crop_size), own
            assert transform.interpolation == preset.interpolation.value, own
            assert (list(transform.mean), list(transform.std)) == (preset.mean, preset.std), own
            assert (found.name, found.missing) == (own.name, ""), own
        assert family.entries(name)[0] == torchvision.models.get_model_weights(name).DEFAULT.name
        assert family.entry(name, None) == family.entry(name, family.entries(name)[0])


@pytest.mark.parametrize("name", ["efficientnet_b0", "inception_v3", "vit_b_32"])
def test_an_image_becomes_what_the_preset_makes_of_it(name: str) -> None:
    t = family.entry(name, None).transform
    image = Image.effect_noise((500, 400), 90).convert("RGB")
    pixels = torch.from_numpy(to_pixels(image, Geometry(t.resize, t.crop, t.interpolation))) / 255
    ours = (pixels - torch.tensor(t.mean).view(3, 1, 1)) / torch.tensor(t.std).view(3, 1, 1)
    theirs = torchvision.models.get_model_weights(name).DEFAULT.transforms()(image)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_an_entry_that_is_not_there_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        family.entry("resnet18", "IMAGENET1K_V9")


@pytest.mark.slow
def test_a_file_for_images_of_another_size_has_its_position_embedding_interpolated() -> None:
    """As torchvision's own function does; no other tensor changes."""
    state = dict(build("vit_b_32", num_classes=3, image_size=64).state_dict())
    model, found = family.load("vit_b_32", state, image_size=96)
    name = "encoder.pos_embedding"
    expected = torchvision.models.vision_transformer.interpolate_embeddings(96, 32, dict(state))[name]
    assert found[name].shape == model.state_dict()[name].shape == (1, 10, 768)
    assert torch.equal(found[name], expected)
    assert all(found[n] is tensor for n, tensor in state.items() if n != name)
