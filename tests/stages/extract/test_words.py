"""What extract says of what it has done."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.runs.remarks import outdated
from pipeline.stages.extract.results import Shares
from pipeline.stages.extract.words import Limits, bottleneck


def test_of_two_thousand_outdated_runs_a_handful_and_their_number_are_told() -> None:
    runs = [f"{i:04d}-train-photos" for i in range(1, 2001)]
    assert outdated(Path("a/photos.h5"), runs[:2]).endswith("again: 0001-train-photos, 0002-train-photos")
    told = outdated(Path("a/photos.h5"), runs)
    assert told.endswith("0010-train-photos and 1,990 more") and len(told) < 400


SLOW = Shares(read=1.0, decode=6.0, transform=2.0, forward=1.0, waiting=3.0)


@pytest.mark.parametrize(
    ("shares", "limits", "end"),
    [
        (Shares(decode=6.0, forward=4.0, waiting=0.4), Limits(2, 2, exact=False), "the trunk is the bottleneck"),
        (SLOW, Limits(2, 4, exact=False), "decode is the bottleneck (the trunk waited 3.0 s; more workers would help)"),
        (SLOW, Limits(4, 4, exact=False), "the trunk waited 3.0 s; only more cores would help)"),
        (SLOW, Limits(2, 4, exact=True), "decode='scaled' would help where JPEGs are large, in another file)"),
        (Shares(read=9.0, forward=1.0, waiting=3.0), Limits(2, 4, exact=True), "3.0 s; a faster disk would help)"),
    ],
)
def test_what_would_help_is_what_there_is_more_of(shares: Shares, limits: Limits, end: str) -> None:
    assert bottleneck(shares, limits).endswith(end)
