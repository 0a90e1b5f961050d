"""The frozen trunk at work: checked, untouched, and patient with small memories."""

from __future__ import annotations

import itertools
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.base.errors import ConfigError, EngineError, PipelineError, WeightsError
from pipeline.base.workspace import Workspace
from pipeline.trunk import frozen, identity
from pipeline.trunk.engines.torch import TorchEngine
from pipeline.trunk.frozen import FrozenTrunk, default_batch
from pipeline.trunk.identity import Changes, TrunkSpec
from pipeline.trunk.lookup import find_weights
from tests.conftest import SMALL


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> TrunkSpec:
    root = tmp_path_factory.mktemp("root")
    info = find_weights("random:0", SMALL, Workspace(root))
    return TrunkSpec(identity.with_changes(info, Changes(image_size=32)), info.layer("last"), "torch", "float32", "cpu")


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)


@pytest.mark.parametrize(
    ("device", "size", "batch"),
    [
        *[("cpu", 518, 16), ("cpu", 224, 16), ("cpu", 159, 16), ("cpu", 158, 32), ("cpu", 112, 64), ("cpu", 32, 128)],
        *[("cuda:1", 224, 128), ("cuda", 96, 512), ("cuda", 16, 1024), ("mps", 64, 512)],
    ],
)
def test_small_images_go_through_in_larger_batches(device: str, size: int, batch: int) -> None:
    """No more pixels than in a batch of 224 px, and never more than a block of rows."""
    assert default_batch(device, size) == batch


