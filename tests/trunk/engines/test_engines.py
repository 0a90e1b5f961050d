"""Engines against plain torchvision: the model with fc replaced by Identity and the float transform."""

import copy
import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from torch import nn

from pipeline.base.errors import ConfigError, WeightsError
from pipeline.trunk.engines.base import TOLERANCE, Engine
from pipeline.trunk.engines.check import check_engine, eager_features
from pipeline.trunk.engines.fold import FoldedTrunk
from pipeline.trunk.engines.open import open_engine
from pipeline.trunk.engines.torch import TorchEngine
from pipeline.trunk.families.family import anatomy_of
from pipeline.trunk.identity import Transform, TrunkSpec, WeightsInfo
from pipeline.trunk.surgery import fingerprint, freeze, trunk_at

Pixels = NDArray[np.uint8]
SIZE, BATCH = 64, 4

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def with_own_statistics(model: nn.Module) -> nn.Module:
    """Give every BatchNorm figures as after training, so that leaving one out is seen."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                *((module.weight, 0.4, 1.2), (module.bias, -0.5, 0.5)),
                *((module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2.0)),
            ):
                assert tensor is not None
                tensor.data = torch.rand(tensor.shape, generator=generator) * (high - low) + low
    return model.eval()


def made(trunk: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = torchvision.models.get_model(trunk, weights=None)
    freeze(with_own_statistics(model))
    return model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return made("resnet18")


def trunk_of(model: nn.Module, layer: str, trunk: str = "resnet18") -> tuple[nn.Module, int]:
    """The trunk up to a layer, and how many features it gives; the model stays as it is."""
    model = copy.copy(model)
    model._modules = dict(model._modules)  # beheading takes a module out, of this one alone
    return trunk_at(model, anatomy_of(trunk, model), layer, SIZE)


@pytest.fixture(scope="module")
def trunk(model: nn.Module) -> nn.Module:
    return trunk_of(model, "avgpool")[0]


@pytest.fixture(scope="module")
def info() -> WeightsInfo:
    return WeightsInfo(
        trunk="resnet18",
        spec="random:0",
        name="random:0",
        sha256="00" * 32,
        path=None,
        pretrained=False,
        layers=(("avgpool", 512), ("layer3", 256)),
        transform=Transform(73, SIZE, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        preset="IMAGENET1K_V1",
    )


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (BATCH, 3, SIZE, SIZE), dtype=np.uint8)


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work") / "engines"


Open = Callable[..., Engine]


@pytest.fixture(scope="module")
def opened(model: nn.Module, info: WeightsInfo, work_dir: Path) -> Open:
    def open_it(name: str, **changed: Any) -> Engine:
        given = {"batch": BATCH, "work_dir": work_dir} | {
            k: changed.pop(k) for k in ("batch", "work_dir") if k in changed
        }
        asked = {"layer": "avgpool", "precision": "float32", "device": "cpu", **changed}
        return open_engine(TrunkSpec(info, engine=name, **asked), *trunk_of(model, asked["layer"]), **given)

    return open_it


@pytest.fixture(scope="module", params=["torch", "onnxruntime"])
def engine(request: pytest.FixtureRequest, opened: Open) -> Engine:
    return opened(request.param)


def torchvision_features(model: nn.Module, pixels: Pixels, last: str = "layer4") -> NDArray[np.float64]:
    """What plain torchvision gives, computed in float64: (n, D)."""
    maps: list[torch.Tensor] = []
    plain = torchvision.models.get_model("resnet50" if _is_bottleneck(model) else "resnet18", weights=None)
    plain.load_state_dict(model.state_dict())
    plain.double().eval().get_submodule(last).register_forward_hook(lambda _m, _i, output: maps.append(output))
    normalize = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.inference_mode():
        plain(normalize(torch.from_numpy(pixels).double() / 255))
    features: NDArray[np.float64] = maps[0].mean(dim=(2, 3)).numpy()
    return features


def _is_bottleneck(model: nn.Module) -> bool:
    return "layer1.0.conv3.weight" in model.state_dict()


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float64], tolerance: float) -> None:
    reach = np.abs(expected).max(axis=1, keepdims=True)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert float((np.abs(found - expected) / reach).max()) <= tolerance


# -- the numbers ------------------------------------------------------------------------------------------------------


def test_features_are_torchvisions_to_1e_5(engine: Engine, model: nn.Module, pixels: Pixels) -> None:
    assert engine.dim == 512
    assert_close(engine(pixels), torchvision_features(model, pixels), 1e-5)


def test_features_before_the_last_stage_are_torchvisions(opened: Open, model: nn.Module, pixels: Pixels) -> None:
    engine = opened("torch", layer="layer3")
    assert engine.dim == 256
    assert_close(engine(pixels), torchvision_features(model, pixels, "layer3"), 1e-5)


@pytest.mark.slow
def test_features_of_bottleneck_blocks_are_torchvisions(info: WeightsInfo, pixels: Pixels, work_dir: Path) -> None:
    model = made("resnet50")
    trunk, dim = trunk_of(model, "avgpool", "resnet50")
    net = FoldedTrunk(trunk, info, dim)
    engine = TorchEngine(net, image_size=SIZE, device="cpu", precision="float32", batch=2)
    assert_close(engine(pixels[:2]), torchvision_features(model, pixels[:2]), 1e-5)


def test_bfloat16_stays_within_its_tolerance(model: nn.Module, info: WeightsInfo, pixels: Pixels) -> None:
    trunk, dim = trunk_of(model, "avgpool")
    net = FoldedTrunk(trunk, info, dim)
    engine = TorchEngine(net, image_size=SIZE, device="cpu", precision="bfloat16", batch=BATCH)
    found = engine(pixels)
    assert_close(found, torchvision_features(model, pixels), TOLERANCE["bfloat16"])
    assert check_engine(engine, trunk, info, pixels) > TOLERANCE["float32"]


def test_the_border_of_a_black_image_is_padded_with_the_mean_colour(
    engine: Engine, model: nn.Module, pixels: Pixels
) -> None:
    """Zero padding means zeros of the normalised image: a fold of the mean into the convolution would fail here."""
    black = np.zeros_like(pixels)
    assert_close(engine(black), torchvision_features(model, black), 1e-5)


# -- one shape --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_short_batch_gives_the_same_bits_as_a_full_one(engine: Engine, pixels: Pixels, n: int) -> None:
    whole = engine(pixels).copy()
    assert np.array_equal(engine(pixels[:n]), whole[:n])
    assert engine(pixels[:0]).shape == (0, 512)


def test_an_engine_opened_again_gives_the_same_bits(engine: Engine, opened: Open, pixels: Pixels) -> None:
    """Resumed or not."""
    assert np.array_equal(opened(engine.name)(pixels), engine(pixels))


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_several_threads_give_the_same_bits_every_time(opened: Open, pixels: Pixels, name: str) -> None:
    torch.set_num_threads(2)
    try:
        engine = opened(name)
        whole = engine(pixels)
        assert all(np.array_equal(engine(pixels), whole) for _ in range(3))
        assert np.array_equal(engine(pixels[:1]), whole[:1])
        assert np.array_equal(opened(name)(pixels), whole)
    finally:
        torch.set_num_threads(1)


def test_results_are_not_overwritten_by_the_next_batch(engine: Engine, pixels: Pixels) -> None:
    first = engine(pixels)
    kept = first.copy()
    engine(255 - pixels)
    assert np.array_equal(first, kept)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((BATCH + 1, 3, SIZE, SIZE), np.uint8),
        np.zeros((1, 3, SIZE, SIZE + 1), np.uint8),
        np.zeros((1, 3, SIZE, SIZE), np.float32),
    ],
    ids=["too many", "too wide", "floats"],
)
def test_pixels_that_do_not_fit_are_refused(engine: Engine, wrong: Any) -> None:
    with pytest.raises(ValueError, match="the engine takes uint8"):
        engine(wrong)


def test_running_an_engine_leaves_the_model_as_it_was(opened: Open, model: nn.Module, pixels: Pixels) -> None:
    before = fingerprint(model)
    opened("torch")(pixels)
    assert fingerprint(model) == before
    assert not any(p.is_inference() for p in model.parameters())


# -- the check --------------------------------------------------------------------------------------------------------


def test_the_check_returns_a_difference_within_the_tolerance(
    engine: Engine, trunk: nn.Module, info: WeightsInfo, pixels: Pixels
) -> None:
    assert 0 < check_engine(engine, trunk, info, pixels) <= TOLERANCE["float32"]
    assert check_engine(engine, trunk, info, pixels[:1]) <= TOLERANCE["float32"]


def test_the_check_takes_what_the_engine_gave_before(
    opened: Open, trunk: nn.Module, info: WeightsInfo, pixels: Pixels
) -> None:
    engine = opened("torch")
    assert check_engine(engine, trunk, info, pixels, engine(pixels)) == check_engine(engine, trunk, info, pixels)
    with pytest.raises(WeightsError, match="differs"):
        check_engine(engine, trunk, info, pixels, engine(255 - pixels))


class Wrong:
    """An engine whose last image's features are wrong."""

    name, version, device, precision, batch, dim = "torch", "1", "cpu", "float32", BATCH, 512
    net = None

    def __init__(self, right: Engine, factor: float) -> None:
        self.right, self.factor = right, factor

    def __call__(self, pixels: Pixels) -> NDArray[np.float32]:
        features = self.right(pixels).copy()
        features[-1] = features[-1] * self.factor if self.factor < 2 else self.factor
        return features


