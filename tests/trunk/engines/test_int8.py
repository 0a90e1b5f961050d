"""int8: bounds found on images, a network computed between them; against PyTorch's own rounding to the same steps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.base.errors import ConfigError, WeightsError
from pipeline.base.precision import bits_of_weights
from pipeline.base.schema import Malformed, made
from pipeline.trunk.calibration import Calibration
from pipeline.trunk.engines.check import eager_features
from pipeline.trunk.engines.fold import FoldedTrunk
from pipeline.trunk.engines.open import open_engine
from pipeline.trunk.identity import Transform, TrunkSpec, WeightsInfo

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIZE, BATCH, DIM = 16, 4, 8
MEAN, STD = (0.5, 0.47, 0.53), (0.2, 0.25, 0.3)
WHOLE = torch.tensor([128.0, 120.0, 135.0]).view(1, 3, 1, 1)  # of 255 times the mean: 127.5, 119.85 and 135.15
INFO = WeightsInfo(
    trunk="own",
    spec="random:0",
    name="random:0",
    sha256="00" * 32,
    path=None,
    pretrained=False,
    layers=(("last", DIM),),
    transform=Transform(SIZE, SIZE, "bilinear", MEAN, STD),
    preset="",
)
SPEC = TrunkSpec(INFO, "last", "onnxruntime", "int8", "cpu")
Pixels = NDArray[np.uint8]


class Two(nn.Module):
    """Two convolutions, a BatchNorm after the first, and the mean over places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, DIM, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.second(self.norm(self.first(x)).relu()).relu()).flatten(1)


@pytest.fixture(scope="module")
def net() -> Two:
    torch.manual_seed(0)
    net = Two().eval().requires_grad_(False)
    net.norm.running_mean, net.norm.running_var = torch.randn(6), torch.rand(6) + 0.5
    net.first.weight[2] *= 30  # channels of many sizes: each needs a scale of its own
    net.second.weight[:, 2] /= 30
    return net


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (10, 3, SIZE, SIZE), dtype=np.uint8)


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work") / "engines"


def bounds_of(net: nn.Module, pixels: Pixels, work_dir: Path, seen: list[int] | None = None) -> dict[str, Any]:
    from pipeline.trunk.engines import int8, onnx

    export = onnx.exported(FoldedTrunk(net, INFO, DIM, whole_mean=True), SPEC, BATCH, work_dir)
    return int8.bounds_of(export, pixels, BATCH, ([] if seen is None else seen).append)


@pytest.fixture(scope="module")
def calibration(net: Two, pixels: Pixels, work_dir: Path) -> Calibration:
    return Calibration(bounds_of(net, pixels, work_dir), bits_of_weights(), ())


