"""A fine-tuned network as it is found again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision

from pipeline.base.errors import HeadError
from pipeline.base.records import read_record
from pipeline.runs import network
from pipeline.runs.folder import Metrics
from pipeline.runs.network import load_network, temperature_of
from pipeline.trunk.identity import Transform, WeightsInfo

INFO = WeightsInfo(
    trunk="resnet18",
    spec="random:0",
    name="random:0",
    sha256="00" * 32,
    path=None,
    pretrained=False,
    layers=(("avgpool", 512),),
    transform=Transform(37, 32, "bilinear", (0.5,) * 3, (0.5,) * 3),
    preset="",
)


def test_a_network_whose_own_classifier_has_no_bias_is_loaded_with_its_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MaxViT's has none; a head has one."""
    model = torchvision.models.resnet18(num_classes=3)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")

    def without_bias(trunk: str, *, num_classes: int, **_: Any) -> torch.nn.Module:
        built = torchvision.models.resnet18()
        built.fc = torch.nn.Linear(512, num_classes, bias=False)
        return built

    monkeypatch.setattr(network, "build", without_bias)
    run: Any = SimpleNamespace(folder=tmp_path, metrics={}, config={"classes": ["a", "b", "c"]})
    found = load_network(run, INFO)
    assert found.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(found.state_dict()[n], t) for n, t in model.state_dict().items())
    assert not any(p.requires_grad for p in found.parameters())


def test_the_temperature_of_a_fine_tuned_run_is_any_number_above_zero_and_one_where_it_is_missing(
    tmp_path: Path,
) -> None:
    def kept(**metrics: Any) -> float:
        (tmp_path / "metrics.json").write_text(json.dumps(metrics))
        found = read_record(tmp_path / "metrics.json", Metrics, HeadError, "train again")
        run: Any = SimpleNamespace(folder=tmp_path, stage="finetune", metrics=found)
        return temperature_of(run)

    assert [kept(), kept(temperature=2), kept(temperature=0.5)] == [1.0, 2.0, 0.5]
    for wrong in (0, -1.0, True, None, "1", float("nan"), float("inf")):
        with pytest.raises(HeadError, match=r"temperature is .*: a (finite )?number (above 0 )?is needed; train again"):
            kept(temperature=wrong)
