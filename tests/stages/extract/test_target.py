"""What an extraction's file is called."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.base.workspace import Workspace
from pipeline.stages.extract import target


def name_of(trunk: str, weights: str, desk: Workspace) -> str:
    info: Any = SimpleNamespace(trunk=trunk, name=weights, path=None, transform=SimpleNamespace(crop=224))
    listing: Any = SimpleNamespace(name="photos", images=SimpleNamespace(place="/photos"))
    return target._default_path(desk, listing, info, "3da4c1ba" * 8).name


@pytest.mark.parametrize(
    ("trunk", "weights", "expected"),
    [
        ("timm:resnet50.a1_in1k", "a1_in1k", "photos-timm-resnet50-a1_in1k-224px-3da4c1ba.h5"),
        ("timm:resnet50", "a1_in1k", "photos-timm-resnet50-a1in1k-224px-3da4c1ba.h5"),
        ("timm:resnet50.a1_in1k", "random:0", "photos-timm-resnet50-a1_in1k-random0-224px-3da4c1ba.h5"),
        ("resnet50", "IMAGENET1K_V2", "photos-resnet50-imagenet1kv2-224px-3da4c1ba.h5"),
    ],
)
def test_the_name_says_trunk_and_weights_once(tmp_path: Path, trunk: str, weights: str, expected: str) -> None:
    assert name_of(trunk, weights, Workspace(tmp_path)) == expected


def test_a_file_that_says_the_weights_twice_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was called so before."""
    monkeypatch.setattr(target.store, "open_partial", lambda _: None)
    monkeypatch.setattr(target, "images_from", lambda _: SimpleNamespace(place="/photos", there=lambda: True))
    twice = tmp_path / "features" / "photos-timm-lite0-in1k-in1k-224px-3da4c1ba.h5"
    assert name_of("timm:lite0.in1k", "in1k", Workspace(tmp_path)) != twice.name
    twice.parent.mkdir()
    twice.touch()
    assert name_of("timm:lite0.in1k", "in1k", Workspace(tmp_path)) == twice.name