def test_out_of_memory_halves_the_batch_and_goes_on_with_the_same_images(
    spec: TrunkSpec, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows agree with those of the batch that fits at once, to 1e-5."""
    expected = FrozenTrunk(spec, batch=4, work_dir=tmp_path).features(pixels)
    forward, seen = TorchEngine.__call__, []

    def small_memory(self: TorchEngine, batch: np.ndarray) -> np.ndarray:
        seen.append(self.batch)
        if self.batch > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch)

    trunk = FrozenTrunk(spec, batch=16, work_dir=tmp_path)
    monkeypatch.setattr(TorchEngine, "__call__", small_memory)
    got = trunk.features(pixels)
    assert seen == [16, 8, 4, 4, 4, 4, 4]
    assert trunk.engine.batch == 4
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_what_ran_out_of_memory_keeps_none_of_its_maps(
    spec: TrunkSpec, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the engine stay: the smaller one needs the room."""
    kept: list[weakref.ref[torch.Tensor]] = []
    alive: list[list[Any]] = []
    relu, opened = torch.nn.ReLU.forward, frozen.open_engine

    def full(self: torch.nn.ReLU, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 4:
            maps = x.clone()
            kept.append(weakref.ref(maps))
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        return relu(self, x)

    def noted(*args: Any, **options: Any) -> Any:
        alive.append([before(), *(ref() for ref in kept)])
        return opened(*args, **options)

    trunk = FrozenTrunk(spec, batch=8, work_dir=tmp_path)
    expected, before = trunk.features(pixels), weakref.ref(trunk.engine)
    monkeypatch.setattr(torch.nn.ReLU, "forward", full)
    monkeypatch.setattr(frozen, "open_engine", noted)
    got = trunk.features(pixels)
    assert (len(kept), alive, trunk.engine.batch, trunk.opened) == (1, [[None, None]], 4, 2)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_an_engine_that_cannot_be_opened_for_want_of_memory_is_tried_smaller(
    spec: TrunkSpec, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, asked = frozen.open_engine, []

    def small(*args: Any, batch: int, **options: Any) -> Any:
        asked.append(batch)
        if batch > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return opened(*args, batch=batch, **options)

    monkeypatch.setattr(frozen, "open_engine", small)
    room = 4
    assert FrozenTrunk(spec, batch=16, work_dir=tmp_path).engine.batch == 4 and asked == [16, 8, 4]
    room = 0
    with pytest.raises(WeightsError, match="one image of 32 px: give a smaller image_size, or device='cpu'") as error:
        FrozenTrunk(spec, batch=2, work_dir=tmp_path)
    assert "\n" not in str(error.value)


def test_one_image_that_does_not_fit_is_a_clear_error(
    spec: TrunkSpec, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = FrozenTrunk(spec, batch=2, work_dir=tmp_path)

    def no_memory(self: TorchEngine, batch: np.ndarray) -> np.ndarray:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TorchEngine, "__call__", no_memory)
    with pytest.raises(WeightsError, match="one image of 32 px.*image_size"):
        trunk.features(pixels)


def test_a_failing_engine_is_an_error_and_not_a_fallback(
    spec: TrunkSpec, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = FrozenTrunk(spec, batch=4, work_dir=tmp_path)
    forward = TorchEngine.__call__
    monkeypatch.setattr(TorchEngine, "__call__", lambda self, batch: forward(self, batch) * 1.001)
    with pytest.raises(PipelineError, match="engine torch.*differs.*e-05 is allowed"):
        trunk.features(pixels)


def test_the_trunk_is_untouched_even_if_somebody_sets_it_to_train(
    spec: TrunkSpec, pixels: np.ndarray, tmp_path: Path
) -> None:
    """Parameters and buffers are bit-identical; a change is noticed."""
    trunk = FrozenTrunk(spec, batch=4, work_dir=tmp_path)
    trunk.trunk.train()
    with torch.inference_mode():
        trunk.trunk(torch.zeros(2, 3, 32, 32))
    trunk.features(pixels)
    trunk.assert_untouched()
    with torch.no_grad():
        next(b for b in trunk.trunk.buffers() if b.is_floating_point()).add_(1e-6)
    with pytest.raises(WeightsError, match="changed while it ran"):
        trunk.assert_untouched()


def test_a_change_of_what_the_engine_runs_is_noticed(spec: TrunkSpec, pixels: np.ndarray, tmp_path: Path) -> None:
    """That is a copy: the trunk's own numbers say nothing of it."""
    trunk = FrozenTrunk(spec, batch=4, work_dir=tmp_path)
    trunk.features(pixels)
    trunk.assert_untouched()
    assert trunk.engine.net is not None
    bias = next(p for p in trunk.engine.net.parameters() if p.ndim == 1)
    kept = bias.clone()
    bias[0] += 1e-3
    with pytest.raises(EngineError, match="changed while it ran"):
        trunk.assert_untouched()
    bias.copy_(kept)
    trunk.assert_untouched()
    trunk.open(2)
    trunk.assert_untouched()


@pytest.mark.parametrize(("after", "found_in"), [(1, 2), (3, 4), (4, 8), (5, None)])
def test_an_engine_that_goes_wrong_later_is_found(
    spec: TrunkSpec,
    pixels: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
    found_in: int | None,
) -> None:
    """Batches 1, 2, 4, 8, ... are compared; what comes after the last of them is not."""
    forward, batches = TorchEngine.__call__, itertools.count(1)

    def worn(self: TorchEngine, batch: np.ndarray) -> np.ndarray:
        features = forward(self, batch)
        return features if next(batches) <= after else features * 1.001

    monkeypatch.setattr(TorchEngine, "__call__", worn)
    trunk = FrozenTrunk(spec, batch=4, work_dir=tmp_path)
    images = np.concatenate([pixels, pixels])[: 4 * (8 if after < 5 else 7)]
    if found_in is None:
        assert len(trunk.features(images)) == 28 and next(batches) == 8
        return
    with pytest.raises(EngineError, match=f"engine torch.*differs.*e-05 is allowed.*batch {found_in}.*before"):
        trunk.features(images)
    assert next(batches) == found_in + 1


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["last", "previous"])
@pytest.mark.parametrize("trunk", [pytest.param("inception_v3", marks=pytest.mark.slow), "timm:maxvit_pico_rw_256"])
def test_a_size_that_only_the_forward_pass_refuses_is_a_clear_error(tmp_path: Path, trunk: str, layer: str) -> None:
    """The network can be made, and fails when it runs: before any image is read."""
    size = 32
    if trunk.startswith("timm:"):
        pytest.importorskip("timm", reason="timm is not installed")
        size = 100
    info = identity.with_changes(find_weights("random:0", trunk, Workspace(tmp_path)), Changes(image_size=size))
    spec = TrunkSpec(info, info.layer(layer), "torch", "float32", "cpu")
    with pytest.raises(ConfigError, match=f"{trunk} cannot take images of {size} px .*: give another image_size") as e:
        FrozenTrunk(spec, batch=1, work_dir=tmp_path)
    assert "\n" not in str(e.value)


def test_two_trunks_of_one_spec_give_the_same_bits(spec: TrunkSpec, pixels: np.ndarray, tmp_path: Path) -> None:
    rows: list[Any] = [FrozenTrunk(spec, batch=8, work_dir=tmp_path).features(pixels) for _ in range(2)]
    np.testing.assert_array_equal(rows[0], rows[1])
