"""Interrupted, killed, damaged: the same command goes on, or says why not."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline import finetune
from pipeline.base.errors import HeadError, Interrupted
from pipeline.base.workspace import Workspace
from pipeline.stages.finetune.checkpoint import Checkpoint, state_folder
from pipeline.stages.finetune.settings import FinetuneSettings
from pipeline.stages.finetune.start import attach

Quick = dict[str, Any]


@pytest.mark.parametrize(
    "options",
    [
        {"train": "last", "ema": 0.9, "mixup": 0.3, "bn": "train", "augment": "flip"},
        pytest.param({"solver": "sgd", "augment": "weights"}, marks=pytest.mark.slow),
    ],
)
def test_stopped_and_resumed_is_uninterrupted_to_the_last_bit(
    workshop: SimpleNamespace, root: Path, options: Quick, trace_of: Any, fast: Quick, stopper: Any
) -> None:
    """Within an epoch and between two."""
    whole = finetune(workshop.head.run, workspace=root, **fast, **options)
    for images in (20, 64):
        watch = stopper(images)
        with pytest.raises(Interrupted, match="the same command goes on") as stopped:
            finetune(workshop.head.run, workspace=root, watch=watch, **fast, **options)
        assert stopped.value.signal == 2
        ear = stopper(10**9)
        resumed = finetune(workshop.head.run, workspace=root, watch=ear, **fast, **options)
        assert "going on from an interrupted training" in ear.text
        assert (resumed.run / "model.safetensors").read_bytes() == (whole.run / "model.safetensors").read_bytes()
        losses = [[(r["epoch"], r["loss"], r["val_loss"]) for r in trace_of(t.run)] for t in (whole, resumed)]
        assert losses[0] == losses[1]
    assert not list((root / "tuning").iterdir())


def test_other_settings_do_not_go_on_from_an_interrupted_training(
    workshop: SimpleNamespace, root: Path, stopper: Any, by_head: Quick
) -> None:
    with pytest.raises(Interrupted):
        finetune(workshop.head.run, workspace=root, watch=stopper(20), **by_head)
    for changed in ({"lr_head": 2e-4}, {"fresh": True}):
        ear = stopper(10**9)
        finetune(workshop.head.run, workspace=root, watch=ear, **{**by_head, **changed})
        assert "going on" not in ear.text


def test_a_damaged_state_is_refused_with_the_cure(
    workshop: SimpleNamespace, root: Path, stopper: Any, by_head: Quick
) -> None:
    with pytest.raises(Interrupted):
        finetune(workshop.head.run, workspace=root, watch=stopper(20), **by_head)
    (last,) = (root / "tuning").glob("*/last-*.safetensors")
    blob = bytearray(last.read_bytes())
    blob[-5] ^= 1
    last.write_bytes(bytes(blob))
    with pytest.raises(HeadError, match="cannot be used.*fresh=True"):
        finetune(workshop.head.run, workspace=root, **by_head)
    finetune(workshop.head.run, workspace=root, fresh=True, **by_head)


def test_two_processes_are_not_at_the_same_training(workshop: SimpleNamespace, root: Path, by_head: Quick) -> None:
    settings, desk = FinetuneSettings(run=str(workshop.head.run), **by_head), Workspace(root)
    folder = state_folder(desk, attach(settings, desk).identity(settings))
    with Checkpoint(folder).held(), pytest.raises(HeadError, match="another process is at this very fine-tuning"):
        finetune(workshop.head.run, workspace=root, **by_head)


def test_a_state_is_whole_whenever_the_writer_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file operation of a write, one after the other, is the last: the state before or the new one is there."""

    def write(checkpoint: Checkpoint, step: int) -> None:
        checkpoint.write({"step": step}, {"w": torch.full((3,), float(step))}, {"b": torch.full((2,), float(step))})

    checkpoint = Checkpoint(tmp_path / "state")
    checkpoint.folder.mkdir()
    write(checkpoint, 1)
    seen = set()
    lives = 0

    def dying(real: Any) -> Any:
        def call(*a: Any, **k: Any) -> Any:
            nonlocal lives
            lives -= 1
            if lives < 0:
                raise KeyboardInterrupt
            return real(*a, **k)

        return call

    for fatal in range(30):
        lives = fatal
        with monkeypatch.context() as patch:
            for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
                patch.setattr(owner, name, dying(getattr(owner, name)))
            with suppress(KeyboardInterrupt):
                write(checkpoint, fatal + 2)
        state = checkpoint.read()
        assert state is not None
        seen.add(fatal + 2 - state["step"])
        assert checkpoint.tensors("last")["w"].tolist() == [state["step"]] * 3
        assert checkpoint.tensors("best")["b"].tolist() == [state["step"]] * 2
    assert 0 in seen and len(seen) > 1


def test_a_folder_that_cannot_be_written_is_found_before_training(
    workshop: SimpleNamespace, root: Path, by_head: Quick
) -> None:
    shutil.rmtree(root / "tuning", ignore_errors=True)
    (root / "tuning").write_text("in the way")
    with pytest.raises(HeadError, match="cannot write in .*tuning"):
        finetune(workshop.head.run, workspace=root, **by_head)
