"""What training changes, and what of it is kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline import finetune
from pipeline.stages.finetune.settings import FinetuneSettings
from pipeline.stages.finetune.state import Average, Clock, Progress, State

Quick = dict[str, Any]


def test_a_clock_counts_on_from_the_seconds_of_before_however_often_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    clock = Clock(7.0)
    for now in (101.5, 104.0):
        assert clock.seconds == clock.seconds == 7.0 + now - 100.0


def test_an_average_is_in_place_for_a_while_and_leaves_no_trace() -> None:
    live = {"w": torch.tensor([0.0, 1.0]), "n": torch.tensor(3)}
    average = Average(live, 0.75)
    live["w"] += 4.0
    live["n"] += 1
    average.step()
    with pytest.raises(KeyboardInterrupt), average.in_place():
        assert live["w"].tolist() == [1.0, 2.0] and live["n"].item() == 4
        raise KeyboardInterrupt
    assert live["w"].tolist() == [4.0, 5.0] and live["n"].item() == 4


def test_a_state_has_the_names_that_are_in_checkpoints(workshop: SimpleNamespace, attached_to: Any) -> None:
    attached = attached_to(workshop.head.run, workshop.root)
    state = State(attached.network, attached.anatomy, FinetuneSettings(train="head", ema=0.9))
    state.groups[0].parameters[0].grad = torch.ones_like(state.groups[0].parameters[0])
    state.optimizer.step()
    learnt = {f"{kind}/fc.{name}" for kind in ("now", "average") for name in ("weight", "bias")}
    assert set(state.tensors()) == learnt | {f"optimizer/{x}/fc.weight" for x in ("step", "exp_avg", "exp_avg_sq")}
    fields = ["epoch", "done", "step", "loss_sum", "hits", "seen", "seconds", "ended", "best", "rows"]
    assert list(vars(Progress())) == fields


def test_the_average_is_scored_and_kept(
    workshop: SimpleNamespace,
    root: Path,
    state_of: Any,
    last_epoch_is_kept: Any,
    by_head: Quick,
    start: dict[str, torch.Tensor],
) -> None:
    with last_epoch_is_kept():
        plain = finetune(workshop.head.run, workspace=root, **by_head)
        slow = finetune(workshop.head.run, workspace=root, ema=0.999, **by_head)
    start, name = start, "fc.weight"
    moved = [float((state_of(t.run)[name] - start[name]).norm()) for t in (plain, slow)]
    assert 0 < moved[1] < 0.02 * moved[0]  # 6 steps at 0.001 each
