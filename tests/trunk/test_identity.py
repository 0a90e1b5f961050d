"""Names, sizes, engines, and the memory of weights resolved before."""

import dataclasses
import importlib.metadata
import importlib.util
import json
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
from pipeline.base.schema import made
from pipeline.base.workspace import Workspace
from pipeline.runs.recipe import Recipe
from pipeline.stages.extract.settings import ExtractSettings
from pipeline.trunk import identity
from pipeline.trunk.identity import Changes, Transform, TrunkSpec, WeightsInfo
from pipeline.trunk.weights import resolve_weights


def info_of(path: Path | None, spec: str = "random:0") -> WeightsInfo:
    return WeightsInfo(
        trunk="resnet18",
        spec=spec,
        name="file" if path else spec,
        sha256="ab" * 32,
        path=path,
        pretrained=path is not None,
        layers=(("avgpool", 512), ("layer3", 256)),
        transform=Transform(256, 224, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        preset="IMAGENET1K_V1",
    )


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.pth"
    path.write_bytes(b"weights")
    return path


def test_knowing_weights_and_choosing_an_engine_does_not_import_torch(tmp_path: Path) -> None:
    identity.remember(info_of(None), None, Workspace(tmp_path))
    code = (
        "import sys; from pathlib import Path; from pipeline.trunk import identity;"
        "from pipeline.base.workspace import Workspace;"
        f"assert identity.recall('random:0', 'resnet18', None, Workspace(Path({str(tmp_path)!r})));"
        "identity.choose_engine('auto', device='cpu', n_images=10**6); identity.engine_version('torch');"
        "from pipeline.base import machine; machine._has_driver = lambda: False; machine.resolve_device('auto');"
        "assert not {'torch', 'torchvision', 'timm', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(identity.__file__).parents[2])


# One of each kind of ResNet: depth does not change the width of a stage.
@pytest.mark.parametrize(
    "trunk",
    [
        "resnet18",
        pytest.param("resnet34", marks=pytest.mark.slow),
        "resnet50",
        pytest.param("wide_resnet50_2", marks=pytest.mark.slow),
        pytest.param("resnext50_32x4d", marks=pytest.mark.slow),
    ],
)
def test_the_number_of_features_is_what_torchvisions_network_gives(
    trunk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(trunk, weights=None).eval()
        x = model.maxpool(model.relu(model.bn1(model.conv1(torch.zeros(1, 3, 64, 64)))))
        layer3 = model.layer3(model.layer2(model.layer1(x)))
    info = resolve_weights("random:0", trunk, Workspace(tmp_path))
    assert info.layers == (("avgpool", model.fc.in_features), ("layer3", layer3.shape[1]))
    assert info.dim("avgpool") == model.fc.in_features and info.dim("layer3") == layer3.shape[1]


def test_a_layer_is_known_by_its_own_name_and_by_the_word_of_every_network() -> None:
    info = info_of(None)
    assert [info.layer(word) for word in ("last", "avgpool")] == ["avgpool"] * 2
    assert [info.layer(word) for word in ("previous", "layer3")] == ["layer3"] * 2
    uncut = dataclasses.replace(info, trunk="vit", layers=(("last", 192),))
    assert uncut.layer("last") == "last"


def test_an_unknown_layer_is_refused_with_the_legal_ones() -> None:
    with pytest.raises(ConfigError, match="layer9' is none of resnet18's: choose from last, previous, avgpool, layer3"):
        info_of(None).layer("layer9")
    with pytest.raises(ConfigError, match=r"previous' is none of vit's: choose from last$"):
        dataclasses.replace(info_of(None), trunk="vit", layers=(("last", 192),)).layer("previous")


def test_what_is_known_of_weights_survives_json() -> None:
    info = dataclasses.replace(info_of(Path("a.pth")), guessed=True, missing="crop mode squash")
    assert made(json.loads(json.dumps(info.provenance())), WeightsInfo) == info


# -- the transform ----------------------------------------------------------------------------------------------------


def test_another_image_size_keeps_the_ratio_of_resize_to_crop() -> None:
    changed = identity.with_changes(info_of(None), Changes(image_size=64)).transform
    assert (changed.crop, changed.resize) == (64, 73)  # 64 * 256 / 224 = 73.1
    assert dataclasses.replace(changed, crop=224, resize=256) == info_of(None).transform


def test_an_image_size_below_32_is_refused() -> None:
    assert identity.with_changes(info_of(None), Changes(image_size=32)).transform.crop == 32
    for small in (Changes(image_size=31), Changes(crop=31)):
        with pytest.raises(ConfigError, match="31 px are too small.*32"):
            identity.with_changes(info_of(None), small)


def test_nothing_given_changes_nothing() -> None:
    assert identity.with_changes(info_of(None), Changes()) == info_of(None)


def test_each_value_that_is_given_takes_the_place_of_the_presets_and_no_other() -> None:
    own = info_of(None).transform
    for name, value in (("resize", 240), ("crop", 192), ("interpolation", "bicubic"), ("mean", (0.1, 0.2, 0.3))):
        changed = identity.with_changes(info_of(None), Changes(**{name: value}))
        assert changed.transform == dataclasses.replace(own, **{name: value})
        assert changed.preset == "IMAGENET1K_V1"


def test_where_every_value_is_given_no_preset_is_named() -> None:
    info = dataclasses.replace(info_of(Path("a.pth")), guessed=True, missing="crop mode squash")
    changed = identity.with_changes(info, Changes(None, 240, 224, "bicubic", (0.5,), (0.25, 0.5, 0.75)))
    assert changed.transform == Transform(240, 224, "bicubic", (0.5, 0.5, 0.5), (0.25, 0.5, 0.75))
    assert (changed.preset, changed.guessed) == ("", False)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_a_mean_has_one_value_or_three(name: str) -> None:
    one = identity.with_changes(info_of(None), Changes(**{name: (0.5,)}))
    assert getattr(one.transform, name) == (0.5, 0.5, 0.5)
    three = identity.with_changes(info_of(None), Changes(**{name: (0.25, 0.5, 1)}))
    assert getattr(three.transform, name) == (0.25, 0.5, 1.0)
    for values in ((), (0.5, 0.5), (0.5,) * 4):
        with pytest.raises(ConfigError, match=f"{name} has {len(values)} values: give one, or three"):
            identity.with_changes(info_of(None), Changes(**{name: values}))


@pytest.mark.parametrize("std", [(0.0,), (0.5, -1.0, 0.5)])
def test_a_std_that_is_not_above_zero_is_refused(std: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="std=.*each must be above 0"):
        identity.with_changes(info_of(None), Changes(std=std))


@pytest.mark.parametrize("other", [{"crop": 64}, {"resize": 64}])
def test_an_image_size_and_a_crop_contradict_each_other(other: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="image_size says what resize and crop say: give one or the others"):
        identity.with_changes(info_of(None), Changes(image_size=64, **other))


def test_a_transform_that_ours_cannot_be_is_refused_by_name_unless_the_user_says_which_to_take() -> None:
    info = dataclasses.replace(info_of(None), preset="timm:b.squash", missing="crop mode squash")
    for few in (
        Changes(),
        Changes(image_size=64),
        Changes(resize=64, crop=64),
        Changes(mean=(0.5,), std=(0.5,)),
        Changes(image_size=64, interpolation="bicubic"),
    ):
        with pytest.raises(ConfigError, match="timm:b.squash want crop mode squash.*give resize, crop and"):
            identity.with_changes(info, few)
    changed = identity.with_changes(info, Changes(resize=72, crop=64, interpolation="bicubic"))
    assert (changed.transform.resize, changed.transform.crop) == (72, 64)


def test_sizes_alone_leave_a_guess_a_guess() -> None:
    info = dataclasses.replace(info_of(Path("a.pth")), guessed=True)
    assert identity.with_changes(info, Changes(image_size=64)).guessed
    ratio = identity.with_changes(info, Changes(64, interpolation="bicubic", mean=(0.5,), std=(0.5,)))
    assert ratio.guessed and ratio.preset == "IMAGENET1K_V1"
    assert identity.with_changes(info, Changes(resize=64, crop=64, interpolation="bicubic")).guessed


# -- memory -----------------------------------------------------------------------------------------------------------


def test_what_was_remembered_is_recalled(tmp_path: Path, weights_file: Path) -> None:
    for info in (info_of(None), info_of(weights_file, str(weights_file))):
        assert identity.recall(info.spec, info.trunk, None, Workspace(tmp_path)) is None
        identity.remember(info, None, Workspace(tmp_path))
        assert identity.recall(info.spec, info.trunk, None, Workspace(tmp_path)) == info
        assert identity.recall(info.spec, "resnet34", None, Workspace(tmp_path)) is None


def test_weights_are_recalled_for_the_preset_that_they_were_resolved_with(tmp_path: Path) -> None:
    identity.remember(info_of(None), "timm:a.b", Workspace(tmp_path))
    assert identity.recall("random:0", "resnet18", "timm:a.b", Workspace(tmp_path)) == info_of(None)
    assert identity.recall("random:0", "resnet18", None, Workspace(tmp_path)) is None


def test_a_file_is_recalled_by_its_place_whatever_the_path_is_called(
    tmp_path: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity.remember(info_of(weights_file, str(weights_file)), None, Workspace(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = identity.recall("./mine.pth", "resnet18", None, Workspace(tmp_path))
    assert found == info_of(weights_file, "./mine.pth")


def test_weights_whose_time_or_size_changed_are_not_recalled(tmp_path: Path, weights_file: Path) -> None:
    identity.remember(info_of(weights_file, str(weights_file)), None, Workspace(tmp_path))
    before = weights_file.stat()
    os.utime(weights_file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert identity.recall(str(weights_file), "resnet18", None, Workspace(tmp_path)) is None
    weights_file.write_bytes(b"other weights")
    os.utime(weights_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert identity.recall(str(weights_file), "resnet18", None, Workspace(tmp_path)) is None


def test_weights_that_are_gone_are_not_recalled(tmp_path: Path, weights_file: Path) -> None:
    identity.remember(info_of(weights_file, str(weights_file)), None, Workspace(tmp_path))
    weights_file.unlink()
    assert identity.recall(str(weights_file), "resnet18", None, Workspace(tmp_path)) is None


def test_another_version_of_torch_recalls_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity.remember(info_of(None), None, Workspace(tmp_path))
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0.0.1")
    assert identity.recall("random:0", "resnet18", None, Workspace(tmp_path)) is None


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1', "{}"])
def test_a_damaged_memory_recalls_nothing_and_is_replaced(tmp_path: Path, text: str) -> None:
    identity.remember(info_of(None), None, Workspace(tmp_path))
    path = tmp_path / "weights" / "known.json"
    path.write_text(text)
    assert identity.recall("random:0", "resnet18", None, Workspace(tmp_path)) is None
    identity.remember(info_of(None), None, Workspace(tmp_path))
    assert identity.recall("random:0", "resnet18", None, Workspace(tmp_path)) == info_of(None)


@pytest.mark.parametrize("entry", ["[]", "{}", '{"info": 3}', '{"info": {"path": null, "mean": 1, "std": 1}}'])
def test_a_damaged_entry_recalls_nothing(tmp_path: Path, entry: str) -> None:
    identity.remember(info_of(None), None, Workspace(tmp_path))
    path = tmp_path / "weights" / "known.json"
    name = next(line for line in path.read_text().splitlines() if "resnet18" in line).strip().removesuffix(": {")
    path.write_text(f"{{{name}: {entry}}}")
    assert identity.recall("random:0", "resnet18", None, Workspace(tmp_path)) is None


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("transform", "mean"), [0.4, 0.456, 0.406]),
        (("transform", "crop"), 32),
        (("preset",), "IMAGENET1K_V2"),
        (("guessed",), True),
        (("sha256",), "cd" * 32),
        (("layers",), [["avgpool", 100]]),
        (("trunk",), "resnet34"),
    ],
)
def test_an_entry_that_was_changed_recalls_nothing(tmp_path: Path, place: tuple[str, ...], value: object) -> None:
    identity.remember(info_of(None), None, Workspace(tmp_path))
    path = tmp_path / "weights" / "known.json"
    entries = json.loads(path.read_text())
    (entry,) = entries.values()
    (entry["info"] if len(place) == 1 else entry["info"][place[0]])[place[-1]] = value
    path.write_text(json.dumps(entries))
    assert identity.recall("random:0", "resnet18", None, Workspace(tmp_path)) is None


def test_what_is_forgotten_is_not_recalled_and_the_rest_is(tmp_path: Path) -> None:
    desk = Workspace(tmp_path)
    for preset in (None, "timm:a.b"):
        identity.remember(info_of(None), preset, desk)
    identity.forget("random:0", "resnet18", None, desk)
    assert identity.recall("random:0", "resnet18", None, desk) is None
    assert identity.recall("random:0", "resnet18", "timm:a.b", desk) == info_of(None)


def test_a_folder_that_cannot_be_written_only_forgets(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("a file where the folder should be")
    identity.remember(info_of(None), None, Workspace(tmp_path))
    assert identity.recall("random:0", "resnet18", None, Workspace(tmp_path)) is None


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
    with pytest.raises(ConfigError, match="onnxruntime' is not installed: pip install .*engine='torch'"):
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
    with pytest.raises(ConfigError, match="cuda': PyTorch sees no GPU.*device='cpu'"):
        resolve_device("cuda")


def test_auto_takes_the_gpu_that_pytorch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_has_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda"


def test_an_unknown_device_is_refused_with_the_legal_ones() -> None:
    with pytest.raises(ConfigError, match="'tpu' is not known: choose from auto .*cpu, cuda"):
        resolve_device("tpu")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_has_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_one_of_several_gpus_is_named_by_its_number(two_gpus: None) -> None:
    assert resolve_device("auto") == resolve_device("cuda") == "cuda"
    assert (resolve_device("cuda:0"), resolve_device("cuda:1")) == ("cuda:0", "cuda:1")
    with pytest.raises(ConfigError, match="device='cuda:2' is not there: choose from cuda:0, cuda:1"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["cuda:", "cuda:x", "cuda:-1", "mps:0", "gpu", ""])
def test_what_is_no_devices_name_is_refused_before_anything_is_asked(name: str) -> None:
    with pytest.raises(ConfigError, match="is not known: choose from auto"):
        ExtractSettings(source="x", device=name)


def test_apples_gpu_is_taken_by_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="device='mps': PyTorch sees no GPU of Apple's here"):
        resolve_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(machine, "_has_driver", lambda: False)
    assert (resolve_device("mps"), resolve_device("auto")) == ("mps", "cpu")
    assert identity.available_engines("mps") == ["torch"]


def test_which_of_several_gpus_is_not_in_the_fingerprint() -> None:
    told = [
        Recipe(TrunkSpec(info_of(None), "avgpool", "torch", "float32", device), "float16").provenance()
        for device in ("cuda", "cuda:1", "mps", "cpu")
    ]
    assert told[0] == told[1]
    assert [t["engine"]["device"] for t in told] == ["cuda", "cuda", "mps", "cpu"]
