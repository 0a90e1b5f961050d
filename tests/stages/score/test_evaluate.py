"""Evaluation and baselines on one small cache: every figure, once; other caches; floors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from sklearn.metrics import roc_auc_score

from pipeline import baseline, compare, evaluate, extract, open_cache
from pipeline.base import machine
from pipeline.base.errors import CacheError, ConfigError, DataError, HeadError
from pipeline.base.workspace import Workspace
from pipeline.heads.artifact import load_head
from pipeline.heads.baselines import BASELINES
from pipeline.heads.scores.calibration import expected_calibration_error, fit_temperature
from pipeline.runs import network
from pipeline.stages.learn.baseline import pixel_statistics
from pipeline.stages.learn.settings import NAMES
from pipeline.stages.score.evaluate import evaluated_network

Quick = dict[str, Any]


def unscored(run: Path, root: Path, name: str = "0001-train-copy", **cache: Any) -> Path:
    """A copy of a run that has not been evaluated yet; ``cache``: what its record says of its cache instead."""
    folder = root / "runs" / name
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("evaluation*"))
    config = json.loads((folder / "config.json").read_text())
    config["cache"].update(cache)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def run(workshop: SimpleNamespace, tmp_path: Path) -> Path:
    """The workshop's head, not evaluated yet."""
    return unscored(workshop.head.run, tmp_path)


@pytest.fixture(scope="module")
def others(photos: Path, tmp_path_factory: pytest.TempPathFactory, quick: Quick) -> SimpleNamespace:
    """Caches of the workshop's key: two of its classes without splits, and one with a class that it does not have."""
    root = tmp_path_factory.mktemp("others")
    for i in range(6):
        for name, drawn_as in (
            ("bee", "cat"),
            ("cat", "bee"),
        ):
            (root / "two" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(photos / drawn_as / f"{i:02d}.png", root / "two" / name)
    (root / "three" / "dog").mkdir(parents=True)
    for name in ("ant", "dog"):
        (root / "three" / name).mkdir(exist_ok=True)
        for i in range(4):
            shutil.copy(photos / "ant" / f"{i + (name == 'dog') * 4:02d}.png", root / "three" / name)
    options = {**quick, "dtype": "float32", "val_fraction": 0, "test_fraction": 0, "workspace": root}
    made = {name: extract(root / name, **options).cache for name in ("two", "three")}
    return SimpleNamespace(root=root, **made)


# -- the run's own test split -----------------------------------------------------------------------------------------


def test_a_network_that_is_no_run_yet_is_scored_once_with_the_figures_of_a_run(
    run: Path, workshop: SimpleNamespace, tmp_path: Path
) -> None:
    cache, head, asked = open_cache(workshop.cache.cache), load_head(run), []

    def logits_of(split: str) -> np.ndarray:
        asked.append(split)
        return head.logits(np.asarray(cache.split(split).X))

    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "model.safetensors").write_bytes(b"a network")
    for _ in range(2):
        found = evaluated_network(tmp_path / "draft", cache, logits_of, head.temperature, Workspace(tmp_path))
        np.testing.assert_array_equal(found.logits, logits_of("test"))
    assert asked == ["test", "test", "test"]
    kept = json.loads((tmp_path / "draft" / "evaluation.json").read_text())
    assert kept["test"] == evaluate(run, workspace=tmp_path).test


def test_every_figure_is_kept_beside_the_run(run: Path, workshop: SimpleNamespace, tmp_path: Path) -> None:
    found = evaluate(run, workspace=tmp_path)
    kept = json.loads((run / "evaluation.json").read_text())
    assert kept["test"] == json.loads(json.dumps(found.test, allow_nan=False))
    test, cache = found.test, open_cache(workshop.cache.cache)
    rows, head = cache.split("test"), load_head(workshop.head.run)
    logits = head.logits(np.array(rows.X)).astype(float)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert test["auroc"] == pytest.approx(roc_auc_score(rows.y, p, multi_class="ovr"))
    assert set(test["intervals"]) == {"accuracy", "balanced_accuracy", "macro_f1"}
    low, high = test["intervals"].pop("accuracy")
    assert low <= test["accuracy"] <= high
    assert test["intervals"] == {"balanced_accuracy": None, "macro_f1": None}  # three images a class are too few
    assert test["ece_expected"] == pytest.approx(expected_calibration_error(p.max(axis=1)), rel=1e-12)
    assert test["calibrated"]["ece_expected"] > 0


