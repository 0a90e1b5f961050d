"""Where fine-tuning starts: the head on its trunk, the certificate, and what is refused before training."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision

from pipeline import extract, finetune, open_cache, search, train
from pipeline.base.errors import DataError, HeadError
from pipeline.stages.finetune import scoring
from pipeline.trunk.surgery import fingerprint

Quick = dict[str, Any]


def never() -> float:
    raise AssertionError("nothing is to be measured here")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("engine", ["torch", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_the_certificate_holds_for_both_engines_and_storage_types(
    photos: Path, tmp_path: Path, quick: Quick, dtype: str, engine: str, task_of: Any
) -> None:
    """Through the whole trunk and through the float16 maps before the last stage; it is far below the logits, too."""
    if engine == "onnxruntime":
        pytest.importorskip("onnxruntime")
    made = extract(photos, workspace=tmp_path, **{**quick, "dtype": dtype, "engine": engine})
    head = train(made.cache, workspace=tmp_path)
    for part in ("all", "last"):
        task = task_of(head.run, tmp_path, train=part)
        attached = task.attached
        logits = scoring.logits(task, attached.val, "certificate")
        certificate = attached.certificate(logits, maps=part == "last", rounding=never)
        assert certificate.tolerance == attached.tolerance(maps=part == "last")
        found, allowed = certificate.difference, certificate.tolerance
        scale = np.abs(attached.cached_logits(attached.val)).max()
        # float32 features: two orders of summation; float16 features or maps: about 2^-11 of what is added up
        assert found < {("float32", "all"): 1e-5}.get((dtype, part), 2e-3) * scale
        assert found <= allowed < 0.05 * scale


def test_a_damaged_head_fails_the_certificate(workshop: SimpleNamespace, attached_to: Any) -> None:
    """The certificate can fail."""
    attached = attached_to(workshop.head.run, workshop.root)
    logits = attached.cached_logits(attached.val)
    attached.certificate(logits, maps=False, rounding=never)
    off = logits.copy()
    off[3, 1] += 2 * attached.tolerance(maps=True)
    for maps in (False, True):
        with pytest.raises(HeadError, match="does not give the cached logits"):
            attached.certificate(off, maps=maps, rounding=lambda: 0.0)
    largest = float(np.abs(off - logits).max())
    for times, fits in ((1.01, True), (0.4, False)):  # what rounding makes of the logits is allowed, and no more
        with nullcontext() if fits else pytest.raises(HeadError, match="through the float16 maps"):
            attached.certificate(off, maps=True, rounding=lambda times=times: times * largest)


@pytest.mark.parametrize("part", ["all", "last"])
def test_what_rounding_makes_of_a_logit_is_measured(workshop: SimpleNamespace, task_of: Any, part: str) -> None:
    """Of maps it is about 2^-11 of what is added up; of float32 arithmetic some 1e-6 of the largest logit."""
    task = task_of(workshop.head.run, workshop.root, train=part)
    rows = task.attached.val
    logits = scoring.logits(task, rows, "certificate")
    before = fingerprint(task.attached.network)
    found = scoring.rounding(task, rows, logits, task.inputs) / float(np.abs(logits).max())
    low, high = (1e-8, 1e-4) if part == "all" else (1e-5, 2e-2)
    assert low < found < high
    assert fingerprint(task.attached.network) == before


@pytest.mark.slow
def test_features_below_the_smallest_normal_number_are_off_by_a_step_of_their_type(
    photos: Path, tmp_path: Path, resnet: Quick, task_of: Any
) -> None:
    """All of a float16 that is left of features of 1e-6 is a few bits, and the head's weights are as much larger."""
    state = dict(torchvision.models.resnet18().state_dict())
    weights = tmp_path / "faint.safetensors"
    for name in ("layer4.1.bn2.weight", "layer4.1.bn2.bias", "layer4.0.bn2.weight", "layer4.0.downsample.1.weight"):
        state[name] = state[name] * 1e-6
    safetensors.torch.save_file(state, weights)
    made = extract(photos, workspace=tmp_path, **{**resnet, "weights": str(weights)})
    head = train(made.cache, workspace=tmp_path)
    task = task_of(head.run, tmp_path, train="all")
    logits = scoring.logits(task, task.attached.val, "certificate")
    certificate = task.attached.certificate(logits, maps=False, rounding=never)
    assert task.attached.tolerance(maps=False) < certificate.difference <= certificate.tolerance


def test_a_random_head_starts_at_chance_and_is_measured_against_the_trained_one(
    workshop: SimpleNamespace, root: Path, state_of: Any, last_epoch_is_kept: Any, by_head: Quick
) -> None:
    tuned = finetune(workshop.head.run, head="random", workspace=root, **by_head)
    assert tuned.before == workshop.head.val and tuned.step0 < tuned.before
    torch.manual_seed(0)
    drawn = torch.nn.Linear(open_cache(workshop.cache.cache).features.shape[1], 3).weight
    with last_epoch_is_kept():
        kept = finetune(workshop.head.run, head="random", workspace=root, **{**by_head, "lr_head": 1e-9})
    assert torch.allclose(state_of(kept.run)["fc.weight"], drawn, atol=1e-6)


def test_a_run_that_is_not_there_or_not_a_head_is_refused(workshop: SimpleNamespace) -> None:
    with pytest.raises(HeadError, match="no run 'nothing': give a run's folder"):
        finetune("nothing", workspace=workshop.root)
    with pytest.raises(HeadError, match="is a finetune run: give a run of `pipeline train`"):
        finetune(workshop.tuned.run, workspace=workshop.root)


def test_a_run_of_another_key_is_refused(workshop: SimpleNamespace, root: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(workshop.head.run, tmp_path / "runs" / "0001-train-x"))
    record = json.loads((folder / "head.json").read_text())
    record["key"] = "0" * 64
    (folder / "head.json").write_text(json.dumps(record))
    with pytest.raises(HeadError, match="000000"):
        finetune(folder, workspace=root)


def test_an_image_that_has_changed_or_gone_or_become_text_is_found_before_training(
    photos: Path, tmp_path: Path, quick: Quick
) -> None:
    mine = Path(shutil.copytree(photos, tmp_path / "mine"))
    made = extract(mine, workspace=tmp_path, **quick)
    head = train(made.cache, workspace=tmp_path)
    victim = mine / os.fsdecode(open_cache(made.cache).split("test").ids[0])
    blob = victim.read_bytes()
    victim.write_bytes(blob + b"\0")
    with pytest.raises(DataError, match="has changed since"):
        finetune(head.run, workspace=tmp_path)
    victim.write_bytes(b"no image at all\n")
    with pytest.raises(DataError, match="the file holds text, not an image"):
        finetune(head.run, workspace=tmp_path)
    victim.unlink()
    with pytest.raises(DataError, match="there is no such file"):
        finetune(head.run, workspace=tmp_path)
    victim.write_bytes(blob)  # another time, the same bytes: all is well
    assert finetune(head.run, epochs=1, workspace=tmp_path).steps
    shutil.rmtree(mine)
    with pytest.raises(DataError, match="not at"):
        finetune(head.run, workspace=tmp_path)


def test_a_run_has_learned_from_what_its_head_has(workshop: SimpleNamespace, root: Path, by_head: Quick) -> None:
    """So that no temperature is fitted on val where the head has seen it."""
    found = search(workshop.cache.cache, evaluate=False, workspace=root)
    for start, expected in ((found.run, ["train", "val"]), (workshop.head.run, ["train"])):
        tuned = finetune(start, workspace=root, **by_head)
        assert json.loads((tuned.run / "config.json").read_text())["learned_from"] == expected
