"""The steps of a training."""

from __future__ import annotations

import hashlib
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image

from pipeline import finetune, open_cache
from pipeline.base.errors import ConfigError, HeadError
from pipeline.base.interrupt import StopRequest
from pipeline.base.ranks import Ranks
from pipeline.stages.finetune.checkpoint import Checkpoint
from pipeline.stages.finetune.loop import Loop
from pipeline.stages.finetune.state import State
from tests.stages.finetune.conftest import plain

Quick = dict[str, Any]


def test_a_step_is_that_of_plain_torch(
    workshop: SimpleNamespace,
    root: Path,
    state_of: Any,
    last_epoch_is_kept: Any,
    start: dict[str, torch.Tensor],
) -> None:
    """One epoch of one batch: the gradient of the library's own network, one step of plain AdamW."""
    with last_epoch_is_kept():
        tuned = finetune(
            workshop.head.run,
            epochs=1,
            batch_size=60,
            warmup=0,
            lr_trunk=1e-3,
            lr_head=1e-2,
            label_smoothing=0.1,
            clip=0.5,
            evaluate=False,
            workspace=root,
        )
    model = plain(3)
    model.load_state_dict(start)
    model.eval()
    cache = open_cache(workshop.cache.cache)
    rows = cache.rows("train")
    told = cache.provenance["transform"]
    transform = torchvision.transforms._presets.ImageClassification(
        crop_size=told["crop"],
        resize_size=told["resize"],
        mean=told["mean"],
        std=told["std"],
        interpolation=torchvision.transforms.InterpolationMode(told["interpolation"]),
    )
    x = torch.stack([transform(Image.open(workshop.photos / os.fsdecode(cache.ids[r]))) for r in rows])
    y = torch.from_numpy(cache.labels[rows])
    torch.nn.functional.cross_entropy(model(x), y, label_smoothing=0.1).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    for rate, head in ((1e-3, False), (1e-2, True)):
        chosen = [(n, p) for n, p in model.named_parameters() if n.startswith("fc.") == head]
        for decay, wide in ((0.01, True), (0.0, False)):
            parameters = [p for _, p in chosen if (p.ndim > 1) == wide]
            torch.optim.AdamW(parameters, lr=rate, weight_decay=decay).step()
    found = state_of(tuned.run)
    # AdamW's first step is lr · g / (|g| + eps): where g is nearly 0 rounding decides, so the middle is compared
    for name, expected in model.named_parameters():
        assert float((found[name] - expected.detach()).abs().median()) < 1e-6, name


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"accumulate": 5}, marks=pytest.mark.slow),
        {"accumulate": 5, "mixup": 0.4, "augment": "weights"},
    ],
)
def test_pieces_give_the_figures_of_the_whole_batch(
    workshop: SimpleNamespace, root: Path, options: Quick, trace_of: Any, fast: Quick
) -> None:
    """Mixing goes by neighbours, so that it is the same in pieces."""
    whole, pieces = (
        finetune(workshop.head.run, workspace=root, **{**fast, **options, "accumulate": n, "epochs": 1})
        for n in (1, options["accumulate"])
    )
    for a, b in zip(trace_of(whole.run), trace_of(pieces.run), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["val_loss"] == pytest.approx(a["val_loss"], rel=1e-3)


def test_too_little_memory_is_a_clear_error_with_the_cure(
    workshop: SimpleNamespace, root: Path, monkeypatch: pytest.MonkeyPatch, by_head: Quick
) -> None:
    """Pieces give the same figures, so that nothing is lost by taking them."""

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(Loop, "_losses", full)
    with pytest.raises(ConfigError, match="out of memory in a step of 16 images: give accumulate=2 .*same figures"):
        finetune(workshop.head.run, workspace=root, **by_head)


def test_processes_that_do_not_begin_alike_are_refused(
    workshop: SimpleNamespace, root: Path, monkeypatch: pytest.MonkeyPatch, task_of: Any, by_head: Quick
) -> None:
    """What each has is told apart by every bit of its weights and of its optimiser's memory, and by its step."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    task = task_of(workshop.head.run, root, **by_head)
    state = State(task.attached.network, task.attached.anatomy, task.settings)
    weight = state.learnt["fc.weight"]
    told: list[str] = []
    monkeypatch.setattr(Ranks, "alike", lambda self, text: told.append(text) or len(told) == 1)
    for change in (
        lambda: None,
        lambda: weight.view(-1)[0].add_(1e-3),
        lambda: state.optimizer.state[state.groups[0].parameters[0]].update(exp_avg=torch.zeros_like(weight)),
        lambda: setattr(state.progress, "step", 1),
    ):
        change()
        state.progress.ended = True  # nothing is trained
        with nullcontext() if not told else pytest.raises(HeadError, match="do not begin with the same .*workspace"):
            Loop(task, state).run(Checkpoint(root), StopRequest())
    assert len(set(told)) == 4


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    workshop: SimpleNamespace, root: Path, last_epoch_is_kept: Any, by_head: Quick
) -> None:
    with last_epoch_is_kept():
        found = [
            digest(finetune(workshop.head.run, seed=s, workspace=root, **by_head).run / "model.safetensors")
            for s in (0, 0, 1)
        ]
    assert found[0] == found[1] != found[2]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_head(
    workshop: SimpleNamespace, root: Path, listener: Any, trace_of: Any
) -> None:
    tuned = finetune(
        workshop.head.run, solver="sgd", epochs=3, lr_trunk=1e30, lr_head=1e30, workspace=root, watch=listener
    )
    assert tuned.best_epoch == 0 and len(trace_of(tuned.run)) == 1
    assert "the loss is not finite: stopped" in listener.text
