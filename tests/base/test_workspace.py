"""Where things lie, and who is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.watch import Watch
from pipeline.base.workspace import Workspace


def test_its_place_is_what_was_given_then_the_environment_then_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_WORKSPACE", "from the environment")
    assert Workspace.at("given").root == Path("given")
    assert Workspace.at(None).root == Path("from the environment")
    monkeypatch.delenv("PIPELINE_WORKSPACE")
    assert Workspace.at(None).root == Path("cache")


def test_its_folders_lie_below_it_and_nothing_is_made(tmp_path: Path) -> None:
    desk = Workspace(tmp_path / "w")
    names = ("features", "runs", "maps", "tuning", "weights", "data", "engines", "bench", "reports")
    assert [getattr(desk, name) for name in names] == [tmp_path / "w" / name for name in names]
    assert desk.tested == tmp_path / "w" / "tested.jsonl"
    assert not desk.root.exists()


def test_a_silent_one_lies_at_the_same_place() -> None:
    class Ear(Watch):
        pass

    desk = Workspace(Path("w"), Ear())
    assert desk.silent().root == desk.root
    assert type(desk.silent().watch) is Watch
