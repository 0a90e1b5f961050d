"""The demo's plain words where pretrained weights cannot be had; the whole of it in the slow tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.base.errors import WeightsError
from pipeline.base.watch import Watch
from pipeline.base.workspace import Workspace
from pipeline.cli.demo import FALLBACK, DemoSettings, _weights, demo


class Heard(Watch):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_without_pretrained_weights_it_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise WeightsError("resnet50-11ad3fa6.pth could not be downloaded")

    monkeypatch.setattr(sys.modules["pipeline.cli.demo"], "find_weights", offline)
    heard = Heard()
    assert _weights(DemoSettings(), Workspace(tmp_path, heard)) == FALLBACK
    assert "resnet50-11ad3fa6.pth" in heard.warnings[0]
    assert "NOT a pretrained trunk" in heard.warnings[1]


@pytest.mark.slow
def test_the_demo_beats_guessing_and_keeps_its_best(tmp_path: Path) -> None:
    report = demo.work(DemoSettings(weights="random:0"), Workspace(tmp_path))
    by_name = {r["name"]: r for r in report.results}
    assert by_name["majority"]["val"] < 0.2
    assert [name for name, r in by_name.items() if "test" in r] == list(by_name)[-3:]
    assert len((tmp_path / "tested.jsonl").read_text().splitlines()) == 3  # each once
    assert by_name["head (train)"]["test"] > 0.9
    assert Path(report.report).read_bytes().startswith(b"<!doctype html>")
    tuned, searched = report.results[-1], report.results[-2]
    assert tuned["val"] >= searched["val"]
