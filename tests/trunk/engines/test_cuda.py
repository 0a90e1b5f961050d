"""A batch's way over a GPU, on the device double: the CPU's numbers, however late the streams are, and who waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.base.errors import EngineError, WeightsError
from pipeline.base.workspace import Workspace
from pipeline.trunk import frozen, identity
from pipeline.trunk.engines.cuda import GraphRunner
from pipeline.trunk.engines.fold import FoldedTrunk
from pipeline.trunk.engines.torch import TorchEngine
from pipeline.trunk.families.family import anatomy_of
from pipeline.trunk.frozen import FrozenTrunk
from pipeline.trunk.identity import Changes, TrunkSpec, WeightsInfo
from pipeline.trunk.lookup import find_weights
from pipeline.trunk.surgery import trunk_at
from pipeline.trunk.weights import load_model
from tests.conftest import SMALL
from tests.device_double import GIB, device_double

SIZE, BATCH = 32, 4
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> WeightsInfo:
    found = find_weights("random:0", SMALL, Workspace(tmp_path_factory.mktemp("root")))
    return identity.with_changes(found, Changes(image_size=SIZE))


@pytest.fixture(scope="module")
def trunk(info: WeightsInfo) -> tuple[nn.Module, int]:
    model = load_model(info)
    return trunk_at(model, anatomy_of(SMALL, model), info.layer("last"), SIZE)


@pytest.fixture(scope="module")
def batches() -> list[Pixels]:
    return list(np.random.default_rng(0).integers(0, 256, (7, BATCH, 3, SIZE, SIZE), dtype=np.uint8))


def engine_of(trunk: tuple[nn.Module, int], info: WeightsInfo, device: str, precision: str = "float32") -> TorchEngine:
    net = FoldedTrunk(trunk[0], info, trunk[1])
    return TorchEngine(net, image_size=SIZE, device=device, precision=precision, batch=BATCH)


def in_flight(engine: TorchEngine, batches: list[Pixels], slots: int = 3) -> list[NDArray[np.float32]]:
    """The features of batches, of which two are under way at any time."""
    ring, found = [engine.slot() for _ in range(slots)], []
    for number, pixels in enumerate(batches):
        slot = ring[number % slots]
        slot.places[...] = pixels.transpose(0, 2, 3, 1)
        engine.start(slot)
        if number:
            found.append(engine.finish(ring[(number - 1) % slots]).copy())
    return [*found, engine.finish(ring[(len(batches) - 1) % slots]).copy()]


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_batches_under_way_together_give_the_numbers_that_each_gives_alone(
    trunk: tuple[nn.Module, int], info: WeightsInfo, batches: list[Pixels], precision: str
) -> None:
    plain = engine_of(trunk, info, "cpu", precision)
    expected = [plain(pixels) for pixels in batches]
    for seed in range(3):
        with device_double(late=True, seed=seed):
            engine = engine_of(trunk, info, "cuda", precision)
            for found in (in_flight(engine, batches), [engine(pixels) for pixels in batches]):
                assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


def test_a_batch_is_four_launches_and_one_wait(
    trunk: tuple[nn.Module, int], info: WeightsInfo, batches: list[Pixels]
) -> None:
    """There, into the graph's own place, the graph, and back; the host waits for the last of them."""
    with device_double(late=True) as double:
        engine = engine_of(trunk, info, "cuda")
        slots = [engine.slot() for _ in range(2)]
        double.reset()
        for slot in slots:
            engine.start(slot)
        assert (double.launches, double.synchronisations) == (8, 0)
        for slot in slots:
            engine.finish(slot)
        assert (double.launches, double.synchronisations) == (8, 2)


@pytest.mark.parametrize("mistake", ["filled before its end", "read before its end"])
def test_a_slot_that_is_used_too_early_is_found(
    trunk: tuple[nn.Module, int], info: WeightsInfo, batches: list[Pixels], mistake: str
) -> None:
    expected = engine_of(trunk, info, "cpu")(batches[0])
    with device_double(late=True):
        engine = engine_of(trunk, info, "cuda")
        slot = engine.slot()
        slot.places[...] = batches[0].transpose(0, 2, 3, 1)
        engine.start(slot)
        if mistake == "filled before its end":
            slot.places[...] = 0
            found = engine.finish(slot)
        else:
            found = slot.found.copy()
            engine.finish(slot)
        assert not np.array_equal(found, expected)


