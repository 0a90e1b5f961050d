"""Beheading, reattaching, freezing, describing; the reference is plain torchvision or float64 NumPy."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from pipeline.base.errors import ConfigError, WeightsError
from pipeline.trunk.families.family import Anatomy, anatomy_of
from pipeline.trunk.surgery import Station, behead, build, describe, fingerprint, freeze, reattach, trunk_at


@pytest.fixture(scope="module")
def built() -> nn.Module:
    return build("resnet18", num_classes=1000, image_size=64)


@pytest.fixture(scope="module")
def anatomy(built: nn.Module) -> Anatomy:
    return anatomy_of("resnet18", built)


@pytest.fixture
def model(built: nn.Module) -> nn.Module:
    return copy.deepcopy(built)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_built_networks_are_torchvisions_for_the_same_seed_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torchvision.models.resnet18(num_classes=7)
    state = torch.get_rng_state()
    ours = build("resnet18", num_classes=7, image_size=224, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert not ours.training
    for name, tensor in expected.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_an_unknown_network_is_refused_with_the_legal_ones() -> None:
    with pytest.raises(ConfigError, match=r"trunk='resnet51' is not known: did you mean .*resnet50.*torchvision has"):
        build("resnet51", num_classes=2, image_size=64)


def test_a_beheaded_model_gives_what_went_into_its_classifier(
    model: nn.Module, anatomy: Anatomy, images: torch.Tensor
) -> None:
    plain = copy.deepcopy(model)
    seen: list[torch.Tensor] = []
    plain.get_submodule("fc").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        plain(images)
        trunk = behead(model, anatomy)
        features = trunk(images)
    assert trunk is model
    assert anatomy.dim == features.shape[1] == 512
    assert torch.equal(features, seen[0])
    assert not [name for name, _ in trunk.named_parameters() if name.startswith("fc")]


def test_a_model_without_a_classifier_says_so(model: nn.Module, anatomy: Anatomy) -> None:
    """Of what is beheaded already nothing more can be taken off."""
    with pytest.raises(ConfigError, match="trunk='resnet18' has no linear classifier"):
        anatomy_of("resnet18", behead(model, anatomy))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize(("layer", "last"), [("avgpool", "layer4"), ("layer3", "layer3")])
def test_the_trunk_at_a_layer_gives_that_layers_mean_over_places(
    name: str, layer: str, last: str, images: torch.Tensor
) -> None:
    model = build(name, num_classes=2, image_size=64)
    maps: list[torch.Tensor] = []
    model.get_submodule(last).register_forward_hook(lambda _m, _i, output: maps.append(output))
    with torch.inference_mode():
        model(images)
        trunk, dim = trunk_at(model, anatomy_of(name, model), layer, 64)
        features = trunk(images)
    expected = maps[0].double().mean(dim=(2, 3))
    assert features.shape == (3, dim)
    torch.testing.assert_close(features.double(), expected, rtol=1e-5, atol=1e-6)


def test_taking_a_trunk_leaves_the_model_and_its_mode_as_they_are(model: nn.Module, anatomy: Anatomy) -> None:
    model.train()
    before = fingerprint(model)
    trunk, _ = trunk_at(model, anatomy, "layer3", 64)
    assert all(m.training for m in (trunk, *model.modules()))
    assert fingerprint(model) == before


# -- reattaching ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beheaded", [False, True])
def test_a_reattached_head_gives_weight_times_features_plus_bias(
    model: nn.Module, anatomy: Anatomy, images: torch.Tensor, beheaded: bool
) -> None:
    """Reattached logits equal those of the features."""
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(5, 512)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    with torch.inference_mode():
        features = trunk_at(copy.deepcopy(model), anatomy, "avgpool", 64)[0](images).double().numpy()
    if beheaded:
        behead(model, anatomy)
    freeze(model)
    whole = reattach(model, anatomy, weight, bias)
    with torch.inference_mode():
        logits = whole(images).numpy()
    np.testing.assert_allclose(logits, features @ weight.T.astype(float) + bias, rtol=1e-4, atol=1e-4)


def test_a_reattached_model_can_learn_again(model: nn.Module, anatomy: Anatomy) -> None:
    freeze(model)
    whole = reattach(model, anatomy, np.zeros((2, 512), np.float32), np.zeros(2, np.float32))
    assert not whole.training
    assert all(p.requires_grad for p in whole.parameters())
    before = fingerprint(whole)
    whole.train()(torch.zeros(2, 3, 32, 32))
    assert all(m.training for m in whole.modules())
    assert fingerprint(whole) != before


@pytest.mark.parametrize(("weight", "bias"), [((2, 511), (2,)), ((2, 512), (3,)), ((512,), (1,))])
def test_a_head_of_another_size_is_refused(
    model: nn.Module, anatomy: Anatomy, weight: tuple[int, ...], bias: tuple[int, ...]
) -> None:
    with pytest.raises(WeightsError, match="does not fit 512 features"):
        reattach(model, anatomy, np.zeros(weight, np.float32), np.zeros(bias, np.float32))


# -- frozen -----------------------------------------------------------------------------------------------------------


def test_a_frozen_model_is_bit_identical_after_train_and_forward(model: nn.Module, images: torch.Tensor) -> None:
    """BatchNorm's figures do not drift, even if somebody calls train() on the model, a part or a parent."""
    freeze(model)
    before = fingerprint(model)
    model.train()
    model.get_submodule("layer2").train()
    model.get_submodule("bn1").train(mode=True)
    nn.Sequential(model).train()
    model(images)
    assert not any(m.training for m in model.modules())
    assert fingerprint(model) == before