@pytest.mark.parametrize("factor", [1.0001, float("nan"), float("inf")])
def test_an_engine_with_one_wrong_row_fails_the_check_by_name_and_figure(
    opened: Open, trunk: nn.Module, info: WeightsInfo, pixels: Pixels, factor: float
) -> None:
    with pytest.raises(WeightsError, match=r"engine torch 1 .*differs .*1\.0e-05 is allowed"):
        check_engine(Wrong(opened("torch"), factor), trunk, info, pixels)


@pytest.mark.parametrize(("times", "passes"), [(8, True), (100, False)])
def test_a_network_that_makes_much_of_rounding_may_be_several_times_its_own_noise_away(
    opened: Open, trunk: nn.Module, info: WeightsInfo, pixels: Pixels, times: float, passes: bool
) -> None:
    """A trunk whose float32 is 1e-3 from its float64; an engine that errs 8 times as far is right, 100 times is not."""

    class Sensitive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = trunk

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.trunk(x)
            return features + (1e-3 * features.max() if features.dtype == torch.float32 else 0)

    exact = eager_features(trunk, info, pixels)
    found = (exact + times * 1e-3 * exact.max(axis=1, keepdims=True)).astype(np.float32)
    if passes:
        assert check_engine(opened("torch"), Sensitive(), info, pixels, found) > TOLERANCE["float32"]
    else:
        with pytest.raises(WeightsError, match="differs"):
            check_engine(opened("torch"), Sensitive(), info, pixels, found)


