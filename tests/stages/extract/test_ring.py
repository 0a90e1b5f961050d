"""The ring of slots: every image its own features, in order, whatever comes late, fails or does not fit."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline import extract, open_cache
from pipeline.base.errors import Interrupted, WeightsError
from pipeline.base.workspace import Workspace
from pipeline.images import Files, Geometry, Loader
from pipeline.stages.extract import ring as module
from pipeline.stages.extract.results import Shares
from pipeline.stages.extract.ring import Batch, Job, Ring
from pipeline.trunk import identity
from pipeline.trunk.engines.base import Slot
from pipeline.trunk.engines.torch import TorchEngine
from pipeline.trunk.frozen import FrozenTrunk
from pipeline.trunk.identity import Changes, TrunkSpec
from pipeline.trunk.lookup import find_weights
from tests.conftest import SMALL, Listener
from tests.device_double import device_double

Quick = dict[str, Any]
SIZE, BATCH = 32, 4
GEOMETRY = Geometry(36, SIZE)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> TrunkSpec:
    info = find_weights("random:0", SMALL, Workspace(tmp_path_factory.mktemp("root")))
    info = identity.with_changes(info, Changes(image_size=SIZE))
    return TrunkSpec(info, info.layer("last"), "torch", "float32", "cpu")


@pytest.fixture(scope="module")
def source(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs, of which four cannot be read."""
    mine = Path(shutil.copytree(photos, tmp_path_factory.mktemp("source") / "mine"))
    for name in ("ant/02.png", "ant/03.png", "bee/19.png", "cat/00.png"):
        (mine / name).write_bytes(b"no image")
        os.utime(mine / name, ns=(10**18, 10**18))  # long ago: of a new file a cache does not keep the time
    return mine


@pytest.fixture(scope="module")
def blocks(source: Path) -> list[list[Job]]:
    """The images in blocks of 7, 1, 0, 10, ...: none is a multiple of a batch."""
    ids = sorted(os.fsencode(path) for path in source.rglob("*.png"))
    sizes, rows = itertools.cycle((7, 1, 0, 10)), list(enumerate(ids))
    found = []
    while rows:
        size = next(sizes)
        found.append(rows[:size])
        rows = rows[size:]
    return found


def through(trunk: FrozenTrunk, blocks: Sequence[Sequence[Job]], workers: int = 3) -> list[Batch]:
    """All batches."""
    with Loader(Files(""), GEOMETRY, workers=workers) as loader:
        return list(Ring(trunk, loader, GEOMETRY, Shares()).run(blocks))


@pytest.fixture(scope="module")
def expected(spec: TrunkSpec, blocks: list[list[Job]], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """The features of each image by itself, by the engine called directly; images that cannot be read have none."""
    trunk = FrozenTrunk(spec, batch=BATCH, work_dir=tmp_path_factory.mktemp("engines"))
    found = {}
    with Loader(Files(""), GEOMETRY, workers=1) as loader:
        for item in loader.load(job for block in blocks for job in block):
            if item.pixels is not None:
                found[item.index] = trunk.engine(item.pixels[None])[0]
    assert len(found) == 56
    return found


def rows_of(batches: Sequence[Batch]) -> dict[int, NDArray[np.float32]]:
    """The features by the images' numbers."""
    found: dict[int, NDArray[np.float32]] = {}
    for batch in batches:
        assert batch.features is not None and len(batch.features) == len(batch.good)
        found |= {batch.items[at].index: row for at, row in zip(batch.good, batch.features, strict=True)}
    return found


def assert_same(found: dict[int, NDArray[np.float32]], expected: dict[int, NDArray[np.float32]]) -> None:
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[row], expected[row]) for row in expected)


def assert_nearly_same(batches: Sequence[Batch], expected: dict[int, NDArray[np.float32]]) -> None:
    """All images in order, their features those of another batch size but for rounding."""
    found = rows_of(batches)
    assert found.keys() == expected.keys()
    assert [item.index for batch in batches for item in batch.items] == list(range(60))
    reach = max(float(np.abs(row).max()) for row in expected.values())
    assert max(float(np.abs(found[row] - expected[row]).max()) for row in expected) <= 1e-5 * reach


