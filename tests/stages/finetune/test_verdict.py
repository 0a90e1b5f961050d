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
from pipeline.stages.finetune.verdict import Course, change, judge

Quick = dict[str, Any]


def make_change(split: str, b: int, c: int) -> Any:
    """Of 1,000 images b are broken and c mended."""
    before, after = np.arange(1000) < 800, np.arange(1000) < 800
    after[:b], after[800 : 800 + c] = False, True
    return change(split, before, after)


def make_course(kept: int = 2, **known: Any) -> Course:
    usual = {"epochs": 3, "accuracy": 0.9, "interpolated": False, "train": "all", "candidates": 4, "test_rows": 1000}
    return Course(kept=kept, **{**usual, **known})


def judged(val: Any, test: Any, course: Course, drift: float = 0.99) -> Any:
    return judge(val, test, seconds=10.0, head_seconds=2.0, drift={"val": drift}, course=course)


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
    assert 0.5 < verdict["drift"]["val"] <= 1 + 1e-6 and set(verdict["drift"]) == {"train", "val"}
    assert verdict["candidates"] == 1 + fast["epochs"]
    assert verdict["factor"] == pytest.approx(tuned.seconds / workshop.head.seconds)


@pytest.mark.slow
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
    ("kept", "test", "words"),
    [
        (3, (5, 25), "yes: test is better by 2.0 points (95 % interval "),
        (2, (10, 20), "not proven: the difference on test, +1.0 points, may be chance (95 % interval "),
        (2, (25, 5), "no: test is worse by 2.0 points (95 % interval "),
        (2, (0, 0), "no difference: the same test images are right as before (1,000)"),
        (0, (0, 0), "no: no epoch was better on val than the start"),
    ],
)
def test_the_verdict_says_what_the_figures_on_test_say(kept: int, test: tuple[int, int], words: str) -> None:
    found = judged(make_change("val", 0, 20), make_change("test", *test), make_course(kept))
    assert found.worth_it.startswith(words)
    assert found.factor == 5.0


def test_the_verdict_prints_how_many_were_mended_and_broken_and_their_p() -> None:
    found = judged(make_change("val", 0, 20), make_change("test", 0, 4), make_course())
    assert found.worth_it == (
        "not proven: the difference on test, +0.4 points, may be chance (95 % interval −0.1 to +1.0 points, "
        "4 mended, none broken of 1,000 images, McNemar's mid-p = 0.062)"
    )


def test_a_test_that_is_worse_where_val_is_not_is_said_so() -> None:
    found = judged(make_change("val", 0, 20), make_change("test", 25, 5), make_course())
    assert found.worth_it.endswith(", though val, which chose, is not")


@pytest.mark.parametrize(("rows", "cure"), [(0, "extract with test_fraction above 0"), (1000, "`pipeline compare`")])
def test_without_a_test_nothing_is_proven_however_much_better_val_is(rows: int, cure: str) -> None:
    found = judged(make_change("val", 0, 100), None, make_course(test_rows=rows))
    assert found.worth_it.startswith(
        "not tested: val chose the epoch, so its figures are no proof (80.0 % before, 90.0 % after); to know, "
    )
    assert cure in found.worth_it


@pytest.mark.parametrize(
    ("course", "val", "drift", "then"),
    [
        (make_course(3), (0, 20), 0.99, "the last epoch was the best"),
        (make_course(2), (0, 20), 0.99, "nothing stands out"),
        (make_course(2), (5, 9), 0.99, "so small a difference on val takes more images"),
        (make_course(2), (20, 0), 0.99, "keep the head: val is worse than with it"),
        (make_course(2), (0, 20), 0.5, "interpolate=True may give the better of both"),
        (make_course(2, accuracy=1.0), (0, 20), 0.99, "every train image is right"),
        (make_course(0), (0, 0), 0.99, "train='last' moves less"),
    ],
)
def test_what_to_do_next_follows_from_train_and_val_and_never_from_test(
    course: Course, val: tuple[int, int], drift: float, then: str
) -> None:
    found = {judged(make_change("val", *val), make_change("test", *t), course, drift).next for t in [(25, 5), (5, 25)]}
    (advice,) = found | {judged(make_change("val", *val), None, course, drift).next}
    assert any(then in line for line in advice)


def test_the_verdict_on_a_training_that_diverged_says_so() -> None:
    found = judged(make_change("val", 0, 0), None, make_course(0, diverged=True))
    assert found.worth_it.endswith("and the loss did not stay finite")
    assert found.next == ("lower lr_trunk and lr_head: the loss did not stay finite",)


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 269, 2000])
@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_a_fine_tuning_that_changes_nothing_is_seldom_said_to_be_worth_it(n: int, rate: float) -> None:
    """``rate`` of the test images change sides, as many one way as the other but for chance; -s prints the share."""
    rng, times, val = np.random.default_rng(0), 5000, make_change("val", 0, 20)
    course, told = make_course(), 0
    for sides in rng.choice(4, (times, n), p=[0.9 - rate / 2, 0.1 - rate / 2, rate / 2, rate / 2]):
        before, after = np.isin(sides, (0, 2)), np.isin(sides, (0, 3))
        told += judged(val, change("test", before, after), course).worth_it.startswith("yes")
    print(f"\n{n:5d} test images, {rate:.0%} of them changed: 'yes' in {told / times:.2%} of {times:,}", end="")
    assert told / times <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / times)
