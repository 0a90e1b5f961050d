"""The wrong images by name, and the confusion matrix as a picture: of val, unless test is asked for."""

from __future__ import annotations

import csv
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
from PIL import Image

from pipeline import evaluate, open_cache, search
from pipeline.base.errors import ConfigError, HeadError
from pipeline.cli.main import main
from pipeline.heads.artifact import load_head


@pytest.fixture
def run(workshop: SimpleNamespace, tmp_path: Path) -> Path:
    """The workshop's head, not evaluated yet, with two of its classes interchanged and a temperature: mostly wrong."""
    from pipeline.heads.artifact import save_head

    folder = tmp_path / "runs" / "0001-train-copy"
    shutil.copytree(workshop.head.run, folder, ignore=shutil.ignore_patterns("evaluation*"))
    head = load_head(folder)
    tensors = {name: np.ascontiguousarray(tensor[[1, 0, 2]]) for name, tensor in head.tensors.items()}
    save_head(folder, type(head)(head.kind, tensors, head.classes, head.key, head.dim, temperature=2.0))
    return folder


def expected(run: Path, cache: Any, split: str) -> list[tuple[str, str, str, float]]:
    """By plain torch: id, true, predicted and probability of the wrong ones, the most confident first."""
    layer = torch.nn.Linear(cache.features.shape[1], 3)
    layer.load_state_dict(safetensors.torch.load_file(run / "head.safetensors"))
    rows = cache.split(split)
    with torch.inference_mode():
        p = torch.softmax(layer(torch.from_numpy(np.array(rows.X))).double() / 2.0, dim=1)
    top = p.max(dim=1)
    found = [
        (item.decode(), cache.classes[y], cache.classes[guess], probability)
        for item, y, guess, probability in zip(rows.ids, rows.y.tolist(), top[1].tolist(), top[0].tolist(), strict=True)
        if y != guess
    ]
    return sorted(found, key=lambda one: -one[3])


def test_wrong_images_are_of_val_by_default_most_confident_first_and_can_be_opened(
    run: Path, workshop: SimpleNamespace, tmp_path: Path, listener: Any
) -> None:
    file = tmp_path / "new" / "wrong.csv"
    found = evaluate(run, errors=file, workspace=tmp_path, watch=listener)
    cache = open_cache(workshop.cache.cache)
    wanted = expected(run, cache, "val")
    assert found.split == "val" and found.errors == file and len(wanted) > 3
    with file.open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert list(rows[0]) == ["path", "true", "predicted", "probability"]
    for row, wrong, (item, true, predicted, probability) in zip(rows, found.wrong or (), wanted, strict=True):
        with Image.open(row["path"]) as image:
            assert image.size == (40, 40) and row["path"].endswith("/" + item)
        assert (row["true"], row["predicted"]) == (true, predicted) == (wrong.true, wrong.predicted)
        assert float(row["probability"]) == pytest.approx(probability, abs=2e-5) == wrong.probability
    assert f"{len(rows)} of {found.test['n']} images are wrong -> {file}" in listener.text
    assert "Wrong, most confident first: val" in listener.text
    assert not (tmp_path / "tested.jsonl").exists() and not (run / "evaluation.json").exists()


def test_those_of_test_are_asked_for_and_are_one_look(run: Path, workshop: SimpleNamespace, tmp_path: Path) -> None:
    for _ in range(2):
        found = evaluate(run, split="test", errors=tmp_path / "w.jsonl", workspace=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "w.jsonl").read_text().splitlines()]
    assert lines == [vars(one) for one in found.wrong or ()]
    wanted = expected(run, open_cache(workshop.cache.cache), "test")
    assert [(Path(one["path"]).name, one["true"]) for one in lines] == [(Path(i).name, t) for i, t, _, _ in wanted]
    assert len((tmp_path / "tested.jsonl").read_text().splitlines()) == 1
    assert evaluate(run, workspace=tmp_path).scored == found.scored


def test_an_own_split_is_scored_without_a_look_at_test(run: Path, workshop: SimpleNamespace, tmp_path: Path) -> None:
    found = evaluate(run, split="val", workspace=tmp_path)
    named = evaluate(run, data=str(workshop.cache.cache), split="val", workspace=tmp_path)
    assert (found.test, found.cache, found.file.name) == (named.test, None, "evaluation-val.json")
    assert json.loads(found.file.read_text())["split"] == "val"
    assert not (tmp_path / "tested.jsonl").exists()
    assert evaluate(run, split="all", workspace=tmp_path).scored_before == 0
    assert len((tmp_path / "tested.jsonl").read_text().splitlines()) == 1