@pytest.fixture(autouse=True)
def few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each slot is used again and again."""
    monkeypatch.setattr(module, "look_ahead", lambda geometry, batch: 2 * batch)


def test_every_image_has_its_own_features_in_batches_that_cross_no_block(
    spec: TrunkSpec, blocks: list[list[Job]], expected: dict[int, Any], tmp_path: Path
) -> None:
    batches = through(FrozenTrunk(spec, batch=BATCH, work_dir=tmp_path), blocks)
    assert_same(rows_of(batches), expected)
    cut = [block[at : at + BATCH] for block in blocks for at in range(0, len(block), BATCH)]
    assert [[item.index for item in batch.items] for batch in batches] == [[row for row, _ in part] for part in cut]
    assert len({id(batch.slot) for batch in batches}) == 3


def test_on_a_gpu_that_is_late_it_is_the_same(
    spec: TrunkSpec, blocks: list[list[Job]], expected: dict[int, Any], tmp_path: Path
) -> None:
    on_gpu = replace(spec, device="cuda")
    for seed in range(4):
        with device_double(late=True, seed=seed) as double:
            trunk = FrozenTrunk(on_gpu, batch=BATCH, work_dir=tmp_path)
            double.reset()
            batches = through(trunk, blocks)
            waits, launches = double.synchronisations, double.launches
        assert_same(rows_of(batches), expected)
        computed = sum(bool(batch.good) for batch in batches)
        slots = len({id(batch.slot) for batch in batches})  # (room that is taken on the device counts as a launch)
        assert (waits, launches - slots) == (computed, 4 * computed)


def test_two_batches_are_at_work_on_a_gpu_and_a_slot_is_filled_again_when_its_features_are_out(
    spec: TrunkSpec, blocks: list[list[Job]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = replace(spec, device="cuda")
    at_work: list[int] = []
    most: list[int] = []
    start, finish, begin = FrozenTrunk.start, FrozenTrunk.finish, Loader.begin

    def started(self: FrozenTrunk, slot: Slot) -> bool:
        at_work.append(id(slot.places))
        most.append(len(at_work))
        return start(self, slot)

    def finished(self: FrozenTrunk, slot: Slot, at: list[int]) -> Any:
        at_work.remove(id(slot.places))
        return finish(self, slot, at)

    def begun(self: Loader, index: int, item: bytes, place: Any) -> Any:
        assert not any(np.shares_memory(place, slot.places) for slot in under_way())
        return begin(self, index, item, place)

    slots: dict[int, Slot] = {}
    made = FrozenTrunk.slot

    def noted(self: FrozenTrunk) -> Slot:
        slot = made(self)
        slots[id(slot.places)] = slot
        return slot

    def under_way() -> list[Slot]:
        return [slots[key] for key in at_work]

    with device_double(late=True):
        trunk = FrozenTrunk(on_gpu, batch=BATCH, work_dir=tmp_path)
        for name, own in (("start", started), ("finish", finished), ("slot", noted)):
            monkeypatch.setattr(FrozenTrunk, name, own)
        monkeypatch.setattr(Loader, "begin", begun)
        through(trunk, blocks)
    assert max(most) == 2


@pytest.mark.parametrize("mistake", ["features that are not waited for", "a slot that is free too early"])
def test_a_ring_that_is_wrong_is_found_by_these_tests(
    spec: TrunkSpec,
    blocks: list[list[Job]],
    expected: dict[int, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mistake: str,
) -> None:
    on_gpu = replace(spec, device="cuda")
    with device_double(late=True):
        trunk = FrozenTrunk(on_gpu, batch=BATCH, work_dir=tmp_path)
        trunk._batches = 4096  # (its own check would find it, too, in batch 1, 2, 4 ...)
        if mistake.startswith("features"):
            monkeypatch.setattr(TorchEngine, "finish", lambda self, slot: slot.found)
        else:
            compute = Ring._compute

            def hasty(self: Ring, batch: Batch) -> None:
                compute(self, batch)
                self._free.append(batch.slot)

            monkeypatch.setattr(Ring, "_compute", hasty)
        found = rows_of(through(trunk, blocks))
    assert any(not np.array_equal(found[row], expected[row]) for row in expected)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_batch_that_does_not_fit_is_halved_with_all_that_is_under_way(
    spec: TrunkSpec,
    blocks: list[list[Job]],
    expected: dict[int, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
) -> None:
    """Nothing is lost of what was loaded for the larger batch; of memory nothing is kept of its engine."""
    start, calls = TorchEngine.start, itertools.count(1)

    def small(self: TorchEngine, slot: Slot) -> None:
        if self.batch > 2 and next(calls) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        start(self, slot)

    monkeypatch.setattr(TorchEngine, "start", small)
    there = replace(spec, device=device)
    with device_double(late=True):
        trunk = FrozenTrunk(there, batch=BATCH, work_dir=tmp_path)
        batches = through(trunk, blocks)
    assert trunk.engine.batch == 2
    assert_nearly_same(batches, expected)


@pytest.mark.parametrize("fits", [1, 2, 3])
def test_where_there_is_no_room_for_more_slots_fewer_do_or_smaller_ones(
    spec: TrunkSpec,
    blocks: list[list[Job]],
    expected: dict[int, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fits: int,
) -> None:
    """Two are at work on a GPU, so that three at least are needed; of the engine's half there is room for all."""
    slot, made = TorchEngine.slot, itertools.count(1)

    def small(self: TorchEngine) -> Slot:
        if self.batch == BATCH and next(made) > 1 + fits:  # the engine has one of its own
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 18.00 MiB")
        return slot(self)

    monkeypatch.setattr(TorchEngine, "slot", small)
    monkeypatch.setattr(module, "look_ahead", lambda geometry, batch: 4 * batch)
    with device_double(late=True):
        trunk = FrozenTrunk(replace(spec, device="cuda"), batch=BATCH, work_dir=tmp_path)
        batches = through(trunk, blocks)
    assert trunk.engine.batch == (BATCH if fits == 3 else BATCH // 2)
    assert_nearly_same(batches, expected)


def test_not_even_one_image_fits(
    spec: TrunkSpec, blocks: list[list[Job]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: TorchEngine, slot: Slot) -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    trunk = FrozenTrunk(spec, batch=BATCH, work_dir=tmp_path)
    monkeypatch.setattr(TorchEngine, "start", full)
    with pytest.raises(WeightsError, match="out of memory with one image of 32 px"):
        through(trunk, blocks)


def test_what_was_not_begun_is_not_loaded_when_the_ring_is_left(
    spec: TrunkSpec, blocks: list[list[Job]], tmp_path: Path
) -> None:
    trunk, gate, begun = FrozenTrunk(spec, batch=BATCH, work_dir=tmp_path), threading.Event(), []

    class Slow(Files):
        def read(self, item: bytes) -> bytes:
            begun.append(item)
            if len(begun) > BATCH + 3:
                gate.wait(10)
            return super().read(item)

    with Loader(Slow(""), GEOMETRY, workers=1) as loader:
        batches = Ring(trunk, loader, GEOMETRY, Shares()).run(blocks)
        next(batches)
        batches.close()
        gate.set()
    assert len(begun) < 2 * BATCH + 3


# -- whole extractions ------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu() -> Iterator[Any]:
    with device_double(late=True) as double:
        yield double


def sha256(path: Path) -> str:
    return hashlib.sha256(np.ascontiguousarray(open_cache(path).features).tobytes()).hexdigest()


def test_an_extraction_on_a_gpu_is_that_of_the_cpu_and_goes_on_where_it_was_stopped(
    source: Path, tmp_path: Path, quick: Quick, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in each block in turn; the file is the same to the last bit."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    options = {**quick, "block_rows": 13, "max_failures": 0.5}
    plain = extract(source, workspace=tmp_path, out=tmp_path / "cpu.h5", device="cpu", **options)
    whole = extract(source, workspace=tmp_path, out=tmp_path / "a" / "it.h5", device="cuda", **options)
    assert (whole.new, whole.failed, whole.batch) == (56, 4, 8)
    assert open_cache(whole.cache).provenance["engine"]["device"] == "cuda"
    assert sha256(plain.cache) == sha256(whole.cache)
    with h5py.File(whole.cache) as file:
        assert file["/blocks/batch"][:].tolist() == [8] * 5
    start, kills, calls = TorchEngine.start, iter((1, 3, 2, 2)), [0]

    def stopping(self: TorchEngine, slot: Slot) -> None:
        calls[0] -= 1
        if calls[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        start(self, slot)

    monkeypatch.setattr(TorchEngine, "start", stopping)
    stops = 0
    for moment in kills:
        calls[0] = moment
        try:
            extract(source, workspace=tmp_path, out=tmp_path / "b" / "it.h5", device="cuda", **options)
        except Interrupted:
            stops += 1
    calls[0] = 0
    again = extract(source, workspace=tmp_path, out=tmp_path / "b" / "it.h5", device="cuda", **options)
    assert stops >= 3 and again.cache.read_bytes() == whole.cache.read_bytes()


def test_a_machine_without_room_for_one_image_says_so(
    photos: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: TorchEngine, slot: Slot) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(TorchEngine, "start", full)
    with pytest.raises(WeightsError, match="out of memory with one image of 32 px") as error:
        extract(photos, workspace=tmp_path, **quick)
    assert "\n" not in str(error.value)


def test_a_halved_batch_is_said_and_kept_block_by_block(
    photos: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    start, calls = TorchEngine.start, itertools.count(1)

    def small(self: TorchEngine, slot: Slot) -> None:
        if self.batch > 4 and next(calls) > 3:
            raise RuntimeError("FIND was unable to find an engine to execute this computation")
        start(self, slot)

    monkeypatch.setattr(TorchEngine, "start", small)
    made = extract(photos, workspace=tmp_path, block_rows=16, watch=listener, **quick)
    assert (made.new, made.batch) == (60, 4)
    assert listener.text.count("out of memory: 4 images at once from here on") == 1
    with h5py.File(made.cache) as file:
        assert file["/blocks/batch"][:].tolist() == [8, 4, 4, 4]
