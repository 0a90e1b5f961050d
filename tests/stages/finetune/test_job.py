"""Stage three from end to end."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from pipeline import finetune, search
from pipeline.base.workspace import Workspace
from pipeline.runs import folder as run_folders

Quick = dict[str, Any]


def test_fine_tuning_starts_where_the_head_left_off(workshop: SimpleNamespace, trace_of: Any) -> None:
    """Step 0 is stage two's val figure; the certificate holds; the kept figure is never worse."""
    tuned = workshop.tuned
    assert tuned.before == tuned.step0 == workshop.head.val
    assert tuned.after >= tuned.before
    assert tuned.certificate_max_abs <= tuned.certificate_tolerance
    assert [row["epoch"] for row in trace_of(tuned.run)] == [0, 1]
    kept = hashlib.sha256((tuned.run / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads((tuned.run / "metrics.json").read_text()) == {**tuned.to_json(), "model_sha256": kept}


def test_a_fine_tune_that_does_not_help_says_so_and_keeps_the_head(
    workshop: SimpleNamespace, root: Path, listener: Any, state_of: Any, start: dict[str, torch.Tensor]
) -> None:
    tuned = finetune(
        workshop.head.run, epochs=1, lr_trunk=10.0, solver="sgd", lr_head=10.0, workspace=root, watch=listener
    )
    assert tuned.best_epoch == 0 and tuned.after == tuned.step0
    assert "worth it: no: no epoch was better" in listener.text
    assert all(torch.equal(value, start[name]) for name, value in state_of(tuned.run).items())


def test_a_head_that_learned_from_val_is_warned_of(
    workshop: SimpleNamespace, root: Path, listener: Any, by_head: Quick
) -> None:
    found = search(workshop.cache.cache, evaluate=False, workspace=root)
    finetune(found.run, workspace=root, watch=listener, **by_head)
    assert "has learned from val, too" in listener.text


def test_latest_is_the_fine_tuned_run(workshop: SimpleNamespace) -> None:
    assert run_folders.find_run("latest", Workspace(workshop.root)).folder == workshop.tuned.run
