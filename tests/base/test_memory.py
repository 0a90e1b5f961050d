"""How much of a device rows may take, asked of what the device says, and memory that a failure held."""

import weakref

import pytest
import torch

from pipeline.base import memory
from pipeline.base.memory import free_bytes, let_go, memory_share


@pytest.mark.parametrize(("there", "share"), [(16 << 30, 2 << 30), (None, 1 << 30)])
def test_on_a_processor_it_is_an_eighth_of_the_whole_memory_or_a_gibibyte_where_nobody_tells(
    monkeypatch: pytest.MonkeyPatch, there: int | None, share: int
) -> None:
    monkeypatch.setattr(memory, "memory_bytes", lambda: there)
    assert memory_share() == memory_share("cpu") == memory_share(torch.device("cpu")) == share


def test_on_a_gpu_it_is_a_third_of_what_is_free_with_what_pytorch_keeps_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: asked.append(device) or (50 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 13 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3 << 30)
    assert free_bytes("cuda:1") == 60 << 30
    assert memory_share("cuda:1") == memory_share(torch.device("cuda", 1)) == 20 << 30
    assert [torch.device(device).index for device in asked] == [1, 1, 1]


def test_what_a_failure_held_is_let_go_while_it_is_handled() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    def compute() -> None:
        held = torch.zeros(9)
        kept.append(weakref.ref(held))
        raise torch.OutOfMemoryError("CUDA out of memory")

    try:
        compute()
    except torch.OutOfMemoryError as error:
        assert kept[0]() is not None
        let_go(error)
        assert kept[0]() is None
