"""`pipeline compare`: two runs on identical test rows, or a refusal that says why."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from scipy.stats import binom

from pipeline import compare, open_cache
from pipeline.base.errors import HeadError
from pipeline.heads.artifact import load_head, save_head
from pipeline.heads.scores.paired import PairedDifference, paired_difference
from pipeline.stages.score.words import chance, verdict


def another(run: Path, root: Path, name: str, *, factor: float = 1.0, noise: float = 0.0, **config: Any) -> Path:
    """A run like ``run``, not evaluated yet, its weights multiplied and disturbed, its record changed."""
    folder = root / "runs" / name
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("evaluation*"))
    record = json.loads((folder / "config.json").read_text())
    record["cache"].update(config)
    (folder / "config.json").write_text(json.dumps(record))
    head = load_head(folder)
    rng = np.random.default_rng(0)
    moved = {n: t * factor + noise * t.std() * rng.standard_normal(t.shape) for n, t in head.tensors.items()}
    save_head(folder, dataclasses.replace(head, tensors={n: t.astype(np.float32) for n, t in moved.items()}))
    return folder


@pytest.fixture
def good(workshop: SimpleNamespace, tmp_path: Path) -> Path:
    """The workshop's head, not evaluated yet."""
    return another(workshop.head.run, tmp_path, "0001-train-good")


@pytest.fixture
def bad(workshop: SimpleNamespace, tmp_path: Path) -> Path:
    """The workshop's head with its decisions upside down."""
    return another(workshop.head.run, tmp_path, "0002-train-bad", factor=-1.0)


def test_both_runs_are_evaluated_and_their_disagreements_counted(
    good: Path, workshop: SimpleNamespace, tmp_path: Path
) -> None:
    noisy = another(workshop.head.run, tmp_path, "0002-train-noisy", noise=4.0)
    found = compare(good, noisy, workspace=tmp_path)
    rows = open_cache(workshop.cache.cache).split("test")
    a, b = (load_head(run).logits(np.array(rows.X)).argmax(axis=1) == rows.y for run in (good, noisy))
    assert found.n == 9
    assert 0 < a.sum() != b.sum()
    only_a, only_b = (a & ~b).sum(), (b & ~a).sum()
    assert (found.difference.b, found.difference.c) == (only_a, only_b)
    fewer, changed = min(only_a, only_b), only_a + only_b
    expected = 2 * binom.cdf(fewer, changed, 0.5) - binom.pmf(fewer, changed, 0.5)
    assert found.difference.p == pytest.approx(expected)
    assert found.difference.value == pytest.approx(b.mean() - a.mean())
    assert [f["accuracy"] for f in found.figures] == [a.mean(), b.mean()]
    assert (good / "evaluation.json").exists()
    assert (noisy / "evaluation.json").exists()
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["mcnemar"] == {"b": only_a, "c": only_b, "p": found.difference.p}
    assert set(plain["difference"]) == {"value", "low", "high"}


def test_a_head_that_is_better_is_called_so_in_either_order(
    good: Path, bad: Path, tmp_path: Path, listener: Any
) -> None:
    words = "0001-train-good is better than 0002-train-bad by"
    assert words in compare(good, bad, workspace=tmp_path).verdict
    turned = compare(bad, good, workspace=tmp_path, watch=listener)
    assert words in turned.verdict
    assert turned.difference.value > 0
    assert turned.verdict in listener.text
    assert "Calibration error" in listener.text


def test_a_run_is_no_better_than_itself(good: Path, tmp_path: Path) -> None:
    found = compare(good, good, workspace=tmp_path)
    assert found.difference.p == 1.0
    assert found.verdict == "no difference can be told: both are right on the same of 9 test images"


def test_a_head_and_its_fine_tuned_network_can_be_compared(workshop: SimpleNamespace, tmp_path: Path) -> None:
    root = Path(shutil.copytree(workshop.root, tmp_path / "root"))
    found = compare(workshop.head.run.name, workshop.tuned.run.name, workspace=root)
    assert found.figures[0]["accuracy"] == workshop.test.test["accuracy"]
    assert found.n == 9


