"""The device double finds what is planted, counts, and gives the CPU's numbers."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import nn

from tests.device_double import Double, device_double


def network() -> nn.Module:
    """Convolutions, BatchNorm and a layer, always the same."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4)
    )


def trained(device: str, solver: str, steps: int = 3) -> dict[str, torch.Tensor]:
    """What a network is after some steps."""
    net = network().to(device).to(memory_format=torch.channels_last)
    make: Any = torch.optim.AdamW if solver == "adamw" else torch.optim.SGD
    optimizer = make(net.parameters(), lr=0.1, fused=True, **({"momentum": 0.9} if solver == "sgd" else {}))
    for step in range(steps):
        torch.manual_seed(step + 1)
        x, y = torch.randn(6, 3, 16, 16).to(device), torch.arange(6).remainder(4).to(device)
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(net(x), y).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
    return {name: value.cpu() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("solver", ["adamw", "sgd"])
def test_a_training_on_it_gives_the_numbers_of_the_cpu(solver: str, late: bool) -> None:
    plain = trained("cpu", solver)
    with device_double(late=late):
        found = trained("cuda", solver)
    assert all(torch.equal(value, found[name]) for name, value in plain.items())


def test_a_tensor_says_that_it_is_on_the_device() -> None:
    with device_double():
        for x in (
            torch.zeros(3, device="cuda"),
            torch.tensor([1.0], device="cuda:0"),
            torch.ones(2).to("cuda"),
            torch.ones(2).cuda() + 1,
            torch.ones(2).to(torch.zeros(1, device="cuda")),
            torch.empty_like(torch.ones(2), device="cuda"),
            torch.ones(2, device="cuda").new_zeros(3),
        ):
            assert x.device == torch.device("cuda:0") and x.is_cuda and x.get_device() == 0
        assert torch.ones(2, device="cuda").tolist() == [1.0, 1.0]
        with pytest.raises(RuntimeError):
            torch.ones(2, device="cuda").numpy()


@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: here + there,
        lambda here, there: there + here,
        lambda here, there: here @ there,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: torch.stack([here, there]),
        lambda here, there: there.add_(here.sum()),
        lambda here, there: there[here.long()],
        lambda here, there: nn.functional.linear(here, there),
        lambda here, there: nn.functional.cross_entropy(here, there[0].long()),
    ],
)
def test_a_mix_of_devices_is_refused(mix: Any) -> None:
    with device_double(), pytest.raises(RuntimeError, match="same device|device"):
        mix(torch.ones(4, 4, device="cuda"), torch.ones(4, 4))


def test_two_devices_do_not_mix() -> None:
    with device_double(devices=2), pytest.raises(RuntimeError, match="same device"):
        torch.ones(4, device="cuda:0") + torch.ones(4, device="cuda:1")


def test_a_number_of_the_host_goes_with_tensors_of_the_device() -> None:
    with device_double() as double:
        x = torch.ones(4, device="cuda")
        double.reset()
        y = (2 * x + torch.tensor(1.0)).mul_(torch.tensor(2.0))
        assert double.synchronisations == 0 and double.launches == 3
        assert y.tolist() == [6.0] * 4


@pytest.mark.parametrize("solver", ["adamw", "sgd"])
def test_an_optimisers_step_on_the_host_is_refused_as_the_fused_kernel_does(solver: str) -> None:
    """SGD has none, and nothing to refuse."""
    with device_double():
        net = network().to("cuda")
        make: Any = torch.optim.AdamW if solver == "adamw" else torch.optim.SGD
        optimizer = make(net.parameters(), lr=0.1, fused=True)
        net(torch.ones(2, 3, 16, 16, device="cuda")).sum().backward()
        optimizer.step()
        for state in optimizer.state.values():
            if "step" in state:
                assert state["step"].is_cuda
                state["step"] = state["step"].cpu()
        if solver == "sgd":
            optimizer.step()
            return
        with pytest.raises(RuntimeError, match="same device.*_fused_adamw_"):
            optimizer.step()