def test_the_runs_temperature_which_val_gave_is_applied_to_test(
    run: Path, workshop: SimpleNamespace, tmp_path: Path
) -> None:
    scaled = evaluate(run, workspace=tmp_path).test["calibrated"]
    cache, head = open_cache(workshop.cache.cache), load_head(workshop.head.run)
    val, test = cache.split("val"), cache.split("test")
    assert scaled["temperature"] == fit_temperature(head.logits(np.array(val.X)), val.y)
    logits = torch.from_numpy(head.logits(np.array(test.X))).double() / scaled["temperature"]
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(test.y))
    assert scaled["log_loss"] == pytest.approx(float(loss))


def test_the_test_rows_logits_are_kept(run: Path, workshop: SimpleNamespace, tmp_path: Path) -> None:
    evaluate(run, workspace=tmp_path)
    kept = safetensors.numpy.load_file(run / "evaluation.safetensors")
    cache = open_cache(workshop.cache.cache)
    layer = torch.nn.Linear(cache.features.shape[1], 3)
    layer.load_state_dict(safetensors.torch.load_file(run / "head.safetensors"))
    np.testing.assert_array_equal(kept["rows"], cache.rows("test"))
    np.testing.assert_array_equal(kept["y"], cache.split("test").y)
    with torch.inference_mode():
        expected = layer(torch.from_numpy(np.array(cache.split("test").X)))
    np.testing.assert_allclose(kept["logits"], expected, rtol=1e-4, atol=1e-4)
    assert kept["logits"].dtype == np.float32


