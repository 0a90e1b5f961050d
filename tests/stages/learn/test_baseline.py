"""Baselines of a cache that has not every split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import baseline, extract


def test_a_cache_without_test_rows_has_no_figures_on_test(photos: Path, tmp_path: Path, quick: dict[str, Any]) -> None:
    made = extract(photos, test_fraction=0.0, workspace=tmp_path, dtype="float32", **quick)
    report = baseline(made.cache, names=("knn10", "ridge", "logreg"), workspace=tmp_path)
    assert [(r["test"], r["macro_f1"]) for r in report.results] == [(None, None)] * 3
    assert all(r["val"] > 0.5 for r in report.results)