WAITS = {
    "item": lambda x, mask: x[0].item(),
    "float": lambda x, mask: float(x[0]),
    "bool": lambda x, mask: bool(x[0] > 0),
    "int": lambda x, mask: int(x[0]),
    "cpu": lambda x, mask: x.cpu(),
    "to": lambda x, mask: x.to("cpu"),
    "copied down": lambda x, mask: torch.empty(4).copy_(x),
    "copied up": lambda x, mask: x.copy_(torch.ones(4)),
    "copied up from memory that is not pinned": lambda x, mask: torch.ones(4).to("cuda", non_blocking=True),
    "copied up, and waited for": lambda x, mask: torch.ones(4).pin_memory().to("cuda"),
    "copied up as another type": lambda x, mask: torch.ones(4).pin_memory().to("cuda", torch.half, non_blocking=True),
    "nonzero": lambda x, mask: x.nonzero(),
    "a mask": lambda x, mask: x[mask],
    "a mask that is written": lambda x, mask: x.__setitem__(mask, x[0]),
    "indices of the host": lambda x, mask: x[[0, 1]],
    "equal": lambda x, mask: torch.equal(x, x),
    "new from numbers": lambda x, mask: torch.tensor([1.0, 2.0], device="cuda"),
    "stream": lambda x, mask: torch.cuda.current_stream().synchronize(),
    "event": lambda x, mask: torch.cuda.current_stream().record_event().synchronize(),
    "device": lambda x, mask: torch.cuda.synchronize(),
}
FREE = {
    "arithmetic": lambda x, mask: (x + 1).sum(),
    "new on the device": lambda x, mask: torch.zeros(4, device="cuda"),
    "indices of the device": lambda x, mask: x[torch.arange(2, device="cuda")],
    "a slice": lambda x, mask: x[1:3],
    "a number that is written": lambda x, mask: x.__setitem__(slice(2), 3.0),
    "a choice": lambda x, mask: torch.where(mask, x, 0.0),
    "copied up from pinned memory": lambda x, mask: torch.ones(4).pin_memory().to("cuda", non_blocking=True),
    "nothing copied up": lambda x, mask: torch.ones(0).pin_memory().to("cuda", non_blocking=True),
    "into what is there": lambda x, mask: x.copy_(torch.ones(5).pin_memory()[1:], non_blocking=True),
    "copied down into pinned memory": lambda x, mask: torch.empty(4, pin_memory=True).copy_(x, non_blocking=True),
    "down without waiting": lambda x, mask: x.to("cpu", non_blocking=True),
}


@pytest.mark.parametrize(("calls", "what", "waits"), [*((WAITS, w, 1) for w in WAITS), *((FREE, w, 0) for w in FREE)])
def test_what_makes_the_host_wait_is_counted_and_nothing_else(calls: dict[str, Any], what: str, waits: int) -> None:
    with device_double() as double:
        x = torch.ones(4, device="cuda")
        mask = x > 0
        double.reset()
        calls[what](x, mask)
        assert double.synchronisations == waits


def test_pinned_memory_is_known_by_its_address() -> None:
    with device_double():
        slot = torch.empty(4, 8, dtype=torch.uint8, pin_memory=True)
        assert slot.is_pinned() and slot[1:].is_pinned() and torch.from_numpy(slot.numpy()).is_pinned()
        assert slot.pin_memory() is slot
        assert not torch.empty(4).is_pinned() and not torch.ones(2, device="cuda").is_pinned()