class Asking(nn.Module):
    """A network whose way depends on a number that it asks the GPU for."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean(dim=(2, 3))
        found: torch.Tensor = self.layer(means if float(means.sum()) > 0 else 2 * means)
        return found


def test_a_network_that_cannot_be_recorded_is_launched_operation_by_operation(
    info: WeightsInfo, batches: list[Pixels]
) -> None:
    torch.manual_seed(0)
    trunk = Asking().eval(), 2
    expected = [engine_of(trunk, info, "cpu")(pixels) for pixels in batches]
    with device_double(late=True):
        engine = engine_of(trunk, info, "cuda")
        assert isinstance(engine._runner, GraphRunner) and not engine._runner.recorded
        assert torch.cuda.current_stream() is torch.cuda.default_stream()
        assert torch.cuda.get_sync_debug_mode() == "default"
        found = in_flight(engine, batches)
        assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


def test_whatever_else_goes_wrong_while_it_is_recorded_is_an_error(
    trunk: tuple[nn.Module, int], info: WeightsInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = FoldedTrunk.forward, []

    def failing(self: FoldedTrunk, x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:  # after two to warm up
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return forward(self, x)

    monkeypatch.setattr(FoldedTrunk, "forward", failing)
    with device_double(), pytest.raises(RuntimeError, match="illegal memory access"):
        engine_of(trunk, info, "cuda")


def test_memory_that_runs_out_while_it_is_recorded_is_told_as_that(
    spec: TrunkSpec, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a recording that failed raises an error of its own, which says nothing of memory."""
    forward, calls = FoldedTrunk.forward, []

    def full(self: FoldedTrunk, x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        if len(x) > 2 and calls.count(len(x)) == 3:  # after two to warm up
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, x)

    @contextmanager
    def failing(*args: Any, **options: Any) -> Iterator[None]:
        try:
            with graph(*args, **options):
                yield
        except torch.OutOfMemoryError:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")  # noqa: B904

    monkeypatch.setattr(FoldedTrunk, "forward", full)
    with device_double():
        graph = torch.cuda.graph
        monkeypatch.setattr(torch.cuda, "graph", failing)
        engine = FrozenTrunk(spec, batch=BATCH, work_dir=tmp_path).engine
        assert isinstance(engine, TorchEngine) and engine._runner is not None
        assert engine.batch == 2 and engine._runner.recorded


@pytest.fixture
def spec(info: WeightsInfo) -> TrunkSpec:
    return TrunkSpec(info, info.layer("last"), "torch", "float32", "cuda")


def test_a_bit_that_flips_in_the_network_on_the_gpu_is_noticed(
    spec: TrunkSpec, batches: list[Pixels], tmp_path: Any
) -> None:
    """What runs is a copy: the trunk's own numbers say nothing of it."""
    with device_double():
        frozen_trunk = FrozenTrunk(spec, batch=BATCH, work_dir=tmp_path)
        frozen_trunk.features(batches[0])
        frozen_trunk.assert_untouched()
        assert frozen_trunk.engine.net is not None
        weight = next(frozen_trunk.engine.net.parameters())
        assert weight.is_cuda
        with torch.no_grad():
            weight[:1].mul_(1 + 2.0**-20)
        with pytest.raises(EngineError, match="changed while it ran"):
            frozen_trunk.assert_untouched()


def test_a_gpu_without_room_for_one_image_is_told_with_what_is_free(
    spec: TrunkSpec, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(frozen, "open_engine", full)
    words = (
        r"out of memory with one image of 32 px \(1.5 GiB of the GPU's memory are free\): give a smaller "
        "image_size, or device='cpu'"
    )
    with device_double(memory=80 * GIB) as double:
        double.free = int(1.5 * GIB)
        with pytest.raises(WeightsError, match=words):
            FrozenTrunk(spec, batch=BATCH, work_dir=tmp_path)
