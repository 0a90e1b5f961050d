"""Fine-tuning on a GPU: the same bits again, and after a kill."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import extract, finetune, train
from tests.conftest import SMALL
from tests.gpu.children import child
from tests.gpu.conftest import on_both

PRECISIONS = on_both(["float32"], ["float32", "tf32", "bfloat16"])


# ResNet18 pools by max_pool2d, whose backward adds up what overlapping windows give: in channels_last layout perhaps by
# atomics, in no fixed order. So does the backward of a GPU's fused attention, which must not be taken.
TRUNKS = {
    ("cpu", "plain"): {"trunk": SMALL, "image_size": 32},
    ("cuda", "plain"): {"trunk": "resnet18", "image_size": 64},
    ("cpu", "attention"): {"trunk": "timm:test_vit", "image_size": 32},
    ("cuda", "attention"): {"trunk": "vit_b_16", "image_size": 64},
}


@pytest.fixture(scope="module")
def starts(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., SimpleNamespace]:
    """By device and kind of network, a workspace with a head."""

    @functools.cache
    def made(device: str, kind: str = "plain") -> SimpleNamespace:
        if kind == "attention" and device == "cpu":
            pytest.importorskip("timm", reason="timm is not installed")
        root = tmp_path_factory.mktemp(device)
        cache = extract(photos, weights="random:0", engine="torch", workspace=root, **TRUNKS[device, kind]).cache
        return SimpleNamespace(root=root, run=train(cache, workspace=root).run)

    return made


def asked(start: SimpleNamespace, folder: Path, device: str, precision: str, **more: Any) -> dict[str, Any]:
    """Options of a fine-tuning in a copy of the workspace, from a random head, so that an epoch is better than none."""
    shutil.copytree(start.root, folder)
    options = {"head": "random", "epochs": 3, "batch_size": 8, "lr_trunk": 1e-3, "lr_head": 1e-2, "evaluate": False}
    return {**options, "device": device, "precision": precision, "workspace": folder, **more}


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def trained(run: Path) -> bool:
    """Whether what is kept is of an epoch, and not what training began with."""
    return bool(json.loads((run / "metrics.json").read_text())["best_epoch"])


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "augmented": {"bn": "train", "augment": "crop", "mixup": 0.2},
    "attention": {"mixup": 0.2},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("device", "precision"), PRECISIONS)
def test_two_fine_tunings_give_the_same_bits(
    starts: Callable[..., SimpleNamespace], tmp_path: Path, device: str, precision: str, form: str
) -> None:
    start, more = starts(device, "attention" if form == "attention" else "plain"), FORMS[form]
    runs = [finetune(start.run, **asked(start, tmp_path / name, device, precision, **more)) for name in "ab"]
    assert runs[0].best_epoch == runs[1].best_epoch > 0  # what is kept has been trained
    assert weights(runs[0].run) == weights(runs[1].run)
    assert (runs[0].run / "trace.jsonl").read_bytes() == (runs[1].run / "trace.jsonl").read_bytes()


@pytest.mark.parametrize(("device", "precision"), PRECISIONS)
def test_a_fine_tuning_that_is_killed_and_resumed_gives_the_bits_of_one_that_nobody_kills(
    starts: Callable[..., SimpleNamespace], tmp_path: Path, device: str, precision: str
) -> None:
    start = starts(device)
    whole = child("finetune", tmp_path / "w.log", start.run, asked(start, tmp_path / "w", device, precision))
    options = asked(start, tmp_path / "k", device, precision, checkpoint_seconds=0)
    log = tmp_path / "k.log"
    for done in (20, 60):  # of 42 train images in each of three epochs; what a kill costs is done twice, and counted
        assert child("finetune", log, start.run, options, kill_at=done) is None
    found = child("finetune", log, start.run, options)
    assert weights(found) == weights(whole) and trained(whole)
    assert (found / "trace.jsonl").read_bytes() == (whole / "trace.jsonl").read_bytes()