def test_figures_from_before_there_were_more_are_shown_as_they_are(run: Path, tmp_path: Path, listener: Any) -> None:
    per_class = [{"name": n, "precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 3} for n in ("ant", "bee", "cat")]
    test = {
        "n": 9, "accuracy": 1.0, "balanced_accuracy": 1.0, "macro_f1": 1.0, "log_loss": 0.1, "top5": None,
        "per_class": per_class, "confusion": [[3, 0, 0], [0, 3, 0], [0, 0, 3]],
    }  # fmt: skip
    old = json.dumps({"test": test, "seconds": 0.1, "scored": "2025-01-01T00:00:00Z"})
    (run / "evaluation.json").write_text(old)
    assert evaluate(run, workspace=tmp_path, watch=listener).scored == "2025-01-01T00:00:00Z"
    assert "accuracy 100.0 %" in listener.text
    assert "the test split is used once" in listener.text
    assert (run / "evaluation.json").read_text() == old


def test_a_damaged_evaluation_is_named(run: Path, tmp_path: Path) -> None:
    (run / "evaluation.json").write_text('{"test": ')
    with pytest.raises(HeadError, match=r"evaluation.json: it is not JSON .*bring it back"):
        evaluate(run, workspace=tmp_path)


def test_a_fine_tuned_network_has_the_same_figures_as_a_head(workshop: SimpleNamespace, tmp_path: Path) -> None:
    folder = unscored(workshop.tuned.run, tmp_path, "0001-finetune-copy")
    test = evaluate(folder, workspace=workshop.root).test
    assert test["calibrated"]["temperature"] > 0
    assert safetensors.numpy.load_file(folder / "evaluation.safetensors")["logits"].shape == (9, 3)


@pytest.fixture
def ran_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices of the networks that ran; ``cuda`` is PyTorch's meta device here, where there are shapes alone."""
    seen: list[str] = []

    def forward(net: torch.nn.Module, _: Any, pixels: np.ndarray, __: Any) -> tuple[np.ndarray, np.ndarray]:
        seen.extend({tensor.device.type for tensor in [*net.parameters(), *net.buffers()]})
        return np.zeros((len(pixels), 512), np.float32), np.zeros((len(pixels), 3), np.float32)

    monkeypatch.setattr("pipeline.stages.score.answers.resolve_device", {"cuda": "meta", "cpu": "cpu"}.__getitem__)
    monkeypatch.setattr(network, "network_forward", forward)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(("device", "place"), [("cuda", "meta"), ("cpu", "cpu")])
@pytest.mark.parametrize("verb", ["evaluate", "evaluate --data", "compare"])
def test_a_fine_tuned_network_is_scored_on_the_device_that_was_asked_for(
    workshop: SimpleNamespace, tmp_path: Path, ran_on: list[str], verb: str, device: str, place: str
) -> None:
    folder = unscored(workshop.tuned.run, tmp_path, "0001-finetune-copy")
    if verb == "evaluate":
        evaluate(folder, device=device, workspace=tmp_path)
    elif verb == "compare":
        compare(unscored(workshop.head.run, tmp_path), folder, device=device, workspace=tmp_path)
    else:
        evaluate(folder, data=str(workshop.cache.cache), split="val", device=device, workspace=tmp_path)
    assert ran_on == [place]


def test_a_device_that_is_not_there_is_told_before_a_look_is_put_on_record(
    workshop: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_has_driver", lambda: False)
    folder = unscored(workshop.tuned.run, tmp_path, "0001-finetune-copy")
    with pytest.raises(ConfigError, match="device='cuda': PyTorch sees no GPU here; take device='cpu'"):
        evaluate(folder, device="cuda", workspace=tmp_path)
    assert not (tmp_path / "tested.jsonl").exists() and not (folder / "evaluation.json").exists()


def test_a_head_from_before_temperatures_were_kept_has_none(run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "head.json").read_text())
    del record["temperature"]
    (run / "head.json").write_text(json.dumps(record))
    assert evaluate(run, workspace=tmp_path).test["calibrated"] is None


# -- another cache ----------------------------------------------------------------------------------------------------


def test_classes_of_another_cache_are_matched_by_name(
    run: Path, others: SimpleNamespace, tmp_path: Path, listener: Any
) -> None:
    """Its class 0 is the head's class 1."""
    found = evaluate(run, data=str(others.two), workspace=tmp_path, watch=listener)
    cache, head = open_cache(others.two), load_head(run)
    guess = [head.classes[c] for c in head.logits(np.array(cache.split("train").X)).argmax(axis=1)]
    names = [cache.classes[y] for y in cache.split("train").y]
    assert cache.classes == ("bee", "cat")
    assert found.test["accuracy"] == np.mean([a == b for a, b in zip(guess, names, strict=True)])
    assert found.split == "all"
    assert found.test["n"] == 12
    assert [c["support"] for c in found.test["per_class"]] == [0, 6, 6]
    assert "all rows, class by class" in listener.text


def test_figures_on_another_cache_leave_the_test_split_sealed(
    run: Path, others: SimpleNamespace, tmp_path: Path
) -> None:
    found = evaluate(run, data=str(others.two), workspace=tmp_path)
    assert found.file == run / f"evaluation-{others.two.stem}.json"
    assert [p.name for p in run.glob("evaluation*")] == [found.file.name]
    assert json.loads(found.file.read_text())["test"]["n"] == 12


def test_a_class_that_the_head_does_not_know_is_named(run: Path, others: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(HeadError, match="does not know the class 'dog': its own are 'ant', 'bee', 'cat'"):
        evaluate(run, data=str(others.three), workspace=tmp_path)


def test_a_cache_of_another_key_is_refused_with_the_difference(
    run: Path, photos: Path, tmp_path: Path, quick: Quick
) -> None:
    made = extract(photos, workspace=tmp_path, **{**quick, "dtype": "float32", "image_size": 48})
    with pytest.raises(CacheError, match="settings fingerprint than 0001-train-copy .*transform.crop: 32 -> 48"):
        evaluate(run, data=str(made.cache), workspace=tmp_path)


def test_images_that_the_run_has_learned_from_are_told_of(
    run: Path, workshop: SimpleNamespace, others: SimpleNamespace, tmp_path: Path, listener: Any
) -> None:
    cache = open_cache(workshop.cache.cache)
    learned = {cache.ids[row] for split in ("train", "val") for row in cache.rows(split).tolist()}
    shared = sum(f"{name}/{i:02d}.png".encode() in learned for name in ("bee", "cat") for i in range(6))
    evaluate(run, data=str(others.two), workspace=tmp_path, watch=listener)
    assert 0 < shared < 12
    assert f"{shared} of these 12 images are among the train and val images" in listener.text


def test_its_own_test_rows_under_another_name_are_its_test_split(
    run: Path, workshop: SimpleNamespace, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(workshop.cache.cache, tmp_path / "other.h5"))
    found = evaluate(run, data=str(copy), workspace=tmp_path)
    assert found.file == run / "evaluation.json"
    assert evaluate(run, workspace=tmp_path).scored == found.scored


def test_other_rows_of_its_own_cache_can_be_asked_for(run: Path, workshop: SimpleNamespace, tmp_path: Path) -> None:
    found = evaluate(run, data=str(workshop.cache.cache), split="val", workspace=tmp_path)
    assert found.test["accuracy"] == workshop.head.val


def test_a_gone_cache_costs_the_look_for_known_images_and_is_told_of(
    workshop: SimpleNamespace, others: SimpleNamespace, tmp_path: Path, listener: Any
) -> None:
    folder = unscored(workshop.head.run, tmp_path, path=str(tmp_path / "gone.h5"))
    evaluate(folder, data=str(others.two), workspace=tmp_path, watch=listener)
    assert "gone.h5" in listener.text


def test_rows_that_are_not_there_are_refused_with_those_that_are(
    run: Path, others: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(HeadError, match="no labelled val rows: choose split from train, all"):
        evaluate(run, data=str(others.two), split="val", workspace=tmp_path)


# -- baselines --------------------------------------------------------------------------------------------------------


def test_the_command_offers_the_baselines_that_there_are() -> None:
    assert NAMES == BASELINES


def test_floors_are_what_chance_and_plain_pixels_give(workshop: SimpleNamespace, tmp_path: Path) -> None:
    report = baseline(workshop.cache.cache, names=("ridge",), floors=True, test=True, workspace=tmp_path)
    assert [r["name"] for r in report.results] == ["ridge", "shuffled", "image-statistics"]
    ridge, shuffled, pixels = report.results
    assert ridge["test"] > 0.8
    assert shuffled["test"] < 0.8
    assert pixels["test"] == 1.0  # the classes are drawn in different colours
    assert (ridge["converged"], pixels["converged"]) == (None, True)
    assert json.loads((report.run / "metrics.json").read_text())["results"] == report.results


def test_image_statistics_need_the_images(
    photos: Path, workshop: SimpleNamespace, tmp_path: Path, quick: Quick
) -> None:
    mine = Path(shutil.copytree(photos, tmp_path / "mine"))
    made = extract(mine, workspace=workshop.root, out=tmp_path / "mine.h5", dtype="float32", **quick)
    shutil.rmtree(mine)
    with pytest.raises(DataError, match="not at"):
        baseline(made.cache, floors=True, workspace=tmp_path)


@pytest.mark.parametrize("size", [4, 10, 32])
def test_image_statistics_are_means_deviations_and_cell_means(size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, size, size), dtype=np.uint8)
    found = pixel_statistics(pixels)
    assert (found.shape, found.dtype) == ((3, 22), np.float32)
    edges = [0, size // 4, size // 2, 3 * size // 4, size]
    for image, row in zip(pixels.astype(float), found, strict=True):
        cells = [image[:, edges[i] : edges[i + 1], edges[j] : edges[j + 1]].mean() for i in range(4) for j in range(4)]
        np.testing.assert_allclose(row, [*(c.mean() for c in image), *(c.std() for c in image), *cells], rtol=1e-5)