def test_logits_are_scored_once(good: Path, bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compare(good, bad, workspace=tmp_path)

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr("pipeline.heads.artifact.Head.logits", forbidden)
    assert compare(good, bad, workspace=tmp_path) == first


def test_logits_that_an_older_evaluation_did_not_keep_are_made_and_its_figures_stay(
    good: Path, bad: Path, tmp_path: Path
) -> None:
    first = compare(good, bad, workspace=tmp_path)
    figures = (good / "evaluation.json").read_bytes()
    (good / "evaluation.safetensors").unlink()
    assert compare(good, bad, workspace=tmp_path) == first
    assert (good / "evaluation.json").read_bytes() == figures


def test_damaged_logits_are_refused(good: Path, bad: Path, tmp_path: Path) -> None:
    compare(good, bad, workspace=tmp_path)
    (bad / "evaluation.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(HeadError, match="evaluation.safetensors is damaged .*delete it"):
        compare(good, bad, workspace=tmp_path)


def test_runs_of_other_images_are_refused_before_anything_is_scored(
    good: Path, workshop: SimpleNamespace, tmp_path: Path
) -> None:
    other = another(workshop.head.run, tmp_path, "0003-train-other", content="0" * 64)
    with pytest.raises(HeadError, match="other images, labels or splits"):
        compare(good, other, workspace=tmp_path)
    fewer = another(workshop.head.run, tmp_path, "0004-train-fewer", content="0" * 64, rows={"test": 3})
    with pytest.raises(HeadError, match="other rows .*'test': 3"):
        compare(good, fewer, workspace=tmp_path)
    assert not (good / "evaluation.json").exists()


def test_caches_that_lack_different_images_are_refused(good: Path, bad: Path, tmp_path: Path) -> None:
    compare(good, bad, workspace=tmp_path)
    kept = safetensors.numpy.load_file(bad / "evaluation.safetensors")
    safetensors.numpy.save_file({n: t[1:].copy() for n, t in kept.items()}, bad / "evaluation.safetensors")
    with pytest.raises(HeadError, match="9 and 8 rows, 1 of them in one alone"):
        compare(good, bad, workspace=tmp_path)


def test_a_baseline_run_is_refused(good: Path, workshop: SimpleNamespace, tmp_path: Path) -> None:
    folder = another(workshop.head.run, tmp_path, "0003-baseline-x")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "stage": "baseline"}))
    with pytest.raises(HeadError, match="is a baseline run"):
        compare(good, folder, workspace=tmp_path)
    assert not (good / "evaluation.json").exists()  # no look at test was spent on the other


def test_the_sentence_says_what_the_figures_mean() -> None:
    told = verdict(("a", "b"), PairedDifference(0.02, 0.005, 0.035, 10, 30, 0.0022, 1000))
    assert told == (
        "b is better than a by 2.0 points of accuracy (95 % interval 0.5 to 3.5): "
        "chance alone gives so large a difference with p = 0.0022"
    )
    turned = verdict(("a", "b"), PairedDifference(-0.02, -0.035, -0.005, 30, 10, 0.0022, 1000))
    assert turned == told.replace("b is better than a", "a is better than b")
    open_ = verdict(("a", "b"), PairedDifference(0.002, -0.01, 0.014, 19, 21, 0.87, 1000))
    assert open_.startswith("no difference can be told: 40 of 1,000 test images are right in one of the two alone")


def test_four_images_mended_and_none_broken_are_said_so_and_prove_nothing() -> None:
    before = np.arange(269) >= 8
    after = before.copy()
    after[:4] = True
    found = paired_difference(before, after)
    assert chance(("a", "b"), found) == (
        "b beside a: 4 mended, none broken of 269; 95 % interval −0.2 to +3.5 points, McNemar's mid-p = 0.062"
    )
    assert verdict(("a", "b"), found).startswith("no difference can be told: 4 of 269 test images")
