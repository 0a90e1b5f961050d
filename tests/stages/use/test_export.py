"""`pipeline export`: what leaves the house gives the model's logits, or does not leave."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from pipeline import export, extract, open_cache, predict, train
from pipeline.base.errors import ConfigError, HeadError
from pipeline.cli.main import main
from pipeline.heads.artifact import load_head
from pipeline.stages.use.card import snippet
from tests.conftest import SMALL

Quick = dict[str, Any]


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(3, 3, 32, 32)).astype(np.float32)


def plain(run: Path, images: np.ndarray) -> np.ndarray:
    """Logits by torchvision's own network and the saved head, put together here."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.resnet18(weights=None)
    head = load_head(run)
    model.fc = torch.nn.Linear(512, 3)
    with torch.inference_mode():
        model.fc.weight.copy_(torch.from_numpy(head.tensors["weight"]))
        model.fc.bias.copy_(torch.from_numpy(head.tensors["bias"]))
        return model.eval()(torch.from_numpy(images)).numpy()


def test_the_state_dict_loads_strictly_into_plain_torchvision(
    resnet_workshop: SimpleNamespace, tmp_path: Path, images: np.ndarray
) -> None:
    import safetensors
    import safetensors.torch

    out = tmp_path / "model.safetensors"
    workshop = resnet_workshop
    made = export(workshop.head.run, format="state_dict", out=out, workspace=workshop.root)
    model = torchvision.models.resnet18(num_classes=3)
    model.load_state_dict(safetensors.torch.load_file(out), strict=True)
    with torch.inference_mode():
        found = model.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, plain(workshop.head.run, images), rtol=1e-5, atol=1e-5)
    with safetensors.safe_open(out, "np") as file:
        assert json.loads(file.metadata()["classes"]) == ["ant", "bee", "cat"]
        assert json.loads(file.metadata()["transform"])["crop"] == 32
    assert set(made.parity) == {"1", "2", "7"}


