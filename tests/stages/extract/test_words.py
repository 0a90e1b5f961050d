"""What extract says of what it has done."""

from __future__ import annotations

from pathlib import Path

from pipeline.stages.extract.words import outdated


def test_of_two_thousand_outdated_runs_a_handful_and_their_number_are_told() -> None:
    runs = [f"{i:04d}-train-photos" for i in range(1, 2001)]
    assert outdated(Path("a/photos.h5"), runs[:2]).endswith("again: 0001-train-photos, 0002-train-photos")
    told = outdated(Path("a/photos.h5"), runs)
    assert told.endswith("0010-train-photos and 1,990 more") and len(told) < 400
