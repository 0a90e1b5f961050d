"""Folding, by what a network does and not by what its modules are called; the reference is the network in float64."""

from __future__ import annotations

import copy
import importlib.util

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.trunk.engines.fold import FoldedTrunk, Found, what_folds
from pipeline.trunk.engines.torch import TorchEngine
from pipeline.trunk.identity import Transform, WeightsInfo
from pipeline.trunk.surgery import fingerprint

SIZE, BATCH = 16, 3
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
INFO = WeightsInfo(
    trunk="own",
    spec="random:0",
    name="random:0",
    sha256="00" * 32,
    path=None,
    pretrained=False,
    layers=(("last", 8),),
    transform=Transform(SIZE, SIZE, "bilinear", MEAN, STD),
    preset="",
)
PIXELS = np.random.default_rng(0).integers(0, 256, (BATCH, 3, SIZE, SIZE), dtype=np.uint8)


class Own(nn.Module):
    """Names that no library has, declared in another order than they run in."""

    def __init__(self) -> None:
        super().__init__()
        self.calm = nn.BatchNorm2d(8)
        self.grow = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.settle = nn.BatchNorm2d(8)
        self.turn = nn.Conv2d(8, 8, 3, padding=1, groups=2)  # with a bias of its own
        self.gather = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.settle(self.grow(x)).relu()
        return self.gather(self.calm(self.turn(x)).relu()).flatten(1)


class Shared(Own):
    """Another thing takes what the second convolution gives."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.turn(self.settle(self.grow(x)).relu())
        return self.gather((self.calm(x) + x).relu()).flatten(1)


class Twice(Own):
    """One convolution and its norm at two places."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.settle(self.grow(x)).relu()
        x = self.calm(self.turn(x)).relu()
        return self.gather(self.calm(self.turn(x))).flatten(1)


class Ends(Own):
    """The images are used in two places."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gather(self.settle(self.grow(x)).relu()).flatten(1) + x.mean((1, 2, 3)).unsqueeze(1)


class Deciding(Own):
    """Cannot be traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.settle(self.grow(x))
        if x.sum() > 0:
            x = x.relu()
        return self.gather(x).flatten(1)


class Tied(Own):
    """A convolution without a norm has the weight of one that has a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.mirror = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.mirror.weight = self.turn.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.mirror(self.settle(self.grow(x))).mean((2, 3))


def made(kind: type[Own]) -> Own:
    """Frozen, every number its own."""
    network = kind()
    generator = torch.Generator().manual_seed(7)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=generator) + 0.25
    return network.requires_grad_(False).eval()


def expected(network: nn.Module) -> NDArray[np.float64]:
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    with torch.inference_mode():
        features: NDArray[np.float64] = (
            copy.deepcopy(network).double()((torch.from_numpy(PIXELS).double() / 255 - mean) / std).numpy()
        )
    return features


def assert_right(network: nn.Module, folded: FoldedTrunk) -> None:
    reference = expected(network)
    with torch.inference_mode():
        found = folded(torch.from_numpy(PIXELS)).numpy()
    assert found.dtype == np.float32
    assert np.abs(found - reference).max() <= 1e-5 * np.abs(reference).max()


def norms(module: nn.Module) -> list[str]:
    return [name for name, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("kind", "found", "left"),
    [
        (Own, Found((("grow", "settle"), ("turn", "calm")), "grow", "gather"), []),
        (Shared, Found((("grow", "settle"),), "grow", "gather"), ["calm"]),
        (Twice, Found((("grow", "settle"),), "grow", "gather"), ["calm"]),
        (Ends, Found((("grow", "settle"),), None, "gather"), ["calm"]),
        (Deciding, Found(), ["calm", "settle"]),
        (Tied, Found((("turn", "calm"),), None, None), ["settle"]),
    ],
)
def test_what_folds_is_found_by_the_forward_pass(kind: type[Own], found: Found, left: list[str]) -> None:
    network = made(kind)
    assert what_folds(network) == found
    folded = FoldedTrunk(network, INFO, 8)
    assert norms(folded.net) == left
    assert (folded.gain is None) == (found.first is not None)
    assert_right(network, folded)


@pytest.mark.parametrize("given", [{"affine": False}, {"track_running_stats": False}])
def test_a_norm_without_a_scale_or_statistics_is_left(given: dict[str, bool]) -> None:
    network = made(Own)
    network.settle = nn.BatchNorm2d(8, **given).eval()
    assert what_folds(network).pairs == (("turn", "calm"),)
    assert_right(network, FoldedTrunk(network, INFO, 8))


def test_a_network_without_norms_is_normalised_before_it() -> None:
    network = made(Own)
    network.settle, network.calm = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    folded = FoldedTrunk(network, INFO, 8)
    assert what_folds(network) == Found((), None, "gather") and folded.gain is not None
    assert_right(network, folded)


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
def test_a_norm_that_has_the_activation_in_it_leaves_it() -> None:
    """timm's BatchNormAct2d."""
    from timm.layers import BatchNormAct2d

    network = made(Own)
    network.calm = BatchNormAct2d(8, act_layer=nn.SiLU)
    network.calm.running_mean.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    network.requires_grad_(False).eval()
    folded = FoldedTrunk(network, INFO, 8)
    assert norms(folded.net) == []
    assert [type(m) for m in folded.net.get_submodule("calm").modules() if not [*m.children()]][-1] is nn.SiLU
    assert_right(network, folded)


