"""`pipeline audit --labels`: flipped labels are found, named for `relabel`, and judged by heads that never saw them."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import audit, extract, open_cache, relabel
from pipeline.base.errors import ConfigError, HeadError
from pipeline.cli.main import main
from pipeline.heads.exact.path import fit_exact
from pipeline.heads.problem import Problem
from pipeline.stages.upkeep import labels as judging
from pipeline.store.rows import load_rows

Quick = dict[str, Any]
FLIPPED = {"train/ant/00.png": "bee", "train/bee/01.png": "cat", "train/cat/02.png": "ant", "val/ant/13.png": "cat"}


def manifest(photos: Path, file: Path, groups: bool = False) -> Path:
    """The photographs as train, val and test with FLIPPED labels; of the group of their tens, on request."""
    folder = file.parent / "images"
    lines = [["path", "label", "split", *(["scene"] if groups else [])]]
    for name in ("ant", "bee", "cat"):
        for i in range(20):
            part = "train" if i < 13 else "val" if i < 16 else "test"
            place = folder / part / name / f"{i:02d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photos / name / f"{i:02d}.png", place)
            path = str(place.relative_to(folder))
            lines.append([f"images/{path}", FLIPPED.get(path, name), part, *([f"{name}{i // 4}"] if groups else [])])
    with file.open("w", newline="") as out:
        csv.writer(out).writerows(lines)
    return file


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory, quick: Quick) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("flipped")
    cache = extract(manifest(photos, root / "list.csv", groups=True), workspace=root, dtype="float32", **quick).cache
    return SimpleNamespace(root=root, cache=cache)


def copied(made: SimpleNamespace, tmp_path: Path) -> Path:
    shutil.copytree(made.root, tmp_path, dirs_exist_ok=True)
    return tmp_path / made.cache.relative_to(made.root)


def short(path: str) -> str:
    return path.removeprefix("images/")


def test_flipped_labels_are_found_with_their_true_classes(made: SimpleNamespace, listener: Any) -> None:
    report = audit(made.cache, labels=True, workspace=made.root, watch=listener)
    found = report.labels
    assert found is not None and found.rows == 48 and found.folds == 5 and found.test is None
    assert {short(one.path): one.label for one in found.suspects} == FLIPPED
    assert all(one.proposed in short(one.path) for one in found.suspects)  # the folder has the class's true name
    assert {one.split for one in found.suspects} == {"train", "val"}
    confidences = [one.self_confidence for one in found.suspects]
    assert confidences == sorted(confidences) and all(one.margin < 0 for one in found.suspects)
    assert found.interval[0] < 4 / 48 < found.interval[1]
    assert sum(pair.counted for pair in found.pairs) == 4
    assert "4 train and val labels look wrong (suspects='FILE.csv' names them for `pipeline relabel`)" in listener.text
    assert "at most about" in listener.text
    assert found.trial is None  # 13 rows of a class are too few to flip some of
    json.dumps(report.to_json())


def test_each_row_is_judged_by_a_head_that_did_not_learn_from_it(
    made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The confidences are those of heads fitted here, one by one, without the fold."""
    folds: list[Any] = []
    dealt = judging.dealt.fold_numbers

    def told(*args: Any) -> Any:
        folds.append(dealt(*args))
        return folds[-1]

    monkeypatch.setattr(judging.dealt, "fold_numbers", told)
    found = audit(made.cache, labels=True, folds=4, workspace=made.root).labels
    assert found is not None
    cache = open_cache(made.cache)
    rows = load_rows(cache, "train", "val")
    ids = [os.fsdecode(i) for s in ("train", "val") for i in cache.split(s).ids]
    heads = {}
    for one in found.suspects:
        at = ids.index(one.path)
        fold = int(folds[0][at])
        if fold not in heads:
            kept = folds[0] != fold
            heads[fold] = fit_exact(Problem(rows.X[kept], rows.y[kept], 3), [found.C])[0]
        logits = rows.X[at] @ heads[fold].weight.T + heads[fold].bias
        assert cache.classes[int(np.argmax(logits))] == one.proposed
        assert int(rows.y[at]) == one.number


