"""From the chosen weights to a run's files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image

from pipeline import finetune, predict
from pipeline.base import files
from pipeline.base.files import move
from pipeline.runs import folder as runs
from pipeline.stages.finetune.checkpoint import Checkpoint
from pipeline.stages.finetune.publish import write_network

Quick = dict[str, Any]


def test_the_fine_tuned_network_loads_into_plain_torchvision(resnet_workshop: SimpleNamespace, state_of: Any) -> None:
    workshop = resnet_workshop
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


def test_a_job_killed_between_publishing_and_tidying_gives_the_run_that_it_published(
    workshop: SimpleNamespace, root: Path, by_head: Quick, monkeypatch: pytest.MonkeyPatch, listener: Any
) -> None:
    def killed(_: Checkpoint) -> None:
        raise KeyboardInterrupt

    options: Quick = {**by_head, "workspace": root}
    head = root / "runs" / workshop.head.run.name
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, "remove", killed)
        finetune(head, **options)
    (kept,) = (root / "runs").glob("*-finetune-*")
    again = finetune(head, watch=listener, **options)
    assert again.run == kept and "was kept before the job was stopped" in listener.text
    assert again.to_json() == {n: json.loads((kept / "metrics.json").read_text())[n] for n in again.to_json()}
    assert not list((root / "tuning").iterdir())
    assert finetune(head, **options).run != kept, "and then a fine-tuning is a new one"


def test_a_job_killed_while_it_publishes_keeps_the_network_and_its_test_figures(
    workshop: SimpleNamespace, root: Path, by_head: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    options: Quick = {**by_head, "evaluate": True, "workspace": root}
    head = root / "runs" / workshop.head.run.name
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs.Draft, "became", killed)
        patch.setattr(files, "move", lambda source, target: killed() if source.is_dir() else move(source, target))
        finetune(head, **options)
    (chosen,) = (root / "tuning").glob("*/chosen")
    assert {p.name for p in chosen.iterdir()} >= {"model.safetensors"}
    made = finetune(head, **options)
    assert made.run.name.startswith("0002-"), "no number is lost"
    assert [p.name for p in (root / "runs").iterdir() if p.name.endswith(".draft")] == []
