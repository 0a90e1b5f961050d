"""What is kept: the start, the best epoch, or weights between the two."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from pipeline import finetune
from pipeline.stages.finetune.mixtures import between

Quick = dict[str, Any]


@pytest.mark.slow
def test_interpolation_scores_eleven_and_keeps_the_best(workshop: SimpleNamespace, root: Path, fast: Quick) -> None:
    tuned = finetune(workshop.head.run, interpolate=True, workspace=root, **{**fast, "lr_trunk": 3e-4})
    found = [json.loads(line) for line in (tuned.run / "interpolation.jsonl").read_text().splitlines()]
    assert [m["share"] for m in found] == pytest.approx([i / 10 for i in range(11)])
    best = max(found, key=lambda m: (m["val"], -m["loss"]))
    assert (tuned.share, tuned.after) == (best["share"], best["val"])
    assert found[0]["val"] == tuned.step0
    assert ElementTree.parse(tuned.run / "interpolation.svg").getroot().tag.endswith("svg")


def test_weights_between_are_the_weighted_mean() -> None:
    before, after = {"w": torch.tensor([0.0, 4.0])}, {"w": torch.tensor([1.0, 0.0])}
    assert between(before, after, 0.25)["w"].tolist() == [0.25, 3.0]
    assert between(before, after, 0.0)["w"] is before["w"] and between(before, after, 1.0)["w"] is after["w"]