@pytest.mark.parametrize("ending", ["pth", pytest.param("pt", marks=pytest.mark.slow)])
def test_a_pth_is_what_torch_saves_and_loads_without_pickles(
    resnet_workshop: SimpleNamespace, tmp_path: Path, images: np.ndarray, ending: str
) -> None:
    workshop, out = resnet_workshop, tmp_path / "new" / "folder" / f"model.{ending}"
    made = export(workshop.head.run, out=out, workspace=workshop.root)
    state = torch.load(out, weights_only=True)
    assert all(type(tensor) is torch.Tensor for tensor in state.values()) and made.format == "state_dict"
    model = torchvision.models.resnet18(num_classes=3)
    model.load_state_dict(state, strict=True)
    with torch.inference_mode():
        found = model.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, plain(workshop.head.run, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "file"),
    [
        ("resnet_workshop", "m.safetensors"),
        ("workshop", "m.pth"),
        pytest.param("workshop", "m.pt2", marks=pytest.mark.slow),
        pytest.param("resnet_workshop", "m.pth", marks=pytest.mark.slow),
        pytest.param("resnet_workshop", "m.pt2", marks=pytest.mark.slow),
        pytest.param("resnet_workshop", "m.onnx", marks=pytest.mark.slow),
    ],
)
def test_the_code_of_the_card_loads_the_file_and_says_what_predict_says(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    network: str,
    file: str,
) -> None:
    workshop = request.getfixturevalue(network)
    made = export(workshop.tuned.run, out=tmp_path / file, workspace=workshop.root)
    assert made.card == tmp_path / f"{file}.md"
    (code,) = re.findall(r"```python\n(.*?)```", made.card.read_text(), re.DOTALL)
    assert "pipeline" not in code
    with Image.open(workshop.photos / "bee" / "03.png") as image:
        image.resize((67, 45)).save(tmp_path / "photo.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "card", "exec"), {})
    name, probability = capsys.readouterr().out.split()
    (expected,) = predict(workshop.tuned.run, "photo.jpg", workspace=workshop.root)
    assert name == expected.class_name and float(probability) == pytest.approx(expected.probability, abs=1e-4)


def test_two_forms_beside_each_other_have_a_card_each(workshop: SimpleNamespace, tmp_path: Path) -> None:
    names = ("m.pth", "m.safetensors")
    cards = [export(workshop.head.run, out=tmp_path / f, workspace=workshop.root).card for f in names]
    assert [card.name for card in cards] == ["m.pth.md", "m.safetensors.md"]
    (tmp_path / "n.pth.md").write_text("# my notes\n")
    with pytest.raises(ConfigError, match="n.pth.md is there already, of another model"):
        export(workshop.head.run, out=tmp_path / "n.pth", workspace=workshop.root)
    assert (tmp_path / "n.pth.md").read_text() == "# my notes\n"


def test_the_code_names_classes_of_any_kind() -> None:
    names = ["```", "漢", "a\nb", "'\"", "\\"]
    about = {
        "classes": names, "trunk": "resnet18", "pretrained": False, "temperature": 1.0,
        "transform": {"resize": 8, "crop": 8, "interpolation": "bilinear", "mean": [0.0] * 3, "std": [1.0] * 3},
    }  # fmt: skip
    (line,) = [line for line in snippet("m.pth", about) if line.startswith("classes = ")]
    assert line.isascii() and eval(line.removeprefix("classes = ")) == names


@pytest.mark.slow
def test_onnx_runs_at_any_batch_and_carries_classes_and_transform(
    resnet_workshop: SimpleNamespace, tmp_path: Path, images: np.ndarray
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    workshop, out = resnet_workshop, tmp_path / "model.onnx"
    export(workshop.head.run, out=out, workspace=workshop.root)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    for size in (1, 3):
        found = session.run(None, {"images": images[:size]})[0]
        expected = plain(workshop.head.run, images[:size])
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == ["ant", "bee", "cat"]
    assert json.loads(about["transform"])["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.slow
def test_torch_export_loads_and_gives_the_logits(
    resnet_workshop: SimpleNamespace, tmp_path: Path, images: np.ndarray
) -> None:
    workshop, out = resnet_workshop, tmp_path / "model.pt2"
    export(workshop.head.run, format="torch_export", out=out, workspace=workshop.root)
    about = {"about.json": ""}
    module = torch.export.load(out, extra_files=about).module()
    with torch.inference_mode():
        found = module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, plain(workshop.head.run, images), rtol=1e-4, atol=1e-4)
    assert json.loads(about["about.json"])["trunk"] == "resnet18"


def test_a_finetuned_run_is_exported_as_it_is(workshop: SimpleNamespace, tmp_path: Path) -> None:
    import safetensors.torch

    out = tmp_path / "tuned.safetensors"
    export(workshop.tuned.run, format="state_dict", out=out, workspace=workshop.root)
    kept = safetensors.torch.load_file(workshop.tuned.run / "model.safetensors")
    found = safetensors.torch.load_file(out)
    assert found.keys() == kept.keys()
    assert all(torch.equal(found[name], kept[name]) for name in kept)


def test_a_network_whose_bytes_have_changed_is_refused(
    workshop: SimpleNamespace, tmp_path: Path, images: np.ndarray
) -> None:
    """It would give other classes without a word."""
    damaged = tmp_path / "damaged"
    shutil.copytree(workshop.tuned.run, damaged)
    with (damaged / "model.safetensors").open("r+b") as file:
        file.seek(-4000, 2)
        file.write(b"\x00\x00\x80\x40")
    with pytest.raises(HeadError, match="is not what was written: its bytes have changed"):
        export(damaged, out=tmp_path / "m.safetensors", workspace=workshop.root)
    assert not (tmp_path / "m.safetensors").exists()


def test_the_card_names_data_classes_figures_and_that_the_trunk_is_random(
    workshop: SimpleNamespace, tmp_path: Path
) -> None:
    made = export(workshop.head.run, format="state_dict", out=tmp_path / "m.safetensors", workspace=workshop.root)
    card = made.card.read_text()
    accuracy = workshop.test.test["accuracy"]
    for words in (
        '0. "ant"',
        "random:0 (NOT known to be pretrained)",
        f"accuracy {100 * accuracy:.1f} %",
        "learned from",
    ):
        assert words in card


def test_an_export_that_does_not_match_leaves_no_file(
    workshop: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("pipeline.stages.use.export")  # the name is the function's
    write, open_again = module._FORMATS["state_dict"]

    def wrong(path: Path, model: torch.nn.Module) -> Any:
        right = open_again(path, model)
        return lambda images: right(images) * (1 + 1e-3)

    monkeypatch.setitem(module._FORMATS, "state_dict", (write, wrong))
    with pytest.raises(HeadError, match="differs from the model by .*1e-04 is allowed"):
        export(workshop.head.run, format="state_dict", out=tmp_path / "m.safetensors", workspace=workshop.root)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_head_that_plain_torchvision_has_no_place_for_goes_out_as_torch_export_only(
    workshop: SimpleNamespace, tmp_path: Path
) -> None:
    cache = open_cache(workshop.cache.cache)
    head = train(cache.path, solver="adamw", kind="mlp", width=8, epochs=2, workspace=tmp_path)
    with pytest.raises(ConfigError, match=f"a mlp head on .* has no place in a plain {SMALL}"):
        export(head.run, format="state_dict", out=tmp_path / "m.safetensors", workspace=workshop.root)
    made = export(head.run, format="torch_export", out=tmp_path / "m.pt2", workspace=workshop.root)
    assert max(made.parity.values()) <= 1e-4


@pytest.mark.slow
def test_a_head_of_the_stage_before_is_exported_on_its_layer(photos: Path, quick: Quick, tmp_path: Path) -> None:
    made = extract(photos, workspace=tmp_path, layer="previous", **quick)
    head = train(made.cache, workspace=tmp_path)
    assert max(export(head.run, format="torch_export", workspace=tmp_path).parity.values()) <= 1e-4


def test_a_folder_that_cannot_be_written_is_found_out_before_the_network_is_made(
    workshop: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*_: Any) -> None:
        raise AssertionError("the network was made first")

    monkeypatch.setattr("pipeline.stages.use.export.whole_network", made)
    (tmp_path / "none").write_text("a file")
    with pytest.raises(ConfigError, match="cannot write in .*none.*give another out"):
        export(workshop.head.run, out=tmp_path / "none" / "m.safetensors", workspace=workshop.root)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--format", "tflite"), "did you mean"),
        (("--out", "{there}"), "is there already"),
        (("--out", "{there}/m.safetensors"), "cannot write in"),
        (("--out", "{folder}/m.bin"), "give .safetensors .pth .pt (state_dict), .onnx (onnx), .pt2 (torch_export)"),
        (("--out", "{folder}/model"), "the ending says what is written"),
        (("--out", "{folder}/m.pth", "--format", "onnx"), "m.pth is a state_dict by its ending, and --format onnx is"),
        (("--out", "{folder}/there.onnx/m.pt2", "--format", "torch_export"), "cannot write in"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    workshop: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    (tmp_path / "there.onnx").write_text("mine")
    filled = [w.format(there=tmp_path / "there.onnx", folder=tmp_path) for w in words]
    if told == "did you mean":
        told = "choose from state_dict, onnx, torch_export"
    assert main(["export", str(workshop.head.run), *filled, "--workspace", str(workshop.root)]) == 2
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1
    assert (tmp_path / "there.onnx").read_text() == "mine"
