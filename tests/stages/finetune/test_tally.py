"""Figures of steps stay on the device until they are read, and are those of each step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.base.ranks import Ranks
from pipeline.stages.finetune.tally import STEPS, Step, Tally
from tests.device_double import device_double


def step(tally: Tally, number: int, losses: list[float], device: str) -> None:
    """A step of two pieces: these losses, of which those below 1 are right, and then one more right one of 0.25."""
    tally.begin(number, len(losses) + 1)
    for piece in (losses, [0.25]):
        x = torch.tensor(piece, dtype=torch.float32).pin_memory() if device == "cuda" else torch.tensor(piece)
        x = x.to(device, non_blocking=True)
        tally.add(x, x < 1)


@pytest.mark.parametrize("late", [False, True])
def test_each_step_has_its_own_sums_and_nobody_waits_before_they_are_read(late: bool) -> None:
    with device_double(late=late) as double:
        tally = Tally("cuda")
        for number in (6, 7, 8, 9):  # over the end of a reading's places
            step(tally, number, [float(number), 0.5], "cuda")
        assert tally.unread == 4 and double.synchronisations == 0
        assert tally.read(Ranks(), stop=False) == ([Step(n + 0.75, 2.0, 3) for n in (6, 7, 8, 9)], False)
        assert double.synchronisations == 1 and tally.unread == 0
        step(tally, 10, [3.0], "cuda")  # nothing is left of those before
        assert tally.read(Ranks(), stop=True) == ([Step(3.25, 1.0, 2)], True)


def test_a_cpu_has_each_step_at_once() -> None:
    tally = Tally("cpu")
    assert tally.every == STEPS["cpu"] == 1
    for number in (1, 2):
        step(tally, number, [float(number)], "cpu")
        assert tally.read(Ranks(), stop=False) == ([Step(number + 0.25, 1.0 + (number < 1), 2)], False)


def test_pieces_are_added_in_float64() -> None:
    """As they always were: each piece's sum is float32, what they come to is not."""
    tally = Tally("cpu")
    tally.begin(1, 2)
    for value in (1.0, 1e-10):
        tally.add(torch.tensor([value]), torch.tensor([False]))
    [found], _ = tally.read(Ranks(), stop=False)
    assert found.loss == 1.0 + float(torch.tensor(1e-10)) > 1.0


def test_a_stop_of_another_process_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over all processes: of three, each with these figures, one was asked to stop."""
    tally = Tally("cpu")
    step(tally, 1, [2.0], "cpu")

    def added(_: Ranks, values: Any) -> Any:
        total = 3 * values
        total[-2] = 1.0
        return total

    monkeypatch.setattr(Ranks, "added", added)
    assert tally.read(Ranks(), stop=False) == ([Step(6.75, 3.0, 2)], True)