def folded(net: Two) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the first convolution on pixels less the mean, with the deviation and the norm in them.

    What is subtracted is a whole number; the bias makes up for the rest.
    """
    norm = net.norm
    assert norm.running_mean is not None and norm.running_var is not None
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = net.first.weight * gain.view(-1, 1, 1, 1) / (255 * torch.tensor(STD)).view(1, 3, 1, 1)
    more = (weight * (WHOLE - 255 * torch.tensor(MEAN).view(1, 3, 1, 1))).sum((1, 2, 3))
    return weight, norm.bias - norm.running_mean * gain + more


def maps_of(net: Two, pixels: Pixels) -> dict[str, torch.Tensor]:
    """The maps of the plain network: pixels less the mean, and what each convolution gives, after ReLU, too."""
    weight, bias = folded(net)
    x = torch.from_numpy(pixels).float() - WHOLE
    first = nn.functional.conv2d(x, weight, bias, padding=1)
    second = net.second(first.relu())
    return {"x": x, "first": first, "first.relu": first.relu(), "second": second, "second.relu": second.relu()}


def test_bounds_are_the_extremes_of_the_networks_maps(net: Two, pixels: Pixels, calibration: Calibration) -> None:
    for name, values in list(maps_of(net, pixels).items())[1:]:
        low, high = values.min().item(), values.max().item()
        near = [
            (a, b)
            for a, b in calibration.bounds.values()
            if a == pytest.approx(low, rel=2e-3, abs=1e-6) and b == pytest.approx(high, rel=2e-3)
        ]
        assert near, (name, low, high, calibration.bounds)


def test_a_last_batch_is_not_filled_up_with_black(net: Two, work_dir: Path) -> None:
    """Black images lie outside of these: their maps would be the bounds."""
    grey = np.random.default_rng(1).integers(120, 136, (BATCH + 1, 3, SIZE, SIZE), dtype=np.uint8)
    seen: list[int] = []
    found = bounds_of(net, grey, work_dir, seen)
    assert seen == [BATCH, 1]
    assert found == bounds_of(net, np.concatenate([grey, grey[:3]]), work_dir)
    first = maps_of(net, grey)["first"]
    assert (pytest.approx(first.min().item(), rel=1e-3), pytest.approx(first.max().item(), rel=1e-3)) in found.values()
    # Those of the pixels themselves are known.
    assert (-135.0, 135.0) in found.values()


def rounded(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Values as 256 steps between two bounds, zero one of them, can say them."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    return torch.fake_quantize_per_tensor_affine(values, scale, round(-low / scale), 0, 255)


def by_channel(weight: torch.Tensor, bits: int) -> torch.Tensor:
    most = {8: 127, 7: 64}[bits]
    scale = weight.flatten(1).abs().amax(1) / most
    return torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros(len(scale)).int(), 0, -most, most)


@pytest.mark.parametrize("bits", [8, 7])
def test_the_engine_computes_what_rounding_to_the_same_steps_gives(
    net: Two, pixels: Pixels, calibration: Calibration, work_dir: Path, bits: Any
) -> None:
    if bits > bits_of_weights():
        pytest.skip("on this processor sums of products of 8 bits overflow")
    given = dataclasses.replace(calibration, weight_bits=bits)
    engine = open_engine(dataclasses.replace(SPEC, calibration=given), net, DIM, batch=BATCH, work_dir=work_dir)
    found = np.concatenate([engine(pixels[at : at + BATCH]) for at in range(0, len(pixels), BATCH)])
    plain = maps_of(net, pixels)

    def convolved(name: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        found, values = nn.functional.conv2d(x, by_channel(weight, bits), bias, padding=1).relu(), plain[name]
        return rounded(found, values.min().item(), values.max().item())

    x = rounded(plain["x"], -WHOLE.max().item(), 255 - WHOLE.min().item())
    first = convolved("first.relu", x, *folded(net))
    second = convolved("second.relu", first, net.second.weight, net.second.bias)
    expected = second.mean((2, 3)).numpy()
    float32 = eager_features(net, INFO, pixels)
    assert np.abs(found - expected).max() < 0.2 * np.abs(expected - float32).max()  # bounds have 4 digits
    assert engine.precision == "int8" and engine.net is None


def test_the_network_in_int8_is_kept_as_a_file_and_refused_when_it_has_changed(
    net: Two, pixels: Pixels, calibration: Calibration, tmp_path: Path
) -> None:
    spec = dataclasses.replace(SPEC, calibration=calibration)

    def opened() -> NDArray[np.float32]:
        return open_engine(spec, net, DIM, batch=BATCH, work_dir=tmp_path)(pixels[:BATCH])

    expected = opened()
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 2  # of float32 and of int8
    assert (opened() == expected).all()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    wider = dataclasses.replace(calibration, bounds={n: (3 * a, 3 * b) for n, (a, b) in calibration.bounds.items()})
    other = open_engine(dataclasses.replace(spec, calibration=wider), net, DIM, batch=BATCH, work_dir=tmp_path)
    assert (other(pixels[:BATCH]) != expected).any()
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(WeightsError, match="has changed since it was written: remove it"):
        opened()


def test_a_calibration_is_known_by_what_decides_numbers(calibration: Calibration) -> None:
    told = json.loads(json.dumps(dataclasses.asdict(calibration)))
    assert made(told, Calibration) == calibration
    images = dataclasses.replace(calibration, images=("ab" * 32,))
    assert images.sha256 == calibration.sha256
    name = next(iter(calibration.bounds))
    bounds = {**calibration.bounds, name: (-1.0, 1.0)}
    bits: Any = 15 - calibration.weight_bits  # 7 of 8, 8 of 7
    others = [dataclasses.replace(calibration, bounds=bounds), dataclasses.replace(calibration, weight_bits=bits)]
    assert len({calibration.sha256, *(other.sha256 for other in others)}) == 3
    with pytest.raises(Malformed, match=r"the lower bound and the upper one"):
        made({**told, "bounds": {name: [1.0, -1.0]}}, Calibration)
    with pytest.raises(Malformed, match="7 or 8"):
        made({**told, "weight_bits": 4}, Calibration)


def test_weights_of_8_bits_are_refused_where_their_sums_overflow(
    net: Two, calibration: Calibration, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.trunk.engines.open.bits_of_weights", lambda: 7)
    spec = dataclasses.replace(SPEC, calibration=dataclasses.replace(calibration, weight_bits=8))
    with pytest.raises(ConfigError, match="no VNNI: give recalibrate=True, which makes another file"):
        open_engine(spec, net, DIM, batch=BATCH, work_dir=work_dir)
    seven = dataclasses.replace(SPEC, calibration=dataclasses.replace(calibration, weight_bits=7))
    open_engine(seven, net, DIM, batch=BATCH, work_dir=work_dir)


def test_a_network_that_cannot_be_exported_is_told_what_it_can_be_computed_in(
    net: Two, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("it has a branch")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    spec = dataclasses.replace(SPEC, calibration=calibration)
    with pytest.raises(WeightsError, match="own cannot be exported .* it has a branch.*: give precision='float32'"):
        open_engine(spec, net, DIM, batch=BATCH, work_dir=tmp_path)
