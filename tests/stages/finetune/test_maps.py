"""The maps before the last stage, made once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import finetune, open_cache
from pipeline.base.errors import CacheError, ConfigError
from pipeline.stages.finetune.maps import PrefixMaps

Quick = dict[str, Any]


def test_training_by_maps_is_training_through_the_trunk(
    workshop: SimpleNamespace, root: Path, monkeypatch: pytest.MonkeyPatch, trace_of: Any, fast: Quick
) -> None:
    """The maps are computed once, rounded to float16, and give what the whole trunk gives to their tolerance."""
    through = finetune(workshop.head.run, train="layer4", prefix=False, workspace=root, **fast)
    by_maps = finetune(workshop.head.run, train="layer4", workspace=root, **fast)
    for a, b in zip(trace_of(through.run), trace_of(by_maps.run), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=5e-3, abs=1e-4)
    monkeypatch.setattr(PrefixMaps, "_fill", lambda *a, **k: pytest.fail("the maps were there"))
    again = finetune(workshop.head.run, train="layer4", workspace=root, **fast)
    assert (again.run / "model.safetensors").read_bytes() == (by_maps.run / "model.safetensors").read_bytes()
    (path,) = (root / "maps").glob("*.h5")
    maps = open_cache(path, verify=True)
    assert len(maps) == len(open_cache(workshop.cache.cache).rows("train")) + by_maps.verdict["val"]["n"]
    assert maps.provenance["trunk"] == {"name": "resnet18", "layer": "layer3", "pooling": "none", "shape": [256, 2, 2]}


def test_damaged_maps_are_refused(workshop: SimpleNamespace, root: Path, fast: Quick) -> None:
    finetune(workshop.head.run, train="layer4", workspace=root, **fast)
    (path,) = (root / "maps").glob("*.h5")
    with path.open("r+b") as file:
        file.seek(open_cache(path)._structure.offset("/features") + 999)
        file.write(b"\x55")
    with pytest.raises(CacheError, match="is damaged"):
        finetune(workshop.head.run, train="layer4", workspace=root, **fast)


def test_maps_of_more_than_ten_gigabytes_need_a_yes(
    workshop: SimpleNamespace, root: Path, monkeypatch: pytest.MonkeyPatch, fast: Quick
) -> None:
    monkeypatch.setattr("pipeline.stages.finetune.maps.CONFIRMED_BYTES", 1000)
    with pytest.raises(ConfigError, match=r"take 102.0 KiB in .*maps: give yes=True.*or prefix=False"):
        finetune(workshop.head.run, train="layer4", workspace=root, **fast)
    assert not list(root.glob("maps/*.h5*"))
    finetune(workshop.head.run, train="layer4", yes=True, workspace=root, **fast)
    assert list(root.glob("maps/*.h5"))
