"""The demo's plain words where pretrained weights cannot be had; the whole of it in the slow tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.base.errors import WeightsError
from pipeline.base.watch import Watch
from pipeline.cli.demo import FALLBACK, DemoSettings, _weights, run_demo


class Heard(Watch):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_without_pretrained_weights_it_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise WeightsError("resnet50-11ad3fa6.pth could not be downloaded")

    import pipeline.trunk.frozen

    monkeypatch.setattr(sys.modules["pipeline.trunk.frozen"], "find_weights", offline)
    heard = Heard()
    assert _weights(DemoSettings(cache_root=tmp_path), heard) == FALLBACK
    assert pipeline.frozen.find_weights is offline
    assert "resnet50-11ad3fa6.pth" in heard.warnings[0]
    assert "NOT a pretrained trunk" in heard.warnings[1]


@pytest.mark.slow
def test_the_demo_beats_guessing_and_keeps_its_best(tmp_path: Path) -> None:
    report = run_demo(DemoSettings(weights="random:0", cache_root=tmp_path), Watch())
    by_name = {r["name"]: r for r in report.results}
    assert by_name["majority"]["test"] < 0.2
    assert by_name["head (train)"]["test"] > 0.9
    tuned, searched = report.results[-1], report.results[-2]
    assert tuned["val"] >= searched["val"]
