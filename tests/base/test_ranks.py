"""Who tells whom: the first process announces, the others wait, and nobody waits for ever."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed

from pipeline.base import ranks
from pipeline.base.errors import PipelineError
from pipeline.base.ranks import Ranks


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the first process sends to the others."""
    messages: list[Any] = []
    monkeypatch.setattr(Ranks, "_broadcast", lambda self, message: messages.append(message))
    return messages


def test_the_others_are_told_what_the_first_process_announces(sent: list[Any]) -> None:
    with Ranks().leading() as announce:
        announce({"out": "there"})
        assert sent == [{"out": "there"}]
    assert sent == [{"out": "there"}]


def test_the_others_are_released_when_the_first_process_fails_before_it_has_announced(sent: list[Any]) -> None:
    with pytest.raises(ValueError, match="no such file"), Ranks().leading():
        raise ValueError("no such file")
    assert sent == [None]


def test_a_failure_after_the_announcement_sends_nothing_that_nobody_waits_for(sent: list[Any]) -> None:
    with pytest.raises(ValueError, match="disk full"), Ranks().leading() as announce:
        announce({})
        raise ValueError("disk full")
    assert sent == [{}]


def test_a_process_that_is_released_untold_says_where_the_reason_stands(
    sent: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(PipelineError, match="rank 1: the first process could not start; its message says why"):
        Ranks().told()


def test_one_process_alone_announces_to_nobody() -> None:
    with Ranks().leading() as announce:
        announce({"out": "there"})


# -- sums over processes ----------------------------------------------------------------------------------------------


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The first of two processes, whose other one has the same numbers; what travels."""
    travelled: list[torch.Tensor] = []

    def all_reduce(flat: torch.Tensor) -> None:
        travelled.append(flat.clone())
        flat.mul_(2)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    return travelled


def test_tensors_are_summed_in_place_whatever_lies_how_in_memory(two: list[torch.Tensor]) -> None:
    """The same numbers travel in the same order, in channels-last memory or not."""
    maps = torch.arange(24.0).reshape(1, 2, 3, 4)
    tensors = [maps.clone(memory_format=torch.channels_last), torch.tensor(5.0), torch.ones(2, 3).T]
    strides = [t.stride() for t in tensors]
    Ranks().add_up(tensors)
    assert [t.stride() for t in tensors] == strides
    assert torch.equal(tensors[0], 2 * maps) and float(tensors[1]) == 10 and bool((tensors[2] == 2).all())
    (flat,) = two
    assert torch.equal(flat, torch.cat([maps.reshape(-1), torch.tensor([5.0]), torch.ones(6)]))


def test_buffers_are_bounded_and_of_one_type(two: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "BUFFER", 4)
    Ranks().add_up([*(torch.ones(n) for n in (3, 1, 2, 7, 1)), torch.ones(1, dtype=torch.float64)])
    assert [(len(flat), flat.dtype) for flat in two] == [
        *((n, torch.float32) for n in (4, 2, 7, 1)),
        (1, torch.float64),
    ]


def test_a_process_that_is_gone_is_one_line(two: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: torch.Tensor) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer\nand more")

    monkeypatch.setattr(torch.distributed, "all_reduce", gone)
    with pytest.raises(PipelineError, match="^rank 0: another process of the job stopped; .*the same command") as error:
        Ranks().add_up([torch.ones(1)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("first", "alike"), [("a", True), ("b", False)])
def test_what_is_not_alike_is_told(
    two: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch, first: str, alike: bool
) -> None:
    monkeypatch.setattr(Ranks, "_broadcast", lambda self, message: {"text": first})
    assert Ranks().alike("a") is alike
