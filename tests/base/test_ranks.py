"""Who tells whom: the first process announces, the others wait, and nobody waits for ever."""

from __future__ import annotations

from typing import Any

import pytest

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
