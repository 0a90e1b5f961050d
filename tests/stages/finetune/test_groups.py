"""What learns, and how fast."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline import finetune
from pipeline.stages.finetune.groups import learnt_tensors, parameter_groups
from pipeline.stages.finetune.settings import FinetuneSettings
from tests.stages.finetune.conftest import plain

Quick = dict[str, Any]


@pytest.mark.parametrize("part", ["head", "last", "layer4", "layer3+", "all"])
def test_every_trainable_parameter_is_in_exactly_one_group(
    resnet_workshop: SimpleNamespace, part: str, attached_to: Any
) -> None:
    attached = attached_to(resnet_workshop.head.run, resnet_workshop.root)
    groups = parameter_groups(
        attached.network, attached.anatomy, FinetuneSettings(train=part, layer_decay=0.5, lr_head=1e-2)
    )
    named = dict(attached.network.named_parameters())
    grouped = [p for g in groups for p in g.parameters]
    assert len({id(p) for p in grouped}) == len(grouped)
    assert {id(p) for p in grouped} == {id(p) for p in named.values() if p.requires_grad}
    assert [id(named[n]) for g in groups for n in g.names] == [id(p) for p in grouped]
    late = ("fc.", "layer4.")
    prefixes = {"head": ("fc.",), "last": late, "layer4": late, "layer3+": (*late, "layer3."), "all": ("",)}
    assert {n for n, p in named.items() if p.requires_grad} == {n for n in named if n.startswith(prefixes[part])}
    for g in groups:
        assert {p.ndim > 1 for p in g.parameters} == {g.weight_decay > 0}
    rates = list(dict.fromkeys(g.lr for g in groups))
    assert rates == pytest.approx([1e-2 * 0.5**k for k in range(len(rates))])


@pytest.mark.slow
def test_exactly_what_is_named_moves(
    workshop: SimpleNamespace,
    root: Path,
    state_of: Any,
    last_epoch_is_kept: Any,
    fast: Quick,
    start: dict[str, torch.Tensor],
) -> None:
    """Frozen parameters and BatchNorm's statistics stay to the last bit; with --bn train those that learn."""
    parameters = {n for n, _ in plain(3).named_parameters()}
    statistics = {n for n in start if n not in parameters}
    late = {n for n in start if n.startswith(("fc.", "layer4."))}
    for options, expected in (
        ({"train": "all"}, parameters),
        ({"train": "last", "bn": "train"}, late),
        ({"train": "last", "bn": "train", "prefix": False}, late),
        ({"train": "head"}, {"fc.weight", "fc.bias"}),
    ):
        with last_epoch_is_kept():
            tuned = finetune(workshop.head.run, workspace=root, **{**fast, "epochs": 1}, **options)
        moved = {name for name, value in state_of(tuned.run).items() if not torch.equal(value, start[name])}
        assert moved == expected, options
    assert late & statistics


def test_the_table_shows_each_group_before_the_start(
    workshop: SimpleNamespace, root: Path, listener: Any, fast: Quick
) -> None:
    finetune(workshop.head.run, train="last", augment="flip", workspace=root, watch=listener, **fast)
    lines, parameters = listener.text.splitlines(), dict(plain(3).named_parameters())
    (weights,) = [line.split() for line in lines if line.startswith("layer4") and line.split()[1] == "weights"]
    number = sum(p.numel() for n, p in parameters.items() if n.startswith("layer4.") and p.ndim > 1)
    assert weights[1:] == ["weights", f"{number:,}", "0.0001", "0.01", "trained"]
    (frozen,) = [line.split() for line in lines if line.startswith("layer2")]
    assert frozen[1] == f"{sum(p.numel() for n, p in parameters.items() if n.startswith('layer2.')):,}"
    assert frozen[-1] == "frozen"
    assert "maps are mirrored: nearly, not exactly" in " ".join(listener.text.split())
    assert "cached maps before the last stage" in listener.text


def test_a_checkpoint_holds_what_a_step_may_change_and_nothing_more(
    workshop: SimpleNamespace, attached_to: Any
) -> None:
    attached = attached_to(workshop.head.run, workshop.root)
    settings = FinetuneSettings(train="last", bn="train")
    parameter_groups(attached.network, attached.anatomy, settings)
    names = set(learnt_tensors(attached.network, attached.anatomy, settings))
    assert "layer4.0.bn1.running_mean" in names and "layer4.0.bn1.num_batches_tracked" in names
    assert not [n for n in names if not n.startswith(("layer4.", "fc."))]
