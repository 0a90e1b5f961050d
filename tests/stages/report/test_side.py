"""Several runs on one page: side by side, and in pairs on the images that they share."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.numpy

from pipeline import evaluate, extract, report, search, train
from pipeline.heads.scores.paired import paired_difference
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
