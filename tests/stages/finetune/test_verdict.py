"""Was it worth it?"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import evaluate, finetune, open_cache, predict
from pipeline.stages.finetune.verdict import Change, Course, judge

Quick = dict[str, Any]


def make_change(split: str, low: float, high: float) -> Any:
    middle = (low + high) / 2
    return Change(split, 1000, 0.8, 0.8 + middle, middle, low, high)


def test_the_verdict_is_of_the_test_images_and_read_once(workshop: SimpleNamespace, root: Path, fast: Quick) -> None:
    """Test is scored after the choice, kept with the run, and agrees with a count made by hand."""
    tuned = finetune(workshop.head.run, workspace=root, **{**fast, "evaluate": True})
    verdict = tuned.verdict
    assert verdict["test"]["n"] == 9
    images = [workshop.photos / os.fsdecode(i) for i in open_cache(workshop.cache.cache).split("test").ids]
    for run, figure in ((workshop.head.run, "before"), (tuned.run, "after")):
        right = [p.class_name == Path(p.path).parent.name for p in predict(run, images, workspace=root)]
        assert verdict["test"][figure] == np.mean(right)
    scored = evaluate(tuned.run, workspace=root)
    assert scored.test["accuracy"] == verdict["test"]["after"]
    assert 0.5 < verdict["drift"]["test"] <= 1 + 1e-6 and set(verdict["drift"]) == {"train", "val", "test"}
    assert verdict["factor"] == pytest.approx(tuned.seconds / workshop.head.seconds)


def test_the_figures_beside_a_run_are_those_that_its_own_evaluation_gives(
    workshop: SimpleNamespace, root: Path, fast: Quick
) -> None:
    """To the last bit of the logits: the network that is scored before the run is there is the one that it holds."""
    tuned = finetune(workshop.head.run, workspace=root, **{**fast, "evaluate": True})
    again = shutil.copytree(tuned.run, root / "runs" / "0099-finetune-again", ignore=shutil.ignore_patterns("eval*"))
    own = evaluate(again, workspace=root)
    kept, made = ((run / "evaluation.safetensors").read_bytes() for run in (tuned.run, Path(again)))
    assert kept == made
    assert json.loads((tuned.run / "evaluation.json").read_text())["test"] == own.test
    assert own.test["calibrated"] is not None


@pytest.mark.parametrize(
    ("kept", "test", "words", "then"),
    [
        (3, (0.01, 0.03), "yes: test is better by 2.0 points", "the last epoch was the best"),
        (2, (0.01, 0.03), "yes: test is better by 2.0 points", "`pipeline predict` and `pipeline export`"),
        (2, (-0.01, 0.03), "not proven: the difference on test, +1.0 points, may be chance", "more test images"),
        (2, (-0.03, -0.01), "no: test is worse by 2.0 points", "keep the head"),
        (2, (0.0, 0.0), "no difference: the same test images are right as before (1,000)", "more test images"),
        (0, (0.0, 0.0), "no: no epoch was better on val", "--train last moves less"),
    ],
)
def test_the_verdict_says_what_the_figures_say(kept: int, test: tuple[float, float], words: str, then: str) -> None:
    course = Course(epochs=3, kept=kept, accuracy=0.9, interpolated=False, train="all")
    found = judge(
        make_change("val", 0.0, 0.02),
        make_change("test", *test),
        seconds=10.0,
        head_seconds=2.0,
        drift={"val": 0.99},
        course=course,
    )
    assert words in found.worth_it and any(then in line for line in found.next)
    assert found.factor == 5.0


def test_the_verdict_on_a_training_that_diverged_says_so() -> None:
    course = Course(epochs=3, kept=0, accuracy=0.9, interpolated=False, train="all", diverged=True)
    same = make_change("val", 0.0, 0.0)
    found = judge(same, None, seconds=10.0, head_seconds=2.0, drift={}, course=course)
    assert found.worth_it.endswith("and the loss did not stay finite")
    assert found.next == ("lower --lr-trunk and --lr-head: the loss did not stay finite",)