def copied(double: Double, slots: int, *, waits: bool, down: bool = False) -> list[float]:
    """The sums of batches 0, 1, 2, ... that go through a ring of page-locked slots, and come back so."""
    host = [torch.empty(64, pin_memory=True) for _ in range(slots)]
    out = [torch.empty(64, pin_memory=True) for _ in range(slots)]
    copies, done = torch.cuda.Stream(), [torch.cuda.Event() for _ in range(slots)]
    found = []
    for number in range(12):
        slot = number % slots
        if waits:
            done[slot].synchronize()
        host[slot].fill_(number)
        with torch.cuda.stream(copies):
            x = host[slot].to("cuda", non_blocking=True)
            if down:
                out[slot].copy_(x, non_blocking=True)
            copies.record_event(done[slot])
        if down:
            if waits:
                done[slot].synchronize()
            found.append(float(out[slot].sum()))
        else:
            torch.cuda.current_stream().wait_stream(copies)
            found.append(x.sum())
    return [float(x) for x in found]


@pytest.mark.parametrize("down", [False, True])
def test_a_slot_that_is_used_before_its_copy_is_done_gives_wrong_numbers(down: bool) -> None:
    right = [64.0 * number for number in range(12)]
    for seed in range(5):
        with device_double(late=True, seed=seed) as double:
            assert copied(double, 3, waits=True, down=down) == right
            assert copied(double, 3, waits=False, down=down) != right
    with device_double() as double:  # a device that is never late does not tell
        assert copied(double, 3, waits=False, down=down) == right


def test_a_stream_that_does_not_wait_for_another_reads_what_is_not_there_yet() -> None:
    def total(*, waits: bool) -> float:
        copies = torch.cuda.Stream()
        host = torch.ones(8).pin_memory()
        with torch.cuda.stream(copies):
            x = host.to("cuda", non_blocking=True)
            y = x * 2
            event = copies.record_event()
        if waits:
            torch.cuda.current_stream().wait_event(event)
        return float(y.sum())

    with device_double(late=True):
        assert total(waits=True) == 16.0
        assert total(waits=False) != 16.0


def test_an_event_is_the_moment_that_it_was_recorded_at_and_says_when_that_is_over() -> None:
    with device_double(late=True) as double:
        event, host = torch.cuda.Event(), torch.ones(4).pin_memory()
        assert event.query()
        host.to("cuda", non_blocking=True)
        event.record()
        assert any(event.query() for _ in range(1000))  # without being waited for
        x = torch.zeros(4, device="cuda")
        x.copy_(host, non_blocking=True)
        event.record()
        torch.cuda.current_stream().record_event(event)
        event.synchronize()
        assert event.query() and double.late


def test_work_of_other_threads_is_on_the_device_and_counted() -> None:
    with device_double() as double:
        found = []
        thread = threading.Thread(target=lambda: found.append(float(torch.ones(3, device="cuda").sum())))
        thread.start()
        thread.join()
        assert found == [3.0] and double.synchronisations == 1 and double.launches == 3


