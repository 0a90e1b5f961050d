"""Nothing that fits or chooses needs the test rows: with poison in their place it all works, and comes out the same."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import audit, baseline, extract, open_cache, search, train
from pipeline.base.errors import DataError

Quick = dict[str, Any]


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory, quick: Quick) -> SimpleNamespace:
    """A cache, and a copy whose test rows are poison; the images of the test rows are gone."""
    root = tmp_path_factory.mktemp("sealed")
    mine = Path(shutil.copytree(photos, root / "mine"))
    sound = extract(mine, workspace=root, dtype="float32", **quick).cache
    poisoned = Path(shutil.copy(sound, root / "poisoned.h5"))
    cache = open_cache(poisoned)
    for item in cache.split("test").ids:
        (mine / os.fsdecode(item)).unlink()
    with poisoned.open("r+b") as file:
        for row in cache.rows("test").tolist():
            file.seek(cache._structure.offset("/features") + row * cache.dim * 4)
            file.write(np.full(cache.dim, 1e30, "<f4").tobytes())
    # A block that holds val rows, too, is verified whole, so that its checksum has to be that of the poison.
    size = cache.block_rows
    sums = [zlib.crc32(np.asarray(cache.features[b * size : (b + 1) * size]).tobytes()) for b in range(len(cache.done))]
    with poisoned.open("r+b") as file:
        file.seek(cache._structure.offset("/blocks/crc32"))
        file.write(np.array(sums, "<u4").tobytes())
    return SimpleNamespace(root=root, sound=sound, poisoned=poisoned)


WORK: dict[str, tuple[Callable[..., Any], Quick]] = {
    "train": (train, {}),
    "train adamw": (train, {"solver": "adamw", "epochs": 2}),
    "search": (search, {"evaluate": False, "Cs": (1e-3, 1e-2, 0.1)}),
    "search by folds": (search, {"evaluate": False, "Cs": (1e-3, 1e-2), "cv": 3}),
    "search mlp": (search, {"evaluate": False, "space": "mlp", "trials": 2, "epochs": 2}),
    "few-shot": (search, {"evaluate": False, "Cs": (1e-3, 1e-2), "shots": (1, 3), "draws": 2}),
    "learning curve": (search, {"Cs": (1e-3, 1e-2), "shots": (1, 2, 3, 5, "all"), "draws": 2}),
    "baselines": (baseline, {"names": ("majority", "centroid", "knn10", "ridge")}),
    "audit of labels": (audit, {"labels": True}),
    "baselines with floors": (baseline, {"names": ("majority",), "floors": True}),
}


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("name", WORK)
def test_it_works_without_test_rows_and_the_same(made: SimpleNamespace, tmp_path: Path, name: str) -> None:
    work, options = WORK[name]
    kept = []
    for cache in (made.sound, made.poisoned):
        result = work(cache, workspace=tmp_path, **options).to_json()
        result.pop("cache", None)
        folder = Path(result.pop("run", tmp_path))
        head = folder / "head.safetensors"
        results = [{k: v for k, v in r.items() if k != "seconds"} for r in result.pop("results", ())]
        result.pop("seconds", None)
        kept.append((result, results, head.read_bytes() if head.exists() else None))
    assert kept[0] == kept[1]
    assert not (tmp_path / "tested.jsonl").exists()


def test_the_poison_and_the_guard_are_there(made: SimpleNamespace, tmp_path: Path, guarded: None) -> None:
    assert float(open_cache(made.poisoned).features.max()) == pytest.approx(1e30)
    for work, options in (
        (search, {"Cs": (1e-2,)}),
        (baseline, {"test": True}),
        (audit, {"labels": True, "test": True}),
    ):
        with pytest.raises(AssertionError, match="asked for test rows"):
            work(made.sound, workspace=tmp_path, **options)


def test_with_test_the_floors_need_the_test_images_before_anything_is_fitted(
    made: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="the images must be where the cache found them"):
        baseline(made.sound, names=("majority",), floors=True, test=True, workspace=tmp_path)
    assert not list((tmp_path / "runs").glob("*-*"))
