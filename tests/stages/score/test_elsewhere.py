"""New labelled images: through the run's network once, no cache, with the figures of a cache of them."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import evaluate, extract, open_cache
from pipeline.base.errors import DataError, HeadError
from tests.conftest import draw

Quick = dict[str, Any]


@pytest.fixture
def run(workshop: SimpleNamespace, tmp_path: Path) -> Path:
    """The workshop's head, not evaluated yet."""
    folder = tmp_path / "runs" / "0001-train-copy"
    shutil.copytree(workshop.head.run, folder, ignore=shutil.ignore_patterns("evaluation*"))
    return folder


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """Nine new images of two of the three classes, some drawn as another; one cannot be used."""
    for i in range(5):
        draw(tmp_path / "new" / "bee" / f"{i}.png", 1, 900 + i)
    for i in range(4):
        draw(tmp_path / "new" / "cat" / f"{i}.png", 0 if i < 2 else 2, 950 + i)
    (tmp_path / "new" / "cat" / "broken.png").write_text("hello")
    return tmp_path / "new"


def test_a_new_folder_has_the_figures_of_a_cache_of_it(
    run: Path, new: Path, tmp_path: Path, quick: Quick, listener: Any
) -> None:
    found = evaluate(run, images=new, errors=tmp_path / "w.csv", workspace=tmp_path, watch=listener)
    assert not (tmp_path / "features").exists()
    options = {**quick, "dtype": "float32", "val_fraction": 0, "test_fraction": 0, "max_failures": 0.5}
    cache = extract(new, workspace=tmp_path / "other", **options).cache
    same = evaluate(run, data=str(cache), workspace=tmp_path)
    assert found.test["confusion"] == same.test["confusion"] and found.test["n"] == 9
    assert found.test["log_loss"] == pytest.approx(same.test["log_loss"], rel=1e-4)
    assert found.test["intervals"] == same.test["intervals"]
    assert (found.images, found.split, found.cache, found.shared) == ("new", "all", None, 0)
    assert found.file == run / "evaluation-new.json" and json.loads(found.file.read_text())["images"] == "new"
    with (tmp_path / "w.csv").open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert sorted(row["path"] for row in rows) == [str(new / "cat" / f"{i}.png") for i in range(2)]
    assert {(row["true"], row["predicted"]) for row in rows} == {("cat", "ant")}
    assert "left out: 1 of 10 images cannot be used; the first, " in listener.text
    assert not (tmp_path / "tested.jsonl").exists()


def test_a_fine_tuned_run_scores_new_images_too(workshop: SimpleNamespace, new: Path, tmp_path: Path) -> None:
    run = shutil.copytree(workshop.tuned.run, tmp_path / "runs" / "0002-finetune-copy")
    assert evaluate(run, images=new, workspace=workshop.root).test["n"] == 9


def test_images_that_the_run_was_fitted_or_chosen_on_are_counted(
    run: Path, new: Path, workshop: SimpleNamespace, tmp_path: Path, listener: Any
) -> None:
    cache = open_cache(workshop.cache.cache)
    for split, number in (("train", 2), ("val", 1)):
        for item in [i for i in cache.split(split).ids if i.startswith(b"cat")][:number]:
            shutil.copy(
                workshop.photos / os.fsdecode(item), new / "cat" / f"copy-{split}-{os.path.basename(item)!r}.png"
            )
    found = evaluate(run, images=new, workspace=tmp_path, watch=listener)
    assert found.shared == 3
    assert "3 of these 13 images are among the train and val images of 0001-train-copy" in listener.text
    assert not (tmp_path / "tested.jsonl").exists()


def test_the_runs_own_test_images_among_them_are_a_look_at_its_test_split(
    run: Path, new: Path, workshop: SimpleNamespace, tmp_path: Path, listener: Any
) -> None:
    item = os.fsdecode(open_cache(workshop.cache.cache).split("test").ids[-1])
    shutil.copy(workshop.photos / item, new / "cat" / "copy.png")
    found = evaluate(run, images=new, workspace=tmp_path, watch=listener)
    assert found.scored_before == 0
    assert "1 of these 11 images are test images of 0001-train-copy" in listener.text
    (line,) = (tmp_path / "tested.jsonl").read_text().splitlines()
    evaluate(run, workspace=tmp_path)
    assert (tmp_path / "tested.jsonl").read_text().splitlines() == [line]


def test_splits_are_taken_together_or_one_is_named(run: Path, new: Path, tmp_path: Path, listener: Any) -> None:
    """What a source calls test is a look at test rows."""
    for name in ("ant", "bee"):
        draw(tmp_path / "split" / "train" / name / "0.png", 0, 701)
        draw(tmp_path / "split" / "test" / name / "1.png", 1, 702)
        draw(tmp_path / "split" / "val" / name / "2.png", 1, 703)
    where = {"images": tmp_path / "split", "workspace": tmp_path, "watch": listener}
    assert evaluate(run, split="val", **where).test["n"] == 2
    assert not (tmp_path / "tested.jsonl").exists()
    assert evaluate(run, **where).test["n"] == 6
    assert "train, val and test are taken together: split names one of them" in listener.text
    assert json.loads((tmp_path / "tested.jsonl").read_text())["rows"] == 2
    with pytest.raises(DataError, match="no labelled val images: choose split from all"):
        evaluate(run, images=new, split="val", workspace=tmp_path)


def test_new_images_may_be_of_one_class_or_of_a_test_split_alone(run: Path, tmp_path: Path) -> None:
    """What a head could not be learned from can be scored all the same."""
    for i in range(3):
        draw(tmp_path / "one" / "bee" / f"{i}.png", 1, 800 + i)
        draw(tmp_path / "held" / "test" / "cat" / f"{i}.png", 2, 810 + i)
        draw(tmp_path / "held" / "train" / "ant" / f"{i}.png", 0, 820 + i)
    assert evaluate(run, images=tmp_path / "one", workspace=tmp_path).test["n"] == 3
    assert evaluate(run, images=tmp_path / "held", split="test", workspace=tmp_path).test["n"] == 3


def test_what_cannot_be_scored_is_refused_before_any_network(
    run: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stages.score.elsewhere.load_classifier", None)
    draw(new / "dog" / "0.png", 2, 5)
    with pytest.raises(HeadError, match="does not know the class 'dog': its own are 'ant', 'bee', 'cat'"):
        evaluate(run, images=new, workspace=tmp_path)
    with pytest.raises(DataError, match="no labels: give class folders or a manifest with labels, or use predict"):
        evaluate(run, images=new / "bee", workspace=tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        evaluate(run, images=tmp_path / "gone", workspace=tmp_path)


def test_only_unusable_images_are_an_error(run: Path, tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "0.png").write_text("hello")
    with pytest.raises(DataError, match=r"none of 2 images can be used; the first, .*0.png': the file holds text"):
        evaluate(run, images=tmp_path / "bad", workspace=tmp_path)
    assert not list(run.glob("evaluation*"))