def captured(net: nn.Module, shape: tuple[int, ...]) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A graph of a network, its input and its output."""
    graph, x = torch.cuda.CUDAGraph(), torch.zeros(shape, device="cuda")
    with torch.inference_mode(), torch.cuda.graph(graph):
        out = net(x).float()
    return graph, x, out


@pytest.mark.parametrize("late", [False, True])
def test_a_graph_gives_what_the_network_gives_and_is_one_launch(late: bool) -> None:
    net, generator = network().eval(), torch.Generator().manual_seed(3)
    batches = [torch.randn(2, 3, 16, 16, generator=generator) for _ in range(3)]
    with torch.inference_mode():
        right = [net(x) for x in batches]
    with device_double(late=late) as double:
        graph, x, out = captured(copy.deepcopy(net).to("cuda"), (2, 3, 16, 16))
        for batch, expected in zip(batches, right, strict=True):
            x.copy_(batch)
            double.reset()
            graph.replay()
            assert double.launches == 1 and double.synchronisations == 0
            assert torch.equal(out.cpu(), expected)


@pytest.mark.parametrize("late", [False, True])
def test_what_inference_makes_is_copied_and_written_like_anything(late: bool) -> None:
    with device_double(late=late):
        with torch.inference_mode():
            x, host = torch.ones(3).to("cuda") * 2, torch.empty(3)
            host.copy_(x.sub_(torch.zeros(3, device="cuda")))
        x.add_(torch.tensor([1.0, 1.0, 1.0], device="cuda"))
        assert host.tolist() == [2.0] * 3 and x.tolist() == [3.0] * 3


def test_nothing_is_computed_while_a_graph_is_captured() -> None:
    with device_double():
        graph, x = torch.cuda.CUDAGraph(), torch.zeros(3, device="cuda")
        with torch.cuda.graph(graph):
            assert torch.cuda.is_current_stream_capturing()
            x += 1
        assert x.tolist() == [0.0] * 3
        graph.replay()
        graph.replay()
        assert x.tolist() == [2.0] * 3 and not torch.cuda.is_current_stream_capturing()


@pytest.mark.parametrize("what", WAITS)
def test_nothing_waits_inside_a_capture(what: str) -> None:
    with device_double():
        x = torch.ones(4, device="cuda")
        mask = x > 0
        with (
            pytest.raises(RuntimeError, match="failed due to a previous error"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            WAITS[what](x, mask)
        assert float(x.sum()) == 4.0  # and outside all is well


def test_a_generator_of_the_host_draws_nothing_on_the_device() -> None:
    with device_double():
        own = torch.Generator(device="cuda").manual_seed(5)
        assert own.device.type == "cuda"
        drawn = torch.rand(4, device="cuda", generator=own)
        assert torch.equal(drawn.cpu(), torch.rand(4, generator=torch.Generator().manual_seed(5)))
        for draw in (lambda g: torch.rand(4, device="cuda", generator=g), lambda g: drawn.normal_(generator=g)):
            draw(own)
            with pytest.raises(RuntimeError, match="generator"):
                draw(torch.Generator())


def test_autocast_computes_products_in_bfloat16_and_losses_in_float32() -> None:
    with device_double():
        net = network().to("cuda")
        x = torch.ones(2, 3, 16, 16, device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            logits = net(x)
            loss = nn.functional.cross_entropy(logits, torch.zeros(2, dtype=torch.int64, device="cuda"))
        assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
        loss.backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.is_cuda for p in net.parameters())
        assert net(x).dtype == torch.float32


def test_a_network_is_copied_and_converted_where_it_is() -> None:
    net = network().eval()
    x = torch.ones(2, 3, 16, 16)
    right = copy.deepcopy(net).double()(x.double())
    with device_double():
        there = net.to("cuda")
        exact = copy.deepcopy(there).double()
        assert all(isinstance(p, nn.Parameter) and p.is_cuda for p in exact.parameters())
        assert torch.equal(exact(x.to("cuda").double()).cpu(), right)
        assert next(there.parameters()).dtype == torch.float32


def test_a_tensor_that_finds_no_room_is_out_of_memory() -> None:
    with device_double() as double:
        x = torch.ones(100, device="cuda")
        double.largest = 399
        for make in (lambda: x + 1, lambda: torch.ones(100).to("cuda"), lambda: torch.zeros(100, device="cuda")):
            with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory. Tried to allocate 400 bytes"):
                make()
        assert float((x[:50] * 2).sum()) == 100.0


def test_the_machine_is_what_it_was_afterwards() -> None:
    from pipeline.base.machine import resolve_device

    names = [name for name in vars(torch.cuda) if not name.startswith("__")]
    before = {name: getattr(torch.cuda, name) for name in names}
    with device_double(memory=1 << 30) as double:
        assert torch.cuda.is_available() and resolve_device("auto") == "cuda"
        double.free = 1 << 20
        assert torch.cuda.mem_get_info() == (1 << 20, 1 << 30)
        assert torch.cuda.get_device_properties(0).total_memory == 1 << 30
    assert all(getattr(torch.cuda, name) is value for name, value in before.items())
    assert torch.Generator is torch._C.Generator and threading.Thread.run.__module__ == "threading"
    if not torch.cuda.is_available():
        assert resolve_device("auto") == "cpu"