def test_rows_that_a_head_has_learned_from_are_scored_by_heads_that_left_them_out(
    workshop: SimpleNamespace, tmp_path: Path, listener: Any
) -> None:
    found = search(workshop.cache.cache, Cs=(1e-3, 1e-2), evaluate=False, workspace=tmp_path)
    kept = safetensors.numpy.load_file(found.run / "held_out.safetensors")
    val = np.isin(kept["rows"], open_cache(workshop.cache.cache).rows("val"))
    scored = evaluate(found.run, errors=tmp_path / "w.csv", workspace=tmp_path, watch=listener)
    assert scored.test["accuracy"] == float((kept["logits"][val].argmax(axis=1) == kept["y"][val]).mean())
    assert scored.folds == 5 and "has learned from the val rows: they are scored by 5 heads" in listener.text
    assert json.loads(scored.file.read_text())["folds"] == 5
    everything = evaluate(found.run, split="all", workspace=tmp_path)
    assert everything.folds == 5 and everything.test["n"] == 60
    (found.run / "held_out.safetensors").write_bytes(b"x")
    with pytest.raises(HeadError, match="held_out.safetensors is damaged"):
        evaluate(found.run, split="val", workspace=tmp_path)
    (found.run / "held_out.safetensors").unlink()
    assert evaluate(found.run, split="val", workspace=tmp_path, watch=listener).folds is None
    assert "has learned from these val rows: on new images it is wrong more often" in listener.text


def test_a_head_that_has_not_learned_from_val_scores_it_itself(
    workshop: SimpleNamespace, tmp_path: Path, listener: Any
) -> None:
    found = search(workshop.cache.cache, Cs=(1e-3, 1e-2), refit=False, evaluate=False, workspace=tmp_path)
    assert evaluate(found.run, split="val", workspace=tmp_path, watch=listener).folds is None
    assert "has learned from" not in listener.text


def test_nothing_wrong_is_a_list_without_rows(workshop: SimpleNamespace, tmp_path: Path, listener: Any) -> None:
    run = shutil.copytree(workshop.head.run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation*"))
    assert workshop.head.val == 1.0
    found = evaluate(run, errors=tmp_path / "w.csv", workspace=tmp_path, watch=listener)
    assert found.wrong == () and (tmp_path / "w.csv").read_text() == "path,true,predicted,probability\n"
    assert f"0 of {found.test['n']} images are wrong" in listener.text


def test_paths_are_told_where_the_images_are_gone(
    run: Path, workshop: SimpleNamespace, tmp_path: Path, listener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.images.Files.there", lambda self: False)
    found = evaluate(run, errors=tmp_path / "w.csv", workspace=tmp_path, watch=listener)
    assert found.wrong and "any more: paths are those of then" in listener.text


def test_the_picture_is_of_the_figures_that_are_told(run: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["evaluate", str(run), "--workspace", str(tmp_path), "--json"]
    assert main([*words, "--confusion", str(tmp_path / "c.png"), "--errors", str(tmp_path / "w.csv")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["split"] == "val" and told["confusion"] == str(tmp_path / "c.png")
    assert len(told["wrong"]) == told["test"]["n"] - sum(told["test"]["confusion"][i][i] for i in range(3))
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    evaluate(run, confusion=tmp_path / "c.svg", workspace=tmp_path)
    text = (tmp_path / "c.svg").read_text()
    assert "0001-train-copy, val: 9 images" in text and "bee" in text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"errors": "w.txt"}, "errors='w.txt' must end in .csv or .jsonl"),
        ({"confusion": "c.jpg"}, "confusion='c.jpg' must end in .png or .svg"),
        ({"data": "latest", "images": "photos"}, "give one of them"),
    ],
)
def test_mistakes_are_told_before_anything_is_scored(
    run: Path, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        evaluate(run, split="test", workspace=tmp_path, **options)
    assert not (tmp_path / "tested.jsonl").exists()


def test_a_file_that_cannot_be_written_costs_no_look(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="cannot write in .*file"):
        evaluate(run, split="test", errors=tmp_path / "file" / "w.csv", workspace=tmp_path)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match=r"folder.csv is a folder: give the name of a file"):
        evaluate(run, split="test", errors=tmp_path / "folder.csv", workspace=tmp_path)
    assert not (tmp_path / "tested.jsonl").exists()