def test_the_file_of_suspects_is_what_relabel_takes_as_it_is(made: SimpleNamespace, tmp_path: Path) -> None:
    cache = copied(made, tmp_path)
    file = tmp_path / "suspects.csv"
    before = audit(cache, labels=True, suspects=file, workspace=tmp_path)
    assert before.suspects == file
    lines = list(csv.DictReader(file.read_text().splitlines()))
    assert [line["given"] for line in lines] == [one.label for one in before.labels.suspects]
    result = relabel(str(cache), str(file), workspace=tmp_path)
    assert result.relabelled == 4 and result.resplit == 0 and not result.dropped
    after = open_cache(cache)
    named = {short(os.fsdecode(i)): after.classes[y] for i, y in zip(after.ids, after.labels.tolist(), strict=True)}
    assert all(name == path.split("/")[1] for path, name in named.items())
    again = audit(cache, labels=True, workspace=tmp_path).labels
    assert again is not None and not again.suspects and again.share == 0.0


def test_what_a_person_takes_back_in_the_file_stays_as_it_was(made: SimpleNamespace, tmp_path: Path) -> None:
    cache = copied(made, tmp_path)
    file = tmp_path / "suspects.csv"
    audit(cache, labels=True, suspects=file, workspace=tmp_path)
    header, first, *others = list(csv.reader(file.read_text().splitlines()))
    first[header.index("class")] = first[header.index("given")]
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([header, first, *others])
    assert relabel(str(cache), str(file), workspace=tmp_path).relabelled == 3


