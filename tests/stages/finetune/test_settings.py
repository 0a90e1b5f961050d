"""Settings of fine-tuning: wrong ones, and what they decide."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import finetune
from pipeline.base.errors import ConfigError
from pipeline.base.workspace import Workspace
from pipeline.stages.finetune.checkpoint import state_folder
from pipeline.stages.finetune.settings import FinetuneSettings
from pipeline.stages.finetune.start import Attached

Quick = dict[str, Any]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs is 0: it must be at least 1"),
        ({"train": "layer9"}, "train 'layer9' is not known: choose from all, layer3.*, layer4, last, head"),
        ({"train": "layer4", "augment": "weights"}, "augment='weights' needs the images.*prefix=False"),
        ({"train": "head", "augment": "flip"}, "augment='flip' needs the images.*prefix=False"),
        ({"train": "layer4", "randaugment": True}, "randaugment=True needs the images.*prefix=False"),
        ({"layer_decay": 0.5, "lr_trunk": 1e-4}, "layer_decay=0.5 says what lr_trunk says"),
        ({"momentum": 0.5}, "momentum says nothing to solver='adamw'"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5: it must be at most 1"),
        ({"accumulate": 64}, "accumulate is 64: it must be at most batch_size, 32"),
        ({"bn": "train", "train": "head"}, "bn='train' says nothing to train='head'"),
        ({"bn": "train", "batch_size": 1}, "piece of one"),
        ({"warmup": 500, "epochs": 1}, "warmup=500 is not below the 2 steps"),
        ({"precision": "bfloat16", "device": "cpu"}, "precision='bfloat16' needs a processor that has it .*or a GPU"),
        ({"ema": 1.0}, "ema is 1.0: it must be below 1"),
    ],
)
def test_wrong_settings_name_the_legal_ones(
    workshop: SimpleNamespace, root: Path, monkeypatch: pytest.MonkeyPatch, options: Quick, words: str
) -> None:
    monkeypatch.setattr("pipeline.base.precision.cpu_description", lambda: "flags : avx2\n")
    with pytest.raises(ConfigError, match=words):
        finetune(workshop.head.run, workspace=root, **options)
    assert not list(root.glob("tuning/*"))


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        ({}, "82f802fd945e04f0"),
        ({"run": "x", "workers": 3, "checkpoint_seconds": 1, "yes": True, "fresh": True}, "82f802fd945e04f0"),
        ({"interpolate": True, "evaluate": False}, "82f802fd945e04f0"),
        ({"train": "layer4", "ema": 0.9, "lr_head": 1e-3, "prefix": False}, "4d8a5b44c2564305"),
    ],
)
def test_a_training_goes_on_in_the_very_folder_that_it_began_in(options: Quick, folder: str) -> None:
    """Made with the code that listed the names apart from the fields; another folder would forget what was begun."""
    head = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(2, np.float32)}
    parts: Any = SimpleNamespace(
        head=SimpleNamespace(tensors=head), cache=SimpleNamespace(key="k" * 64, content="c" * 64), device="cpu"
    )
    found = state_folder(Workspace(Path("w")), Attached.identity(parts, FinetuneSettings(**options)))
    assert found.name == folder