def test_pooling_is_in_float32_whatever_the_precision() -> None:
    engine = TorchEngine(
        FoldedTrunk(made(Own), INFO, 8), image_size=SIZE, device="cpu", precision="bfloat16", batch=BATCH
    )
    seen: list[torch.dtype] = []
    pool = next(m for m in engine.net.modules() if isinstance(m, nn.AdaptiveAvgPool2d))
    pool.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].dtype))
    found = engine(PIXELS)
    assert seen == [torch.float32] and found.dtype == np.float32


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [Own, Shared, Deciding, Tied])
def test_the_trunks_own_tensors_stay_as_they_were(kind: type[Own], precision: str) -> None:
    """Also where the engine has taken its copy to another type and layout."""
    network = made(kind)
    own = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers())
    before = {n: (t, t.data_ptr(), t.stride(), t.dtype) for n, t in own.items()}
    kept = fingerprint(network)
    engine = TorchEngine(FoldedTrunk(network, INFO, 8), image_size=SIZE, device="cpu", precision=precision, batch=BATCH)
    engine(PIXELS)
    now = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers())
    assert {n: (t, t.data_ptr(), t.stride(), t.dtype) for n, t in now.items()}.keys() == before.keys()
    for name, (tensor, *rest) in before.items():
        assert now[name] is tensor, name
        assert [tensor.data_ptr(), tensor.stride(), tensor.dtype] == rest, name
    assert fingerprint(network) == kept
    theirs = {t.data_ptr() for t in (*engine.net.parameters(), *engine.net.buffers())}
    assert not theirs & {pointer for _, pointer, *_ in before.values()}


def test_a_whole_mean_is_subtracted_and_the_first_bias_makes_up_for_the_rest() -> None:
    network = made(Own)
    plain, whole = FoldedTrunk(network, INFO, 8), FoldedTrunk(network, INFO, 8, whole_mean=True)
    assert whole.shift.flatten().tolist() == [102, 128, 153] and plain.shift.flatten().tolist() == [102, 127.5, 153]
    pixels = torch.from_numpy(PIXELS)
    maps = [folded.net.get_submodule("grow")(pixels.float() - folded.shift) for folded in (plain, whole)]
    assert torch.allclose(maps[0][..., 1:-1, 1:-1], maps[1][..., 1:-1, 1:-1], atol=1e-5)  # within the padding
    assert (maps[0] - maps[1]).abs().max() < 0.1 * maps[0].abs().max()
    # Where nothing was folded there is no convolution that could.
    assert FoldedTrunk(made(Ends), INFO, 8, whole_mean=True).shift.flatten().tolist() == [102, 127.5, 153]