def test_copies_and_groups_are_left_out_together(
    made: SimpleNamespace, tmp_path: Path, photos: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = manifest(photos, tmp_path / "list.csv", groups=True)
    twin = tmp_path / "images/train/bee/twin.png"
    shutil.copy(tmp_path / "images/train/ant/05.png", twin)  # ties the group ant1 to bee2
    with file.open("a", newline="") as out:
        csv.writer(out).writerow(["images/train/bee/twin.png", "bee", "train", "bee2"])
    cache = extract(file, workspace=tmp_path, **quick).cache
    kept: list[Any] = []
    dealt = judging.dealt.fold_numbers
    monkeypatch.setattr(judging.dealt, "fold_numbers", lambda *a: kept.append(dealt(*a)) or kept[-1])
    audit(cache, labels=True, folds=2, groups="scene", workspace=tmp_path)
    made_cache = open_cache(cache)
    scenes = made_cache.columns["scene"]
    at = [row for split in ("train", "val") for row in made_cache.rows(split).tolist()]
    of: dict[str, set[int]] = {}
    for row, fold in zip(at, kept[0].tolist(), strict=True):
        of.setdefault(scenes[row], set()).add(fold)
    assert all(len(folds) == 1 for folds in of.values())
    assert of["ant1"] == of["bee2"]


def test_test_labels_are_judged_on_request_and_that_is_counted_once(made: SimpleNamespace, tmp_path: Path) -> None:
    cache = copied(made, tmp_path)
    for _ in range(2):
        found = audit(cache, labels=True, test=True, workspace=tmp_path).labels
        assert found is not None and found.test is not None
        assert (found.test.rows, found.test.folds, found.test.scored_before) == (12, 0, 0)
        assert found.test.accuracy == 1.0 and not found.test.suspects
    lines = (tmp_path / "tested.jsonl").read_text().splitlines()
    assert len(lines) == 1 and json.loads(lines[0])["run"].startswith("audit-")


def test_test_images_that_are_in_train_too_are_not_judged(
    tmp_path: Path, photos: Path, quick: Quick, listener: Any
) -> None:
    """A head that has learned an image's copy under a wrong label says that the label is right."""
    file = manifest(photos, tmp_path / "list.csv")
    lines = file.read_text().splitlines()
    wrong = ("images/test/ant/16.png", "images/test/bee/17.png")
    lines = [
        line.replace(",ant,", ",cat,").replace(",bee,", ",cat,") if line.startswith(wrong) else line for line in lines
    ]
    for number, path in enumerate(wrong):
        shutil.copy(tmp_path / path, tmp_path / "images" / f"twin{number}.png")
        lines.append(f"images/twin{number}.png,cat,train")
    file.write_text("\n".join(lines) + "\n")
    cache = extract(file, workspace=tmp_path, **quick).cache
    found = audit(cache, labels=True, test=True, workspace=tmp_path, watch=listener).labels
    assert found is not None and found.test is not None
    assert (found.test.rows, found.test.seen) == (10, 2)
    assert "not judged, being in train or val, too: 2 test rows" in listener.text


def test_a_trial_with_flipped_labels_says_how_good_the_list_is(
    tmp_path: Path, photos: Path, quick: Quick, listener: Any
) -> None:
    cache = extract(photos, workspace=tmp_path, test_fraction=0.0, val_fraction=0.1, dtype="float32", **quick).cache
    reports = [audit(cache, labels=True, workspace=tmp_path, watch=listener).labels for _ in range(2)]
    assert reports[0] == reports[1]
    trial = reports[0].trial
    assert trial is not None and trial.flipped == 6  # a tenth at most
    assert trial.found == trial.among_first == 6  # colours that no head confuses
    assert "tried on 6 labels (10.0 %) flipped by hand: 100.0 % of them were among the " in listener.text


def test_a_penalty_that_is_given_is_the_only_one(made: SimpleNamespace, listener: Any) -> None:
    found = audit(made.cache, labels=True, C=0.02, workspace=made.root, watch=listener).labels
    assert found is not None and (found.C, found.chosen_from) == (0.02, 1)
    assert "(5 folds, C 0.02; accuracy" in listener.text and "optimistic" not in listener.text


def test_a_class_of_one_image_is_not_judged_and_named(made: SimpleNamespace, tmp_path: Path, quick: Quick) -> None:
    file = tmp_path / "list.csv"
    lines = (made.root / "list.csv").read_text().splitlines()
    shutil.copytree(made.root / "images", tmp_path / "images")
    lines = [line.replace(",bee,", ",moth,") if "train/bee/03" in line else line for line in lines]
    file.write_text("\n".join(lines) + "\n")
    cache = extract(file, workspace=tmp_path, **quick).cache
    found = audit(cache, labels=True, workspace=tmp_path).labels
    assert found is not None and found.omitted == ["moth"] and found.rows == 47


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"labels": True, "folds": 30}, HeadError, "smallest class has 1[0-9] different images; give at most 1[0-9]"),
        (
            {"labels": True, "groups": "film"},
            ConfigError,
            "groups='film': the columns .* kept of its manifest: 'scene'",
        ),
        ({"folds": 3}, ConfigError, "folds=3 without labels=True"),
        ({"labels": True, "folds": 1}, ConfigError, "folds is 1"),
        ({"labels": True, "suspects": Path("a.txt")}, ConfigError, "must end in .csv"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_a_line(
    made: SimpleNamespace, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        audit(made.cache, workspace=made.root, **options)


def test_a_cache_without_labels_or_with_one_class_is_refused(photos: Path, tmp_path: Path, quick: Quick) -> None:
    bare = extract(photos / "ant", workspace=tmp_path, **quick).cache
    with pytest.raises(HeadError, match="no labelled train or val rows to judge"):
        audit(bare, labels=True, workspace=tmp_path)
    shutil.copytree(photos / "ant", tmp_path / "one" / "ant")
    (tmp_path / "one" / "bee").mkdir()
    shutil.copy(photos / "bee" / "00.png", tmp_path / "one" / "bee")
    one = extract(tmp_path / "one", workspace=tmp_path, **quick).cache
    with pytest.raises(HeadError, match="has 1 class of two or more images"):
        audit(one, labels=True, workspace=tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written_is_found_out_first(made: SimpleNamespace, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="give another file"):
        audit(made.cache, labels=True, suspects=tmp_path / "deep" / "a.csv", workspace=made.root)


def test_strict_exits_2_and_names_the_suspects(made: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["audit", str(made.cache), "--labels", "--tiny", "1", "--workspace", str(made.root)]
    assert main(arguments) == 0
    assert main([*arguments, "--strict"]) == 2
    assert "4 train and val labels look wrong (--suspects FILE.csv" in capsys.readouterr().err
