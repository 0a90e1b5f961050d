"""From the chosen weights to a run's files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image

from pipeline import predict
from pipeline.stages.finetune.publish import write_network

Quick = dict[str, Any]


def test_the_fine_tuned_network_loads_into_plain_torchvision(workshop: SimpleNamespace, state_of: Any) -> None:
    model = torchvision.models.resnet18(num_classes=3)
    model.load_state_dict(state_of(workshop.tuned.run), strict=True)
    images = sorted(workshop.photos.rglob("*.png"))[:4]
    ours = predict(workshop.tuned.run, images, workspace=workshop.root)
    transform = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms(crop_size=32, resize_size=37)
    model.eval()
    with torch.inference_mode():
        logits = model(torch.stack([transform(Image.open(p)) for p in images]))
    expected = (logits / workshop.tuned.temperature).softmax(1).max(1).values
    assert [p.probability for p in ours] == pytest.approx(expected.tolist(), abs=1e-5)


def test_figures_of_the_same_weights_stay_and_those_of_others_go(
    workshop: SimpleNamespace, tmp_path: Path, attached_to: Any
) -> None:
    """After a kill the chosen weights are written again: a test split that was read for them is not read again."""
    attached, folder = attached_to(workshop.head.run, workshop.root), tmp_path / "chosen"
    sha256 = write_network(attached, folder)
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == sha256
    (folder / "evaluation.json").write_text("{}")
    assert write_network(attached, folder) == sha256 and (folder / "evaluation.json").exists()
    with torch.no_grad():
        attached.network.fc.bias.add_(1)
    assert write_network(attached, folder) != sha256
    assert [p.name for p in folder.iterdir()] == ["model.safetensors"]
