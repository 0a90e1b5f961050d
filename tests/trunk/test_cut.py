"""A network in two halves: together they are the network; what cannot be cut is refused with the reason."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.base.errors import ConfigError
from pipeline.trunk.cut import Pooled, halves, shape_of, width_axis
from pipeline.trunk.families.family import Anatomy, Stage, anatomy_of
from pipeline.trunk.surgery import behead, build, fingerprint

SIZE = 64
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
# name -> the shape before the last stage of one image of 64 px
NETWORKS = [
    ("resnet18", (256, 4, 4)),
    pytest.param("densenet121", (1024, 4, 4), marks=pytest.mark.slow),
    pytest.param("vit_b_32", (5, 768), marks=pytest.mark.slow),  # tokens
    pytest.param("swin_t", (4, 4, 384), marks=pytest.mark.slow),  # channels come last
    pytest.param("convnext_tiny", (384, 4, 4), marks=pytest.mark.slow),
    ("mobilenet_v3_small", (96, 2, 2)),
    ("efficientnet_b0", (192, 2, 2)),
    ("alexnet", (4096,)),  # rows
    pytest.param("timm:vit_tiny_patch16_224", (17, 192), marks=needs_timm),
    pytest.param("timm:convnext_atto", (160, 4, 4), marks=needs_timm),
]


def images(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "shape"), NETWORKS)
def test_the_halves_give_what_the_network_gives_bit_for_bit(name: str, shape: tuple[int, ...]) -> None:
    """Whole and beheaded, for any number of images."""
    network = build(name, num_classes=5, image_size=SIZE)
    anatomy = anatomy_of(name, network)
    for of in (network, behead(network, anatomy)):
        before, after = halves(of, anatomy)
        with torch.inference_mode():
            for n in (2, 3):
                maps = before(images(n))
                assert maps.shape == (n, *shape)
                assert torch.equal(after(maps), of(images(n)))
    assert shape_of(before, SIZE) == shape


@pytest.mark.parametrize("name", ["resnet18", pytest.param("vit_b_32", marks=pytest.mark.slow)])
def test_the_halves_hold_the_networks_own_parameters_each_on_its_side(name: str) -> None:
    network = build(name, num_classes=5, image_size=SIZE)
    anatomy = anatomy_of(name, network)
    before, after = halves(network, anatomy)
    last = {*anatomy.stages[-1].parameters, f"{anatomy.classifier}.weight", f"{anatomy.classifier}.bias"}
    own = dict(network.named_parameters())
    for half, names in ((before, own.keys() - last), (after, last)):
        found = dict(half.named_parameters())
        assert found.keys() == names
        assert all(found[n] is own[n] for n in names)
    maps = before(images())
    after(maps).sum().backward()
    assert {n for n, p in own.items() if p.grad is not None} >= last


def test_a_shape_is_found_without_a_trace() -> None:
    network = build("resnet18", num_classes=5, image_size=SIZE).train()
    network.layer1.eval()
    kept, modes = fingerprint(network), [m.training for m in network.modules()]
    front, _ = halves(network, anatomy_of("resnet18", network))
    assert shape_of(front, SIZE) == (256, 4, 4)
    assert fingerprint(network) == kept
    assert [m.training for m in network.modules()] == modes


def test_a_network_that_needs_numbers_for_its_shapes_is_given_them() -> None:
    class Dense(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if x.sum().item() == 0 else x

    assert shape_of(Dense(3, 7, 2), 5) == (7, 4, 4)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        shape_of(Dense(3, 7, 6), 5)


# -- what cannot be cut -----------------------------------------------------------------------------------------------

SMALL = Anatomy(
    "head", 4, (Stage("stem", ("stem.weight", "stem.bias")), Stage("body", ("body.weight", "body.bias"))), frozenset()
)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.body(self.stem(x))
        return self.head(maps.mean((2, 3)))


class Skipping(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        early = self.stem(x)
        maps = self.body(early.relu()) + early
        return self.head(maps.mean((2, 3)))


class Returning(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.body(self.stem(x)).mean((2, 3)) + x.mean((1, 2, 3), keepdim=True).flatten(1)
        return self.head(maps)


class Deciding(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.stem(x)
        if maps.sum() > 0:
            maps = -maps
        return self.head(self.body(maps).mean((2, 3)))


class Idle(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x).mean((2, 3)))


def test_a_small_network_is_cut() -> None:
    network = Small()
    before, after = halves(network, SMALL)
    with torch.inference_mode():
        assert torch.equal(before(images()), network.stem(images()))
        assert torch.equal(after(before(images())), network(images()))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Skipping, r"more than one thing goes over the cut \(relu, stem\)"),
        (Returning, r"more than one thing goes over the cut \(stem, x\)"),
        (Deciding, "it cannot be traced .*control flow"),
        (Idle, "it does not run its last stage, body"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_reason(kind: type[Small], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"a {kind.__name__} cannot be cut before its last stage: {reason}") as error:
        halves(kind(), SMALL)
    assert "\n" not in str(error.value)


def test_a_network_of_one_stage_has_nothing_before_it() -> None:
    whole = Stage("all", tuple(p for stage in SMALL.stages for p in stage.parameters))
    with pytest.raises(ConfigError, match="nothing comes before it"):
        halves(Small(), Anatomy("head", 4, (whole,)))


# -- the mean over places ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axis", "places", "dim"),
    [
        ((8, 5, 5), 3, (2, 3), 8),
        ((5, 5, 8), 2, (1, 2), 8),
        ((1, 1, 8), 2, (1, 2), 8),
        ((17, 8), None, (1,), 8),
        ((8,), None, (), 8),
    ],
)
def test_pooling_is_the_mean_over_places(
    shape: tuple[int, ...], axis: int | None, places: tuple[int, ...], dim: int
) -> None:
    maps = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    pooled = Pooled(nn.Identity(), shape)
    assert width_axis(shape) == axis and pooled.dim == dim
    found = pooled(torch.from_numpy(maps)).numpy()
    assert found.shape == (3, dim)
    np.testing.assert_allclose(found, maps.astype(np.float64).mean(places), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 5, 4), (2, 8, 5, 5)])
def test_what_is_neither_maps_nor_tokens_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="layer: the stage before the last gives .*neither maps nor tokens"):
        Pooled(nn.Identity(), shape)
