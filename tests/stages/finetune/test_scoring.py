"""What is scored, and that scoring changes nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import finetune, open_cache
from pipeline.base.errors import DataError
from pipeline.stages.finetune import scoring
from pipeline.stages.finetune.loop import Loop
from pipeline.stages.finetune.scoring import Score

Quick = dict[str, Any]


def test_scoring_leaves_batchnorm_in_the_mode_that_it_was_in(workshop: SimpleNamespace, task_of: Any) -> None:
    """Before the first step nothing is in training mode; between steps the layers whose statistics learn are."""
    task = task_of(workshop.head.run, workshop.root, train="last", bn="train", prefix=False)
    modules = list(task.inputs.module.modules())
    for learning in (set(), {m for m in modules if isinstance(m, torch.nn.BatchNorm2d)}):
        for module in learning:
            module.training = True
        before = {n: b.clone() for n, b in task.inputs.module.named_buffers()}
        first = scoring.logits(task, task.attached.val, "val")
        assert {m for m in modules if m.training} == learning
        assert all(torch.equal(b, before[n]) for n, b in task.inputs.module.named_buffers())
        np.testing.assert_array_equal(first, scoring.logits(task, task.attached.val, "val"))


def test_modes_come_back_when_scoring_fails() -> None:
    one, two = torch.nn.BatchNorm2d(1).train(), torch.nn.BatchNorm2d(1).eval()
    with pytest.raises(DataError), scoring.in_mode([one, two], training=False):
        assert not one.training and not two.training
        raise DataError("an image is gone")
    assert one.training and not two.training


def test_of_equal_accuracies_the_lower_loss_ranks_higher() -> None:
    best = min(Score(0.5, 0.8), Score(0.4, 0.8), Score(0.1, 0.7), key=lambda s: s.order)
    assert best == Score(0.4, 0.8)


def test_selection_never_sees_a_test_row(workshop: SimpleNamespace, root: Path, by_head: Quick) -> None:
    """Training, scoring and choosing are handed train and val rows; without the verdict no test row is scored."""
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        logits, losses = scoring.logits, Loop._losses
        patch.setattr(scoring, "logits", lambda t, rows, *a: seen.extend(rows.tolist()) or logits(t, rows, *a))
        patch.setattr(Loop, "_losses", lambda t, piece: seen.extend(piece.rows) or losses(t, piece))
        tuned = finetune(workshop.head.run, workspace=root, interpolate=True, **by_head)
    cache = open_cache(workshop.cache.cache)
    assert set(seen) == {*cache.rows("train").tolist(), *cache.rows("val").tolist()}
    assert tuned.verdict["test"] is None
    assert not (tuned.run / "evaluation.json").exists()
