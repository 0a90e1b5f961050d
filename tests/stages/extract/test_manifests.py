"""Manifests whose columns the user names, from extraction to the checks and new labels of a finished cache."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import extract, open_cache, relabel, verify
from pipeline.base.errors import DataError
from pipeline.runs.recipe import columns_of

Quick = dict[str, Any]


@pytest.fixture
def spec(photos: Path, tmp_path: Path) -> Path:
    """A manifest beside the photographs, with columns of its own words; two of them could be the label."""
    mine = Path(shutil.copytree(photos, tmp_path / "mine"))
    paths = [path.relative_to(mine) for path in sorted(mine.rglob("*.*"))]
    rows = [f"{path};{path.parent};{'ab'[n % 2]};{n}" for n, path in enumerate(paths)]
    (mine / "m.csv").write_text("Bild;class;target;n\n" + "\n".join(rows) + "\n", "utf-16")
    return mine / "m.csv"


def test_named_columns_are_kept_and_asked_for_again(spec: Path, tmp_path: Path, quick: Quick) -> None:
    with pytest.raises(DataError, match=r"no column is known to be the image's path \(columns: Bild, class, target, n"):
        extract(spec, workspace=tmp_path, **quick)
    with pytest.raises(DataError, match="class, target could each be the label: say which with label_column"):
        extract(spec, path_column="Bild", workspace=tmp_path, **quick)
    made = extract(spec, path_column="Bild", label_column="class", workspace=tmp_path, **quick)
    cache = open_cache(made.cache)
    assert len(cache.classes) == 3
    assert columns_of(cache).named() == {"path": "Bild", "label": "class"}
    # what the cache keeps is asked for by nobody again
    assert verify(made.cache, str(spec), workspace=tmp_path).changes["relabelled"]["count"] == 0
    again = extract(spec, path_column="Bild", label_column="class", workspace=tmp_path, **quick)
    assert (again.new, again.cache) == (0, made.cache)


def test_another_column_of_labels_costs_no_forward_pass(spec: Path, tmp_path: Path, quick: Quick) -> None:
    made = extract(spec, path_column="Bild", label_column="class", workspace=tmp_path, **quick)
    other = extract(spec, path_column="Bild", label_column="target", workspace=tmp_path, **quick)
    assert (other.cache, other.new) == (made.cache, 0)
    assert open_cache(made.cache).classes == ("a", "b")
    back = relabel(made.cache, str(spec), path_column="Bild", label_column="class", workspace=tmp_path)
    assert back.relabelled == 60 and columns_of(open_cache(made.cache)).label == "class"
    assert not relabel(made.cache, str(spec), path_column="Bild", label_column="class", workspace=tmp_path).written


def test_images_without_labels_are_asked_for_by_word(spec: Path, tmp_path: Path, quick: Quick) -> None:
    made = extract(spec, path_column="Bild", label_column="none", workspace=tmp_path, **quick)
    assert open_cache(made.cache).classes == ()


def test_the_columns_that_verify_is_given_go_before_those_kept(spec: Path, tmp_path: Path, quick: Quick) -> None:
    made = extract(spec, path_column="Bild", label_column="class", workspace=tmp_path, **quick)
    options = {"path_column": "Bild", "label_column": "target", "allow_changes": True}
    assert verify(made.cache, str(spec), workspace=tmp_path, **options).changes["relabelled"]["count"] == 60
