"""Several runs on one page: side by side, and in pairs on the images that they share."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.numpy

from pipeline import evaluate, extract, report, search, train
from pipeline.base.workspace import Workspace
from pipeline.heads.scores.paired import paired_difference
from pipeline.stages.report import words
from pipeline.stages.report.side import _shared
from pipeline.stages.report.story import gather
from tests.parsed import Parsed


@pytest.fixture(scope="module")
def two(workshop: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two searches of one cache, one of them poor."""
    root = tmp_path_factory.mktemp("two")
    found = [search(workshop.cache.cache, Cs=Cs, evaluate=False, workspace=root) for Cs in ((1e-3, 1e-2), (1e-6, 1e-5))]
    return SimpleNamespace(root=root, runs=[one.run for one in found])


def page_of(file: Path) -> Parsed:
    found = Parsed(file.read_bytes())
    found.require_to_stand_alone()
    return found


def test_two_runs_are_compared_on_the_rows_that_neither_has_learned_from(two: SimpleNamespace) -> None:
    result = report(two.runs, workspace=two.root)
    assert result.file.name == "0001-search-vs-0002-search.html"
    page = page_of(result.file)
    kept = [safetensors.numpy.load_file(run / "held_out.safetensors") for run in two.runs]
    right = [k["logits"].argmax(axis=1) == k["y"] for k in kept]
    d = paired_difference(*right)
    assert f"{100 * right[0].mean():.1f}\u00a0%" in page.text and f"{d.p:.2g}" in page.text
    assert ("second is worse" in page.text) == (d.word == "worse") and "left out" in page.text
    assert len(page.tags("details")) == 2
    assert {"run-1-confusion", "run-2-confusion"} <= set(page.all("id"))


def test_pages_of_runs_that_lie_elsewhere_have_names_of_their_own(two: SimpleNamespace, tmp_path: Path) -> None:
    places = [Path(shutil.copytree(run, tmp_path / name)) for run, name in zip(two.runs, ("my-a", "my-b"), strict=True)]
    assert report(places, workspace=two.root).file.name == "my-a-vs-my-b.html"


def test_what_a_network_began_from_had_learned_is_neither_called_unseen_nor_compared(
    two: SimpleNamespace, tmp_path: Path
) -> None:
    """A fine-tuning of a head that was refitted on train + val: its figures on val are of rows that it knows."""
    found = [gather(str(run), Workspace(two.root), "cpu") for run in two.runs]
    assert found[0].answers is not None
    known = dataclasses.replace(found[0], answers=dataclasses.replace(found[0].answers, unseen=False))
    assert [on for on, _ in _shared(found[0], found[1])] == ["left out"] and _shared(known, found[1]) == []
    for said in (words.lead(known), " ".join(tile.note for tile in words.tiles(known))):
        assert "which the head that it began with had learned from" in said and "it has not learned from" not in said


def test_test_is_compared_only_where_both_were_scored(two: SimpleNamespace, tmp_path: Path) -> None:
    root = Path(shutil.copytree(two.root, tmp_path / "scored"))
    runs = [root / "runs" / run.name for run in two.runs]
    evaluate(runs[0], workspace=root)
    assert pairs(page_of(report(runs, workspace=root).file)) == ["left out"]
    evaluate(runs[1], workspace=root)
    ledger = (root / "tested.jsonl").read_bytes()
    assert pairs(page_of(report(runs, workspace=root).file)) == ["left out", "test"]
    assert (root / "tested.jsonl").read_bytes() == ledger


def pairs(page: Parsed) -> list[str]:
    """Which rows the table of pairs is of."""
    return [cell.strip() for cell in page.cells if cell.strip() in ("left out", "test")]


def test_runs_of_other_images_stand_side_by_side_and_are_not_compared(
    two: SimpleNamespace, photos: Path, tmp_path: Path, quick: dict[str, Any]
) -> None:
    mine = Path(shutil.copytree(photos, tmp_path / "mine"))
    (mine / "ant" / "00.png").unlink()
    other = train(extract(mine, workspace=tmp_path, **quick).cache, workspace=tmp_path).run
    page = page_of(report([two.runs[0], other], workspace=tmp_path).file)
    assert "Not compared: " in page.text and "only runs tested on the same rows can be compared" in page.text
