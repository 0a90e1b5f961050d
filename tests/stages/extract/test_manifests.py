"""Manifests whose columns the user names, from extraction to the checks and new labels of a finished cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import audit, extract, open_cache, relabel, verify
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


def test_other_columns_lie_in_the_cache_in_the_order_of_its_rows(spec: Path, tmp_path: Path, quick: Quick) -> None:
    """What changes in them alone goes through no trunk, and outdates no run."""
    named = {"path_column": "Bild", "label_column": "class", "workspace": tmp_path, **quick}
    made = extract(spec, **named)
    cache = open_cache(made.cache)
    lines = [line.split(";") for line in spec.read_text("utf-16").splitlines()[1:]]
    expected = {os.fsencode(path): (target, n) for path, _, target, n in lines}
    assert list(cache.columns) == ["n", "target"]
    assert [expected[i] for i in cache.ids] == list(zip(cache.columns["target"], cache.columns["n"], strict=True))
    content, key = cache.content, cache.key
    spec.write_text(spec.read_text("utf-16").replace(";b;", ";\xe4/\u4e2d;"), "utf-16")
    again = extract(spec, **named)
    assert (again.cache, again.new, again.reused) == (made.cache, 0, 60)
    changed = open_cache(made.cache, verify=True)
    assert set(changed.columns["target"]) == {"a", "\xe4/\u4e2d"}
    assert (changed.content, changed.key) == (content, key)
    assert extract(spec, **named).new == 0
    relabel(made.cache, str(spec), path_column="Bild", label_column="target", workspace=tmp_path)
    assert list(open_cache(made.cache).columns) == ["class", "n"]
    audit(made.cache, drop_leaks=True, workspace=tmp_path)
    assert len(open_cache(made.cache).columns["n"]) == len(open_cache(made.cache))


def test_hundreds_of_other_columns_are_data_and_not_kept(spec: Path, tmp_path: Path, quick: Quick) -> None:
    lines = spec.read_text("utf-16").splitlines()
    wide = [";".join([lines[0], *(f"p{i}" for i in range(300))]), *(line + ";0" * 300 for line in lines[1:])]
    spec.write_text("\n".join(wide))
    made = extract(spec, path_column="Bild", label_column="class", workspace=tmp_path, **quick)
    assert open_cache(made.cache).columns == {}
