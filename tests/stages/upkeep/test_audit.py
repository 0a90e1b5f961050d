"""`pipeline audit`: every kind of copy, small class and failure is found, and nothing where there is nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import audit, extract, open_cache
from pipeline.base.errors import CacheError, ConfigError, DataError
from pipeline.cli.main import main
from pipeline.store import Failure, failures_path, read_failures

Quick = dict[str, Any]


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory, quick: Quick) -> Path:
    """A cache root whose one cache lends its rows to the caches of the tests: they run no trunk."""
    root = tmp_path_factory.mktemp("made")
    extract(photos, workspace=root, **quick)
    return root


@pytest.fixture
def split(photos: Path, made: Path, tmp_path: Path) -> Path:
    """The photographs as train/ (13 a class), val/ (3) and test/ (4) that a test may change."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    root = tmp_path / "split"
    for name in ("ant", "bee", "cat"):
        for i in range(20):
            part = "train" if i < 13 else "val" if i < 16 else "test"
            (root / part / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(photos / name / f"{i:02d}.png", root / part / name)
    return root


def leak(split: Path) -> None:
    """Two test images and a val image are in train as well, one of them under another class."""
    shutil.copy(split / "test" / "ant" / "17.png", split / "train" / "ant" / "leak.png")
    shutil.copy(split / "test" / "bee" / "18.png", split / "train" / "cat" / "liar.png")
    shutil.copy(split / "val" / "cat" / "14.png", split / "train" / "cat" / "twin.png")


def test_clean_splits_give_no_finding(split: Path, tmp_path: Path, quick: Quick, listener: Any) -> None:
    made = extract(split, workspace=tmp_path, **quick).cache
    report = audit(made, tiny=3, strict=True, workspace=tmp_path, watch=listener)
    assert report.findings == []
    assert report.classes["ant"] == {"train": 13, "val": 3, "test": 4}
    assert report.imbalance == 1.0
    assert "nothing found" in listener.text


def test_copies_across_splits_and_under_two_labels_are_found(
    split: Path, tmp_path: Path, quick: Quick, listener: Any
) -> None:
    leak(split)
    shutil.copy(split / "train" / "bee" / "01.png", split / "train" / "bee" / "again.png")
    made = extract(split, workspace=tmp_path, **quick).cache
    report = audit(made, workspace=tmp_path, watch=listener)
    assert [[p[2] for p in group] for group in report.copies.leaks] == [
        ["train/ant/leak.png", "test/ant/17.png"],
        ["train/cat/liar.png", "test/bee/18.png"],
        ["train/cat/twin.png", "val/cat/14.png"],
    ]
    assert report.copies.conflicts == [[("train", "cat", "train/cat/liar.png"), ("test", "bee", "test/bee/18.png")]]
    assert (report.copies.within, report.copies.in_train) == (1, 1)
    assert "1 surplus train row: copies of another train image, which they weigh more often" in listener.text
    assert "3 images in more than one split (drop_leaks=True takes them out of train)" in listener.text
    json.dumps(report.to_json())


def test_dropping_leaks_keeps_every_other_row_to_the_last_bit(split: Path, tmp_path: Path, quick: Quick) -> None:
    leak(split)
    before = open_cache(extract(split, workspace=tmp_path, block_rows=8, **quick).cache)
    old = {i: n for n, i in enumerate(before.ids)}
    rows, digests, (sizes, times) = np.array(before.features), before.digests, before.stats
    report = audit(before.path, drop_leaks=True, tiny=1, strict=True, workspace=tmp_path)
    assert report.dropped == ["train/ant/leak.png", "train/cat/liar.png", "train/cat/twin.png"]
    after = open_cache(before.path, verify=True)
    assert after.counts() == {"none": 0, "train": 39, "val": 9, "test": 12}
    at = [old[i] for i in after.ids]
    np.testing.assert_array_equal(after.features, rows[at])
    np.testing.assert_array_equal(after.digests, digests[at])
    np.testing.assert_array_equal(after.labels, before.labels[at])
    np.testing.assert_array_equal(after.stats, (sizes[at], times[at]))
    assert (after.key, after.provenance, after.classes) == (before.key, before.provenance, before.classes)
    history = after.about.pop("history")
    assert after.about == before.about
    assert history[0]["created"] == before.created
    assert not list(before.path.parent.glob("*.partial*"))


def test_dropping_leaks_into_another_file_leaves_the_first_alone(split: Path, tmp_path: Path, quick: Quick) -> None:
    leak(split)
    made = extract(split, workspace=tmp_path, **quick).cache
    before = made.read_bytes()
    audit(made, drop_leaks=True, out=tmp_path / "clean.h5", workspace=tmp_path)
    assert made.read_bytes() == before
    assert len(open_cache(tmp_path / "clean.h5", verify=True)) == 60
    with pytest.raises(CacheError, match="exists already"):
        audit(made, drop_leaks=True, out=tmp_path / "clean.h5", workspace=tmp_path)


def test_dropping_from_a_damaged_cache_is_refused_and_changes_nothing(
    split: Path, tmp_path: Path, quick: Quick
) -> None:
    leak(split)
    made = extract(split, workspace=tmp_path, **quick).cache
    with made.open("r+b") as file:
        file.seek(open_cache(made).features.offset + 3)  # type: ignore[attr-defined]
        file.write(b"\x55")
    before = made.read_bytes()
    with pytest.raises(CacheError, match="damaged"):
        audit(made, drop_leaks=True, workspace=tmp_path)
    assert made.read_bytes() == before
    assert not list(made.parent.glob("*.partial*"))


def test_dropping_all_of_train_is_refused(split: Path, tmp_path: Path, quick: Quick) -> None:
    shutil.rmtree(split / "train")
    shutil.copytree(split / "test", split / "train")
    made = extract(split, workspace=tmp_path, **quick).cache
    with pytest.raises(DataError, match="nothing of train would be left"):
        audit(made, drop_leaks=True, workspace=tmp_path)


def test_near_duplicates_are_those_of_a_plain_double_loop(
    split: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against float64 over all pairs, with tiles so small that pairs lie in and across them."""
    monkeypatch.setattr("pipeline.stages.upkeep.near.TILE", 7)
    with Image.open(split / "test" / "ant" / "17.png") as image:
        pixels = np.array(image)
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(split / "train" / "ant" / "nearly.png")
    leak(split)
    cache = open_cache(extract(split, workspace=tmp_path, **quick).cache)
    X = np.array(cache.features, np.float64)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    digests = [d.tobytes() for d in cache.digests]
    cosines = {
        (a, b): float(X[a] @ X[b]) for a in range(len(X)) for b in range(a + 1, len(X)) if digests[a] != digests[b]
    }
    threshold = float(np.quantile(list(cosines.values()), 0.97))
    expected = {pair for pair, cosine in cosines.items() if cosine >= threshold}
    near = audit(cache.path, near=threshold, workspace=tmp_path).near
    assert near is not None
    at = {i.decode(): n for n, i in enumerate(cache.ids)}
    found = {(at[left[2]], at[right[2]]): cosine for cosine, left, right in near.pairs}
    unsure = {pair for pair, cosine in cosines.items() if abs(cosine - threshold) < 2e-6}
    assert set(found) - unsure == expected - unsure
    assert near.count == len(found)
    assert max(abs(cosines[p] - c) for p, c in found.items()) < 2e-6
    assert near.across_splits == sum(cache.splits[a] != cache.splits[b] for a, b in found)
    assert near.conflicting == sum(cache.labels[a] != cache.labels[b] for a, b in found)
    assert ("train/ant/nearly.png", "test/ant/17.png") in {(p[1][2], p[2][2]) for p in near.pairs}


def test_many_near_pairs_are_counted_and_the_closest_named(
    split: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = extract(split, workspace=tmp_path, **quick).cache
    whole = audit(made, near=1e-6, workspace=tmp_path).near
    monkeypatch.setattr("pipeline.stages.upkeep.near.TILE", 7)
    monkeypatch.setattr("pipeline.stages.upkeep.audit.NEAR_KEPT", 20)
    few = audit(made, near=1e-6, workspace=tmp_path).near
    assert whole is not None
    assert few is not None
    assert whole.count == few.count == 60 * 59 // 2
    assert [p[1:] for p in few.pairs] == [p[1:] for p in whole.pairs[:20]]


def test_tiny_and_empty_classes_are_named_by_split(split: Path, tmp_path: Path, quick: Quick) -> None:
    shutil.rmtree(split / "val" / "bee")
    for i in range(2, 13):
        (split / "train" / "cat" / f"{i:02d}.png").unlink()
    made = extract(split, workspace=tmp_path, **quick).cache
    report = audit(made, tiny=3, workspace=tmp_path)
    assert report.empty == {"val": ["bee"]}
    assert report.tiny == {"train": ["cat"]}
    assert report.imbalance == 6.5
    assert report.findings == ["no val images of 'bee'", "fewer than 3 train images of 'cat'"]


def test_failed_images_are_listed_with_their_reasons_and_survive_dropping(
    split: Path, tmp_path: Path, quick: Quick
) -> None:
    (split / "train" / "ant" / "00.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    leak(split)
    made = extract(split, workspace=tmp_path, max_failures=0.5, **quick).cache
    told = read_failures(failures_path(made))
    report = audit(made, drop_leaks=True, workspace=tmp_path)
    assert list(report.failed) == ["train/ant/00.png"]
    failure: Failure = told[b"train/ant/00.png"]
    assert failure.reason in report.failed["train/ant/00.png"]
    assert "1 failed image without features" in report.findings
    assert read_failures(failures_path(made)) == told


def test_findings_exit_0_and_with_strict_2(
    split: Path, tmp_path: Path, quick: Quick, capsys: pytest.CaptureFixture[str]
) -> None:
    leak(split)
    made = extract(split, workspace=tmp_path, **quick).cache
    arguments = ["audit", str(made), "--workspace", str(tmp_path)]
    assert main([*arguments, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["copies"]["leaks"]) == 3
    assert main([*arguments, "--strict"]) == 2


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="a cosine is at most 1"):
        audit("latest", near=1.5)
    with pytest.raises(ConfigError, match="without drop_leaks=True"):
        audit("latest", out="x.h5")
