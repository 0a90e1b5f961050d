"""Extraction on a GPU: the same bits again, also when it is killed, and a smaller batch where memory runs out."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import extract
from pipeline.bench.images import make_small
from pipeline.bench.trunk import random_trunk
from pipeline.store import open_cache
from pipeline.trunk.engines.fold import FoldedTrunk
from pipeline.trunk.frozen import FrozenTrunk
from pipeline.trunk.identity import TrunkSpec
from tests.conftest import SMALL
from tests.gpu.children import child
from tests.gpu.conftest import on_both
from tests.networks import images

ROWS = 240
TRUNKS = {"cpu": {"trunk": SMALL, "image_size": 32}, "cuda": {"trunk": "resnet50", "image_size": 64}}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    make_small(folder, ROWS)
    for path in folder.rglob("*.*"):
        os.utime(path, ns=(10**18, 10**18))  # long ago: of a new file a cache does not keep the time
    return folder


def asked(device: str, precision: str, folder: Path) -> dict[str, Any]:
    options = {**TRUNKS[device], "weights": "random:0", "engine": "torch", "device": device, "precision": precision}
    options |= {"workspace": folder, "out": folder / "it.h5", "batch_size": 4, "block_rows": 8}
    return {**options, "force_precision": device == "cpu" and precision != "float32"}


@pytest.mark.parametrize(("device", "precision"), on_both(["float32", "bfloat16"], ["float32", "tf32", "bfloat16"]))
def test_two_extractions_give_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, precision: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    made = []
    for name, workers in (("a", 1), ("b", 3)):
        (folder := tmp_path / name).mkdir()
        options = {**asked(device, precision, folder), "batch_size": 32, "block_rows": 64}
        made.append(extract(source, workers=workers, **options).cache)
    assert made[0].read_bytes() == made[1].read_bytes()
    cache = open_cache(made[0], verify=True)
    assert cache.provenance["precision"] == precision and np.isfinite(cache.features[:]).all()


@pytest.mark.parametrize(("device", "kills"), on_both([2], [30]))
def test_killed_and_resumed_extractions_give_the_bytes_of_one_that_nobody_kills(
    source: Path, tmp_path: Path, device: str, kills: int
) -> None:
    moments, within = random.Random(0), 0
    (folder := tmp_path / "whole").mkdir()
    assert child("extract", tmp_path / "whole.log", source, asked(device, "float32", folder)) == ROWS
    whole = (folder / "it.h5").read_bytes()
    for number in range(kills):
        (folder := tmp_path / f"{number:05d}").mkdir()  # a name as long as the other: a cache keeps ways from itself
        options, log = asked(device, "float32", folder), tmp_path / f"{number}.log"
        if child("extract", log, source, options, kill_at=moments.randrange(1, ROWS)) is None:
            within += not (folder / "it.h5").exists()
            child("extract", log, source, options)
        assert (folder / "it.h5").read_bytes() == whole
    assert within >= kills / 3


@pytest.mark.parametrize(("device", "precision"), on_both(["float32"], ["float32"]))
def test_a_finished_cache_of_the_cpu_is_served_as_it_is_and_new_images_are_not_mixed_in(
    source: Path, tmp_path: Path, device: str, precision: str
) -> None:
    mine = Path(shutil.copytree(source, tmp_path / "mine"))
    options = {"trunk": SMALL, "image_size": 32, "weights": "random:0", "precision": precision, "workspace": tmp_path}
    made = extract(mine, device="cpu", **options)
    served = extract(mine, device="auto", **options)
    assert served.cache == made.cache and served.new == 0
    make_small(mine, 3, first=ROWS)
    grown = extract(mine, device="auto", **options)
    assert (grown.cache == made.cache, grown.new) == ((True, 3) if device == "cpu" else (False, ROWS + 3))


@contextmanager
def little_memory(device: str, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A card that is filled but for 500 MB; on the CPU, a network that more than 16 images do not fit in."""
    if device == "cpu":
        forward = FoldedTrunk.forward

        def limited(self: FoldedTrunk, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 16:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(self, x)

        with patch.context() as context:
            context.setattr(FoldedTrunk, "forward", limited)
            yield
        return
    torch.cuda.empty_cache()
    filler = torch.empty(torch.cuda.mem_get_info(device)[0] - 500_000_000, dtype=torch.uint8, device=device)
    yield
    del filler
    torch.cuda.empty_cache()


# One of 224 px has 3.2 MB of maps after the first convolution alone, so that 256 of them do not fit in 500 MB.
@pytest.mark.parametrize(("device", "size"), on_both([32], [224]))
def test_where_a_batch_does_not_fit_it_is_halved_until_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, size: int
) -> None:
    info, _, _ = random_trunk(SMALL if device == "cpu" else "resnet18", size, tmp_path)
    spec = TrunkSpec(info, info.layer("last"), "torch", "float32", device)
    n = 32 if device == "cpu" else 256
    pixels = images(n, size, seed=0)
    expected = FrozenTrunk(spec, batch=8, work_dir=tmp_path).features(pixels)
    with little_memory(device, monkeypatch):
        trunk = FrozenTrunk(spec, batch=n, work_dir=tmp_path)
        found = trunk.features(pixels)
    assert 1 <= trunk.engine.batch < n
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    trunk.assert_untouched()
