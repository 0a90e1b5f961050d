"""Baselines: scored on val, on test when asked for, and on what a cache has not, not at all."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler

from pipeline import baseline, extract, open_cache
from pipeline.base.errors import HeadError
from pipeline.store.rows import load_rows

FEW = ("majority", "centroid")


def test_val_alone_is_scored_unless_test_is_asked_for(workshop: SimpleNamespace, tmp_path: Path, listener: Any) -> None:
    report = baseline(workshop.cache.cache, names=FEW, workspace=tmp_path, watch=listener)
    assert [(r["test"], r["macro_f1"]) for r in report.results] == [(None, None)] * 2
    assert all(r["val"] is not None for r in report.results)
    assert report.scored_before is None and not (tmp_path / "tested.jsonl").exists()
    assert "Val" in listener.text and "test" not in listener.text.lower().replace(workshop.cache.cache.name.lower(), "")


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")
def test_with_test_the_figures_are_those_of_the_test_rows(workshop: SimpleNamespace, tmp_path: Path) -> None:
    report = baseline(workshop.cache.cache, names=FEW, test=True, workspace=tmp_path)
    rows = {split: load_rows(open_cache(workshop.cache.cache), split) for split in ("train", "val", "test")}
    scaler = StandardScaler().fit(np.asarray(rows["train"].X, float))
    model = NearestCentroid().fit(scaler.transform(rows["train"].X), rows["train"].y)
    guess = model.predict(scaler.transform(rows["test"].X))
    result = report.results[1]
    assert result["test"] == pytest.approx((guess == rows["test"].y).mean())
    assert result["macro_f1"] == pytest.approx(f1_score(rows["test"].y, guess, average="macro"))
    record = json.loads((report.run / "metrics.json").read_text())
    assert record == {"results": report.results, "scored_before": 0}
    assert report.to_json() == {"run": str(report.run), **record}


def test_a_cache_without_test_rows_has_no_figures_on_test(photos: Path, tmp_path: Path, quick: dict[str, Any]) -> None:
    made = extract(photos, test_fraction=0.0, workspace=tmp_path, dtype="float32", **quick)
    report = baseline(made.cache, names=("knn10", "ridge", "logreg"), workspace=tmp_path)
    assert all(r["val"] > 0.5 for r in report.results)
    with pytest.raises(HeadError, match="no labelled test rows: extract with test_fraction above 0"):
        baseline(made.cache, names=FEW, test=True, workspace=tmp_path)
    assert not (tmp_path / "tested.jsonl").exists()


def test_without_val_rows_there_is_nothing_to_score_but_test(
    photos: Path, tmp_path: Path, quick: dict[str, Any]
) -> None:
    made = extract(photos, val_fraction=0.0, workspace=tmp_path, dtype="float32", **quick)
    with pytest.raises(HeadError, match="no labelled val rows to score on: extract with val_fraction .*test=True"):
        baseline(made.cache, names=FEW, workspace=tmp_path)
    report = baseline(made.cache, names=FEW, test=True, workspace=tmp_path)
    assert all(r["val"] is None and r["test"] is not None for r in report.results)
