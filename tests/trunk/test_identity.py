"""Names, sizes, engines, and the memory of weights resolved before."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision

from pipeline.base import machine
from pipeline.base.errors import ConfigError
from pipeline.base.machine import resolve_device
from pipeline.base.workspace import Workspace
from pipeline.trunk import identity
from pipeline.trunk.identity import WeightsInfo


def info_of(path: Path | None, spec: str = "random:0") -> WeightsInfo:
    return WeightsInfo(
        trunk="resnet18",
        spec=spec,
        name="file" if path else spec,
        sha256="ab" * 32,
        path=path,
        resize=256,
        crop=224,
        interpolation="bilinear",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        pretrained=path is not None,
    )


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.pth"
    path.write_bytes(b"weights")
    return path


def test_knowing_weights_and_choosing_an_engine_does_not_import_torch(tmp_path: Path) -> None:
    identity.remember(info_of(None), Workspace(tmp_path))
    code = (
        "import sys; from pathlib import Path; from pipeline.trunk import identity;"
        "from pipeline.base.workspace import Workspace;"
        f"assert identity.recall('random:0', 'resnet18', Workspace(Path({str(tmp_path)!r})));"
        "identity.choose_engine('auto', device='cpu', n_images=10**6); identity.engine_version('torch');"
        "from pipeline.base import machine; machine._has_driver = lambda: False; machine.resolve_device('auto');"
        "assert not {'torch', 'torchvision', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(identity.__file__).parents[2])


def test_the_trunks_are_torchvisions_resnets() -> None:
    kinds = ("resnet", "resnext", "wide_resnet")
    assert sorted(identity.TRUNKS) == sorted(
        name for name in torchvision.models.list_models(torchvision.models) if name.startswith(kinds)
    )


# One of each kind: depth does not change the width of a stage.
@pytest.mark.parametrize("trunk", ["resnet18", "resnet34", "resnet50", "wide_resnet50_2", "resnext50_32x4d"])
def test_feature_dim_is_what_torchvisions_network_gives(trunk: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(trunk, weights=None).eval()
        x = model.maxpool(model.relu(model.bn1(model.conv1(torch.zeros(1, 3, 64, 64)))))
        layer3 = model.layer3(model.layer2(model.layer1(x)))
    assert identity.feature_dim(trunk, "avgpool") == model.fc.in_features
    assert identity.feature_dim(trunk, "layer3") == layer3.shape[1]


def test_an_unknown_trunk_or_layer_is_refused_with_the_legal_ones() -> None:
    with pytest.raises(ConfigError, match=r"'resnet51'.*resnet18.*resnext101_64x4d"):
        identity.feature_dim("resnet51", "avgpool")
    with pytest.raises(ConfigError, match=r"'layer9'.*avgpool, layer3"):
        identity.feature_dim("resnet50", "layer9")


# -- image size -------------------------------------------------------------------------------------------------------


def test_another_image_size_keeps_the_ratio_of_resize_to_crop() -> None:
    changed = identity.with_image_size(info_of(None), 64)
    assert (changed.crop, changed.resize) == (64, 73)  # 64 * 256 / 224 = 73.1
    assert dataclasses.replace(changed, crop=224, resize=256) == info_of(None)


def test_an_image_size_below_32_is_refused() -> None:
    assert identity.with_image_size(info_of(None), 32).crop == 32
    with pytest.raises(ConfigError, match="31 is too small.*32"):
        identity.with_image_size(info_of(None), 31)


# -- memory -----------------------------------------------------------------------------------------------------------


def test_what_was_remembered_is_recalled(tmp_path: Path, weights_file: Path) -> None:
    for info in (info_of(None), info_of(weights_file, str(weights_file))):
        assert identity.recall(info.spec, info.trunk, Workspace(tmp_path)) is None
        identity.remember(info, Workspace(tmp_path))
        assert identity.recall(info.spec, info.trunk, Workspace(tmp_path)) == info
        assert identity.recall(info.spec, "resnet34", Workspace(tmp_path)) is None


def test_a_file_is_recalled_by_its_place_whatever_the_path_is_called(
    tmp_path: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity.remember(info_of(weights_file, str(weights_file)), Workspace(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = identity.recall("./mine.pth", "resnet18", Workspace(tmp_path))
    assert found == info_of(weights_file, "./mine.pth")


def test_weights_whose_time_or_size_changed_are_not_recalled(tmp_path: Path, weights_file: Path) -> None:
    identity.remember(info_of(weights_file, str(weights_file)), Workspace(tmp_path))
    before = weights_file.stat()
    os.utime(weights_file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert identity.recall(str(weights_file), "resnet18", Workspace(tmp_path)) is None
    weights_file.write_bytes(b"other weights")
    os.utime(weights_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert identity.recall(str(weights_file), "resnet18", Workspace(tmp_path)) is None


def test_weights_that_are_gone_are_not_recalled(tmp_path: Path, weights_file: Path) -> None:
    identity.remember(info_of(weights_file, str(weights_file)), Workspace(tmp_path))
    weights_file.unlink()
    assert identity.recall(str(weights_file), "resnet18", Workspace(tmp_path)) is None


def test_another_version_of_torch_recalls_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity.remember(info_of(None), Workspace(tmp_path))
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0.0.1")
    assert identity.recall("random:0", "resnet18", Workspace(tmp_path)) is None


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1', "{}"])
def test_a_damaged_memory_recalls_nothing_and_is_replaced(tmp_path: Path, text: str) -> None:
    identity.remember(info_of(None), Workspace(tmp_path))
    path = tmp_path / "weights" / "known.json"
    path.write_text(text)
    assert identity.recall("random:0", "resnet18", Workspace(tmp_path)) is None
    identity.remember(info_of(None), Workspace(tmp_path))
    assert identity.recall("random:0", "resnet18", Workspace(tmp_path)) == info_of(None)


@pytest.mark.parametrize("entry", ["[]", "{}", '{"info": 3}', '{"info": {"path": null, "mean": 1, "std": 1}}'])
def test_a_damaged_entry_recalls_nothing(tmp_path: Path, entry: str) -> None:
    identity.remember(info_of(None), Workspace(tmp_path))
    path = tmp_path / "weights" / "known.json"
    name = next(line for line in path.read_text().splitlines() if "resnet18" in line).strip().removesuffix(": {")
    path.write_text(f"{{{name}: {entry}}}")
    assert identity.recall("random:0", "resnet18", Workspace(tmp_path)) is None


def test_a_folder_that_cannot_be_written_only_forgets(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("a file where the folder should be")
    identity.remember(info_of(None), Workspace(tmp_path))
    assert identity.recall("random:0", "resnet18", Workspace(tmp_path)) is None


# -- engines and devices ----------------------------------------------------------------------------------------------


@pytest.fixture
def without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else SimpleNamespace(name=name)
    )


@pytest.fixture
def with_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))


@pytest.mark.usefixtures("with_onnx")
def test_auto_takes_the_fastest_engine_for_a_large_job_and_the_ready_one_for_a_small_job() -> None:
    at = identity.SMALL_JOB
    assert identity.choose_engine("auto", device="cpu", n_images=at) == "onnxruntime"
    assert identity.choose_engine("auto", device="cpu", n_images=at - 1) == "torch"
    assert identity.choose_engine("auto", device="cpu", n_images=at, image_size=112) == "torch"
    assert identity.choose_engine("auto", device="cpu", n_images=4 * at, image_size=112) == "onnxruntime"
    assert identity.choose_engine("auto", device="cuda", n_images=10**6) == "torch"
    assert identity.choose_engine("onnxruntime", device="cpu", n_images=1) == "onnxruntime"


@pytest.mark.usefixtures("without_onnx")
def test_auto_takes_torch_where_onnxruntime_is_not_installed() -> None:
    assert identity.available_engines("cpu") == ["torch"]
    assert identity.choose_engine("auto", device="cpu", n_images=10**6) == "torch"


@pytest.mark.usefixtures("without_onnx")
def test_an_engine_that_is_not_installed_is_refused_with_the_cure() -> None:
    with pytest.raises(ConfigError, match="onnxruntime is not installed: pip install .*--engine torch"):
        identity.choose_engine("onnxruntime", device="cpu", n_images=1)


@pytest.mark.usefixtures("with_onnx")
def test_onnxruntime_is_refused_on_a_gpu() -> None:
    with pytest.raises(ConfigError, match="CPU only"):
        identity.choose_engine("onnxruntime", device="cuda", n_images=1)


def test_an_unknown_engine_is_refused_with_the_legal_ones() -> None:
    with pytest.raises(ConfigError, match="'tensorrt'.*auto, torch, onnxruntime"):
        identity.choose_engine("tensorrt", device="cpu", n_images=1)


def test_engine_versions_are_those_of_the_installed_packages() -> None:
    assert identity.engine_version("torch") == importlib.metadata.version("torch")
    assert identity.engine_version("torch").split("+")[0] == torch.__version__.split("+")[0]


def test_cpu_is_cpu_and_auto_is_cpu_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_has_driver", lambda: False)
    assert resolve_device("cpu") == resolve_device("auto") == "cpu"


@pytest.mark.parametrize("driver", [False, True])
def test_cuda_is_refused_where_pytorch_sees_none(driver: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_has_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="cuda: PyTorch sees no GPU.*--device cpu"):
        resolve_device("cuda")


def test_auto_takes_the_gpu_that_pytorch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_has_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda"


def test_an_unknown_device_is_refused_with_the_legal_ones() -> None:
    with pytest.raises(ConfigError, match="'tpu'.*auto, cpu, cuda"):
        resolve_device("tpu")