def test_a_model_that_is_not_frozen_does_drift(model: nn.Module, images: torch.Tensor) -> None:
    """What the test above shows would otherwise happen."""
    before = fingerprint(model)
    model.train()(images)
    assert fingerprint(model) != before


def test_a_frozen_model_has_no_gradients_and_stays_frozen_when_copied(model: nn.Module, images: torch.Tensor) -> None:
    freeze(model)
    before = fingerprint(model)
    copied = copy.deepcopy(model)
    copied.train()
    for one in (model, copied):
        one(images)
        assert not any(p.requires_grad for p in one.parameters())
        assert not any(m.training for m in one.modules())
        assert fingerprint(one) == before


@pytest.mark.parametrize("layer", ["avgpool", "layer3"])
def test_a_part_taken_from_a_frozen_model_is_frozen(
    model: nn.Module, anatomy: Anatomy, images: torch.Tensor, layer: str
) -> None:
    freeze(model)
    trunk = trunk_at(model, anatomy, layer, 64)[0]
    before = fingerprint(model)
    expected = trunk(images)
    trunk.train()
    assert torch.equal(trunk(images), expected)
    assert fingerprint(model) == before


def _flip_last_bit(tensor: torch.Tensor) -> None:
    tensor.view(-1).view(torch.int32 if tensor.dtype is torch.float32 else tensor.dtype)[0] ^= 1


@pytest.mark.parametrize("name", ["layer4.1.conv2.weight", "bn1.running_var", "bn1.num_batches_tracked"])
def test_one_bit_of_a_parameter_or_buffer_changes_the_fingerprint(model: nn.Module, name: str) -> None:
    before = fingerprint(model)
    assert fingerprint(copy.deepcopy(model)) == before
    _flip_last_bit(model.state_dict()[name])
    assert fingerprint(model) != before


def test_names_types_and_shapes_are_part_of_the_fingerprint() -> None:
    def holding(name: str, tensor: torch.Tensor) -> nn.Module:
        module = nn.Module()
        module.register_buffer(name, tensor)
        return module

    zeros = torch.zeros(4)
    same_bytes = [
        holding("a", zeros),
        holding("b", zeros),
        holding("a", zeros.view(2, 2)),
        holding("a", torch.zeros(4, dtype=torch.int32)),
        holding("a", torch.zeros(8, dtype=torch.bfloat16)),
    ]
    assert len({fingerprint(m) for m in same_bytes}) == len(same_bytes)
    assert fingerprint(holding("a", torch.zeros(()))) != fingerprint(holding("a", torch.zeros(1)))


# -- description ------------------------------------------------------------------------------------------------------


def test_the_description_of_resnet50_has_its_published_shapes_and_counts() -> None:
    model = build("resnet50", num_classes=1000, image_size=224)
    stages = describe(model, anatomy_of("resnet50", model), 224)
    assert [s.name for s in stages] == [
        *("input", "conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc")
    ]
    shapes = {s.name: s.shape_out for s in stages}
    assert shapes["input"] == (3, 224, 224)
    assert shapes["layer3"] == (1024, 14, 14)
    assert shapes["layer4"] == (2048, 7, 7)
    assert shapes["fc"] == (1000,)
    assert sum(s.params for s in stages) == torchvision.models.ResNet50_Weights.DEFAULT.meta["num_params"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("vit_b_32", marks=pytest.mark.slow),
        "convnext_tiny",
        pytest.param("swin_t", marks=pytest.mark.slow),
        pytest.param("densenet121", marks=pytest.mark.slow),
        "googlenet",
        "alexnet",
    ],
)
def test_the_description_has_every_parameter_once_and_ends_with_what_the_network_gives(name: str) -> None:
    model = build(name, num_classes=10, image_size=64)
    anatomy = anatomy_of(name, model)
    total = sum(p.numel() for p in model.parameters())
    whole = describe(model, anatomy, 64)
    assert sum(s.params for s in whole) == total and whole[-1].shape_out == (10,)
    beheaded = describe(behead(model, anatomy), anatomy, 64)
    assert sum(s.params for s in beheaded) == total - 10 * anatomy.dim - 10
    assert beheaded[-1].shape_out == (anatomy.dim,)


def test_the_description_says_what_learns_and_ends_with_the_features_of_a_beheaded_model(
    model: nn.Module, anatomy: Anatomy
) -> None:
    assert describe(model, anatomy, 64)[-1] == Station("fc", (1000,), 513_000, "trained")
    behead(model, anatomy)
    freeze(model)
    assert describe(model, anatomy, 64)[-1].name == "features"
    stages = {s.name: s for s in describe(model, anatomy, 64)}
    assert stages["features"] == Station("features", (512,), 0, "")
    assert stages["layer1"].state == "frozen"


def test_describing_leaves_modes_and_buffers_as_they_were(model: nn.Module, anatomy: Anatomy) -> None:
    model.train()
    model.get_submodule("layer1").eval()
    modes, before = [m.training for m in model.modules()], fingerprint(model)
    describe(model, anatomy, 64)
    assert [m.training for m in model.modules()] == modes
    assert fingerprint(model) == before