# -- opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("tensorrt", {}, "'tensorrt'.*auto, torch, onnxruntime"),
        ("onnxruntime", {"device": "cuda"}, "CPU only"),
        ("torch", {"precision": "float8"}, "'float8'.*float32, tf32, bfloat16, int8"),
        ("onnxruntime", {"precision": "bfloat16"}, "'onnxruntime' does not compute in bfloat16: give engine='torch'"),
        ("torch", {"batch": 0}, "batch_size is 0"),
    ],
)
def test_what_cannot_be_opened_is_refused_with_the_cure(
    opened: Open, name: str, changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        opened(name, **changed)


def test_an_exported_trunk_is_kept_and_used_again(opened: Open, work_dir: Path, pixels: Pixels) -> None:
    expected = opened("onnxruntime")(pixels)
    files = {p: p.stat().st_mtime_ns for p in work_dir.iterdir()}
    assert [p.suffix for p in files] == [".onnx"]
    assert np.array_equal(opened("onnxruntime")(pixels), expected)
    assert {p: p.stat().st_mtime_ns for p in work_dir.iterdir()} == files


@pytest.mark.slow
def test_exporting_says_nothing(
    model: nn.Module, info: WeightsInfo, tmp_path: Path, pixels: Pixels, capfd: pytest.CaptureFixture[str]
) -> None:
    small_info = dataclasses.replace(info, transform=dataclasses.replace(info.transform, crop=32))
    spec = TrunkSpec(small_info, "layer3", "onnxruntime", "float32", "cpu")
    engine = open_engine(spec, *trunk_of(model, "layer3"), batch=1, work_dir=tmp_path)
    small = np.ascontiguousarray(pixels[:1, :, :32, :32])
    assert_close(engine(small), torchvision_features(model, small, "layer3"), 1e-5)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("change", ["a bit of a weight", "cut"])
def test_an_export_that_has_changed_is_refused_with_the_cure(
    opened: Open, work_dir: Path, tmp_path: Path, change: str
) -> None:
    """Whatever a check of some rows would make of it."""
    opened("onnxruntime")
    (whole,) = work_dir.iterdir()
    data, damaged = bytearray(whole.read_bytes()), tmp_path / whole.name
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data if change == "a bit of a weight" else data[:1000])
    with pytest.raises(WeightsError, match=f"{whole.name} has changed since .*: remove it, it will be made again") as e:
        opened("onnxruntime", work_dir=tmp_path)
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_an_export_is_named_by_its_bytes_and_the_first_of_several_is_taken(
    opened: Open, work_dir: Path, tmp_path: Path, pixels: Pixels
) -> None:
    """Two processes that export at once may not write the same bytes."""
    expected = opened("onnxruntime")(pixels)
    (whole,) = work_dir.iterdir()
    prefix, digest = whole.stem.rsplit("-", 1)
    assert hashlib.sha256(whole.read_bytes()).hexdigest() == digest
    for name in (f"{prefix}-{digest}.onnx", f"{prefix}-{'f' * 64}.onnx", f"{prefix}.onnx", f"{prefix}-0.onnx"):
        shutil.copy(whole, tmp_path / name)
    assert np.array_equal(opened("onnxruntime", work_dir=tmp_path)(pixels), expected)
    shutil.copy(whole, tmp_path / f"{prefix}-{'0' * 64}.onnx")
    with pytest.raises(WeightsError, match=f"{'0' * 64}.onnx has changed"):
        opened("onnxruntime", work_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("readable", [True, False])
def test_an_export_that_cannot_be_loaded_is_named_with_the_cure(
    opened: Open, work_dir: Path, tmp_path: Path, readable: bool
) -> None:
    opened("onnxruntime")
    (whole,) = work_dir.iterdir()
    content = b"no network"
    other = tmp_path / f"{whole.stem.rsplit('-', 1)[0]}-{hashlib.sha256(content).hexdigest()}.onnx"
    if readable:
        other.write_bytes(content)
    else:
        other.mkdir()
    with pytest.raises(WeightsError, match=f"{other.name} cannot be (loaded|read) .*: remove it") as error:
        opened("onnxruntime", work_dir=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_other_weights_never_meet_an_export_of_these(
    info: WeightsInfo, opened: Open, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is named by the network's own bytes, whatever the weights are called."""
    from pipeline.trunk.engines import onnx as onnx_engine

    class Exported(Exception):
        pass

    def export(*_: Any) -> None:
        raise Exported

    opened("onnxruntime")
    monkeypatch.setattr(onnx_engine, "_program", export)
    opened("onnxruntime")
    other = made("resnet18")
    other.get_parameter("conv1.weight").data[0, 0, 0, 0] += 1e-3
    with pytest.raises(Exported):
        spec = TrunkSpec(info, "avgpool", "onnxruntime", "float32", "cpu")
        open_engine(spec, *trunk_of(other, "avgpool"), batch=BATCH, work_dir=work_dir)


def test_a_folder_that_cannot_be_written_is_named(
    model: nn.Module, info: WeightsInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Program:
        def save(self, *_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: Program())
    with pytest.raises(WeightsError, match="cannot write in .*No space left on device.*engine='torch'"):
        spec = TrunkSpec(info, "layer3", "onnxruntime", "float32", "cpu")
        open_engine(spec, *trunk_of(model, "layer3"), batch=1, work_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
