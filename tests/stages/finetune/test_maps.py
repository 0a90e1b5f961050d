"""The maps before the last stage, made once."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline import finetune, open_cache
from pipeline.base.errors import CacheError, ConfigError
from pipeline.stages.finetune.maps import PrefixMaps
from tests.conftest import SMALL
from tests.stages.finetune.conftest import plain

Quick = dict[str, Any]


def before_layer4() -> tuple[str, list[int]]:
    """The name of the stage before layer4, and the shape of its map of an image of 32 x 32."""
    network, shapes = plain(3), []
    network.layer4.register_forward_pre_hook(lambda _, x: shapes.append(list(x[0].shape[1:])))
    network(torch.zeros(2, 3, 32, 32))
    return ("layer3" if SMALL == "resnet18" else "layer3.0"), shapes[0]


def test_training_by_maps_is_training_through_the_trunk(
    workshop: SimpleNamespace, root: Path, monkeypatch: pytest.MonkeyPatch, trace_of: Any, fast: Quick
) -> None:
    """The maps are computed once, rounded to float16, and give what the whole trunk gives to their tolerance."""
    through = finetune(workshop.head.run, train="last", prefix=False, workspace=root, **fast)
    by_maps = finetune(workshop.head.run, train="last", workspace=root, **fast)
    for a, b in zip(trace_of(through.run), trace_of(by_maps.run), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=5e-3, abs=1e-4)
    monkeypatch.setattr(PrefixMaps, "_fill", lambda *a, **k: pytest.fail("the maps were there"))
    again = finetune(workshop.head.run, train="last", workspace=root, **fast)
    assert (again.run / "model.safetensors").read_bytes() == (by_maps.run / "model.safetensors").read_bytes()
    (path,) = (root / "maps").glob("*.h5")
    maps = open_cache(path, verify=True)
    assert len(maps) == len(open_cache(workshop.cache.cache).rows("train")) + by_maps.verdict["val"]["n"]
    layer, shape = before_layer4()
    assert maps.provenance["trunk"] == {"name": SMALL, "layer": layer, "pooling": "none", "shape": shape}


def test_damaged_maps_are_refused(workshop: SimpleNamespace, root: Path, fast: Quick) -> None:
    finetune(workshop.head.run, train="last", workspace=root, **fast)
    (path,) = (root / "maps").glob("*.h5")
    with path.open("r+b") as file:
        file.seek(open_cache(path)._structure.offset("/features") + 999)
        file.write(b"\x55")
    with pytest.raises(CacheError, match="is damaged"):
        finetune(workshop.head.run, train="last", workspace=root, **fast)


def test_maps_of_more_than_ten_gigabytes_need_a_yes(
    workshop: SimpleNamespace, root: Path, monkeypatch: pytest.MonkeyPatch, fast: Quick
) -> None:
    monkeypatch.setattr("pipeline.stages.finetune.maps.CONFIRMED_BYTES", 1000)
    size = 51 * 2 * math.prod(before_layer4()[1])  # float16
    with pytest.raises(ConfigError, match=rf"take {size / 1024:.1f} KiB in .*maps: give yes=True.*or prefix=False"):
        finetune(workshop.head.run, train="last", workspace=root, **fast)
    assert not list(root.glob("maps/*.h5*"))
    finetune(workshop.head.run, train="last", yes=True, workspace=root, **fast)
    assert list(root.glob("maps/*.h5"))
