"""A fine-tuned network as it is found again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision

from pipeline.runs import network
from pipeline.runs.network import load_network
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
