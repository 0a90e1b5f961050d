"""Who tells whom: the first process announces, the others wait, and nobody waits for ever."""

from __future__ import annotations

import multiprocessing
import os
import socket
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed

from pipeline.base import machine, ranks
from pipeline.base.errors import ConfigError, PipelineError
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


# -- a GPU for each process -------------------------------------------------------------------------------------------


class OnAGpu(torch.Tensor):
    """A tensor that says that it lies on a GPU."""

    is_cpu = False  # type: ignore[assignment]


def test_what_lies_on_gpus_is_summed_by_nccl_where_each_process_has_its_own(
    two: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[Any] = []

    def all_reduce(flat: torch.Tensor, group: Any = None) -> None:
        groups.append((type(flat) is OnAGpu, group))
        flat.mul_(2)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(OnAGpu, "cpu", lambda self: self.as_subclass(torch.Tensor), raising=False)
    job = Ranks()
    for nccl in (None, "nccl"):
        job._of_gpus = nccl
        there, here = torch.ones(3).as_subclass(OnAGpu), torch.ones(2)
        job.add_up([there])
        job.add_up([here])
        assert there.tolist() == [2, 2, 2] and here.tolist() == [2, 2]
    # Without, all goes through the host's memory; with, what lies on the host still does.
    assert groups == [(False, None), (False, None), (True, "nccl"), (False, None)]


def joined(rank: int, world: int, port: int, told: dict[str, Any], answers: Any) -> None:
    """One process of a job: which GPU it takes, whether gradients go by NCCL, and sums by gloo meanwhile."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in places.items()})
    uuids: list[str | None] = told["uuids"][rank]  # of the GPUs that this process sees
    taken = [0]
    cuda: Any = torch.cuda
    cuda.is_available, cuda.device_count = (lambda: bool(uuids)), (lambda: len(uuids))
    cuda.current_device, cuda.set_device = (lambda: taken[-1]), taken.append
    cuda.get_device_properties = lambda at: SimpleNamespace(**({} if uuids[at] is None else {"uuid": uuids[at]}))
    machine._sees_gpu = lambda: bool(uuids)  # type: ignore[assignment]
    distributed: Any = torch.distributed
    distributed.is_nccl_available = lambda: told.get("nccl", True)
    distributed.new_group = lambda **options: options["backend"]
    job = Ranks()
    job.join(told.get("device", "auto"))
    if job.first:
        with job.leading() as announce:
            announce({"from": "the first"})
    message = None if job.first else job.told()
    added = job.added(np.array([rank + 1.5]))
    answers.put((rank, taken[1:], job._of_gpus, job.total(rank + 1), float(added[0]), message))
    job.leave()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


PAIRS: dict[str, tuple[dict[str, Any], list[list[int]], str | None]] = {
    "two GPUs that both see": ({"uuids": [["a", "b"], ["a", "b"]]}, [[0], [1]], "nccl"),
    "one GPU for each, the only one that it sees": ({"uuids": [["a"], ["b"]]}, [[0], [0]], "nccl"),
    "one GPU for both": ({"uuids": [["a"], ["a"]]}, [[0], [0]], None),
    "GPUs that do not tell which they are": ({"uuids": [[None], [None]]}, [[0], [0]], None),
    "a GPU and none": ({"uuids": [["a"], []]}, [[0], []], None),
    "no NCCL": ({"uuids": [["a"], ["b"]], "nccl": False}, [[0], [0]], None),
    "GPUs that are not asked for": ({"uuids": [["a", "b"], ["a", "b"]], "device": "cpu"}, [[], []], None),
}


FEW = ("one GPU for each, the only one that it sees", "one GPU for both")


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in FEW else pytest.mark.slow) for c in PAIRS])
def test_each_process_takes_a_gpu_and_they_find_out_whether_it_is_its_own(case: str) -> None:
    told, taken, nccl = PAIRS[case]
    server = multiprocessing.get_context("forkserver")
    answers, port = server.Queue(), free_port()
    children = [server.Process(target=joined, args=(rank, 2, port, told, answers)) for rank in range(2)]
    try:
        for child in children:
            child.start()
        found = sorted((answers.get(timeout=60) for _ in children), key=lambda answer: answer[0])
        for child in children:
            child.join(60)
    finally:
        for child in children:
            child.kill()
    assert [answer[1:5] for answer in found] == [(taken[rank], nccl, 3, 4.0) for rank in range(2)]
    assert found[1][5] == {"from": "the first"}


@pytest.mark.parametrize(
    ("group", "fails", "left"), [(None, True, 1), ("nccl", True, 0), (None, False, 1), ("nccl", False, 1)]
)
def test_a_process_that_fails_among_gpus_ends_without_waiting_for_the_others(
    monkeypatch: pytest.MonkeyPatch, group: str | None, fails: bool, left: int
) -> None:
    """NCCL's farewell would wait for sums for which the others wait."""
    job, leaves = Ranks(), []
    monkeypatch.setattr(Ranks, "join", lambda self, device: setattr(self, "_of_gpus", group))
    monkeypatch.setattr(Ranks, "leave", lambda self: leaves.append(1))
    with suppress(KeyError), job.joined("cuda"):
        if fails:
            raise KeyError
    assert len(leaves) == left


def test_a_gpu_by_its_number_is_refused_where_several_processes_would_share_it(
    two: list[torch.Tensor],
) -> None:
    with pytest.raises(ConfigError, match="device='cuda:1' with 2 processes: each takes a GPU .*; give device='cuda'$"):
        Ranks().join("cuda:1")


def test_one_process_alone_asks_for_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_sees_gpu", lambda: pytest.fail("asked"))
    Ranks().join("cuda:1")
