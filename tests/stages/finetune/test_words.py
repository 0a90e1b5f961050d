"""What fine-tuning says of its results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.stages.finetune import words
from pipeline.stages.finetune.groups import ParameterGroup
from pipeline.stages.finetune.mixtures import Choice, Mixture
from pipeline.stages.finetune.verdict import Change, Verdict

Printed = Callable[..., str]


def line(shown: str, start: str) -> list[str]:
    (found,) = [row for row in shown.splitlines() if row.startswith(start)]
    return found.split()


def make_verdict(**known: Any) -> Verdict:
    same = Change("val", 40, 0.9, 0.9, 0.0, 0.0, 0.0, 0, 0, 1.0)
    empty = {"test": None, "seconds": 1.0, "head_seconds": None, "factor": None, "drift": {}}
    counts = {"drift_rows": 256, "candidates": 4}
    return Verdict(**{"val": same, **empty, **counts, "worth_it": "no difference", "next": ("stop",), **known})


def test_a_group_shows_its_rate_and_a_frozen_one_none(printed: Printed) -> None:
    parameter = torch.nn.Parameter(torch.zeros(10, 2048))
    group = ParameterGroup("head weights", ("fc.weight",), (parameter,), 3e-5, 0.01)
    shown = printed(words.parameters([group], {"stem": 9536}))
    assert line(shown, "head weights")[2:] == ["20,480", "3e-05", "0.01", "trained"]
    assert line(shown, "stem")[1:] == ["9,536", "–", "–", "frozen"]


def test_a_verdict_shows_both_sides_their_difference_and_its_interval(printed: Printed) -> None:
    test = Change("test", 269, 0.9517, 0.9665, 0.0148, -0.004, 0.037, 3, 7, 0.23)
    verdict = make_verdict(test=test, seconds=88.0, head_seconds=2.0, factor=44.0, drift={"val": 0.982})
    shown = printed(words.worth_it(verdict), 140)
    assert line(shown, "Test accuracy (269 images)")[4:] == (
        ["95.2", "%", "96.7", "%", "+1.5", "points", "−0.4", "to", "+3.7"]
    )
    assert line(shown, "Training time")[2:] == ["2.0", "s", "1", "min", "28", "s", "44", "times", "–"]
    assert line(shown, "Val accuracy (40 images, best of 4: optimistic)")[8:] == (
        ["90.0", "%", "90.0", "%", "±0.0", "points", "±0.0", "to", "±0.0"]
    )
    assert "0.982" in line(shown, "Features, cosine with cached (val)")


@pytest.mark.parametrize(("factor", "said"), [(2.04, "2.0"), (44.3, "44"), (127.4, "127"), (1300.0, "1,300")])
def test_how_many_times_longer_it_took_is_a_plain_number(printed: Printed, factor: float, said: str) -> None:
    shown = printed(words.worth_it(make_verdict(factor=factor)), 140)
    assert line(shown, "Training time")[-3:] == [said, "times", "–"]


def test_a_head_without_seconds_gives_no_factor(printed: Printed) -> None:
    shown = printed(words.worth_it(make_verdict()), 140)
    assert line(shown, "Training time")[2:] == ["–", "1.0", "s", "–", "–"]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_curve_between_before_and_after_marks_what_is_kept(share: float) -> None:
    mixtures = tuple(Mixture(s, v, 0.3) for s, v in ((0.0, 0.8), (0.5, 0.9), (1.0, 0.7)))
    kept = next(m for m in mixtures if m.share == share)
    curve = words.mixtures(Choice({}, kept.val, 1, share, mixtures))
    assert curve.series == {"val": [0.8, 0.9, 0.7]} and curve.x == [0.0, 0.5, 1.0] and curve.chosen == share
    assert f"chosen {share:.1f}, {100 * kept.val:.1f} %" in curve.title


def test_what_is_said_at_the_end_is_the_verdict_what_to_do_next_and_where_the_run_is(tmp_path: Any) -> None:
    first, then, last = words.ended(make_verdict(), tmp_path)
    assert (first, then) == ("worth it: no difference", "next: stop")
    assert last == f"val 90.0 % -> 90.0 % (±0.0 points), in 1.0 s -> {tmp_path}"
