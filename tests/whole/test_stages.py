"""Stages two and three and prediction, on one small cache: train, search, baselines, evaluate, fine-tune, predict."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision

from pipeline import baseline, evaluate, extract, finetune, open_cache, predict, search, train
from pipeline.base.errors import CacheError, ConfigError, HeadError
from pipeline.base.workspace import Workspace
from pipeline.heads.artifact import load_head
from pipeline.runs import folder as run_folders
from tests.conftest import SMALL

Quick = dict[str, Any]


# -- train and search -------------------------------------------------------------------------------------------------


def test_a_head_run_holds_everything_needed_to_do_it_again(workshop: SimpleNamespace) -> None:
    folder = workshop.head.run
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["epochs"] == 5
    assert config["cache"]["key"] == workshop.cache.key
    assert config["provenance"]["trunk"]["name"] == SMALL
    assert config["versions"]["torch"] == torch.__version__.split("+")[0]
    assert config["hardware"]["cores"] >= 1
    trace = [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in trace] == [1, 2, 3, 4, 5]
    assert trace[0]["observation"]
    assert json.loads((folder / "metrics.json").read_text())["val"] == workshop.head.val


def test_the_saved_head_gives_the_val_figure_of_its_run(workshop: SimpleNamespace) -> None:
    """Standardisation is folded in, so plain torch on raw cached rows gives the same accuracy."""
    val = open_cache(workshop.cache.cache).split("val")
    layer = torch.nn.Linear(val.X.shape[1], 3)
    layer.load_state_dict(safetensors.torch.load_file(workshop.head.run / "head.safetensors"))
    with torch.inference_mode():
        found = layer(torch.from_numpy(np.array(val.X))).argmax(1).numpy()
    assert float((found == val.y).mean()) == workshop.head.val


@pytest.mark.parametrize("solver", ["exact", "adamw", "sgd"])
def test_the_same_seed_gives_the_same_bits(workshop: SimpleNamespace, tmp_path: Path, solver: str) -> None:
    heads = [train(workshop.cache.cache, solver=solver, seed=4, workspace=tmp_path) for _ in range(2)]
    blobs = [(h.run / "head.safetensors").read_bytes() for h in heads]
    assert blobs[0] == blobs[1]
    assert heads[0].run != heads[1].run


def test_search_takes_the_best_on_val_and_says_all(workshop: SimpleNamespace, tmp_path: Path) -> None:
    found = search(workshop.cache.cache, workspace=tmp_path)
    trials = [json.loads(line) for line in (found.run / "trials.jsonl").read_text().splitlines()]
    assert len(trials) == found.trials == 21
    assert found.val == trials[0]["val"]["accuracy"] == max(t["val"]["accuracy"] for t in trials)
    assert sorted(t["C"] for t in trials) == pytest.approx(np.logspace(-4, 1, 21).tolist())


def test_selection_never_sees_a_test_row(workshop: SimpleNamespace, tmp_path: Path) -> None:
    """With every test row and label poisoned, train and search give the same bits."""
    poisoned = tmp_path / "poisoned.h5"
    shutil.copy(workshop.cache.cache, poisoned)
    cache = open_cache(poisoned)
    rows = cache.rows("test")
    row_bytes, offset = cache.dim * 4, cache._structure.offset("/features")
    with poisoned.open("r+b") as file:
        for row in rows.tolist():
            file.seek(offset + row * row_bytes)
            file.write(np.full(cache.dim, 1e30, "<f4").tobytes())
    with pytest.raises(CacheError):
        open_cache(poisoned, verify=True)  # the poison is there
    # A block that also holds val rows is verified as a whole, so its checksum is renewed: only test rows are poison.
    _renew_checksums(poisoned)
    for stage, options in ((train, {}), (train, {"solver": "sgd", "epochs": 3}), (search, {"evaluate": False})):
        sound = stage(workshop.cache.cache, workspace=tmp_path, **options)
        sealed = stage(poisoned, workspace=tmp_path, **options)
        assert (sound.run / "head.safetensors").read_bytes() == (sealed.run / "head.safetensors").read_bytes()
        assert sound.val == sealed.val


def _renew_checksums(path: Path) -> None:
    import zlib

    cache = open_cache(path)
    size = cache.block_rows
    sums = [zlib.crc32(np.asarray(cache.features[b * size : (b + 1) * size]).tobytes()) for b in range(len(cache.done))]
    with path.open("r+b") as file:
        file.seek(cache._structure.offset("/blocks/crc32"))
        file.write(np.array(sums, "<u4").tobytes())


def test_search_without_val_rows_is_refused(photos: Path, tmp_path: Path, quick: Quick) -> None:
    made = extract(photos, workspace=tmp_path, val_fraction=0, **quick)
    with pytest.raises(HeadError, match="no val rows.*val_fraction"):
        search(made.cache, workspace=tmp_path)
    assert train(made.cache, workspace=tmp_path).val is None


def test_latest_and_names_and_numbers_find_caches_and_runs(workshop: SimpleNamespace) -> None:
    name = workshop.head.run.name
    for spec in (name, name.split("-")[0], str(int(name.split("-")[0])), workshop.head.run):
        assert run_folders.find_run(spec, Workspace(workshop.root)).folder.name == name
    assert run_folders.find_run("latest", Workspace(workshop.root)).folder == workshop.tuned.run
    with pytest.raises(HeadError, match=name):
        run_folders.find_run("nothing", Workspace(workshop.root))


def test_a_run_that_fails_leaves_no_folder(workshop: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(HeadError, match="diverged"):
        train(workshop.cache.cache, lr=1e30, solver="sgd", epochs=2, workspace=tmp_path)
    assert (
        [p for p in (tmp_path / "runs").iterdir() if not p.name.startswith(".")] == []
        if (tmp_path / "runs").exists()
        else True
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs is 0: it must be at least 1"),
        ({"lr": 0.0}, "lr is 0.0: it must be above 0"),
        ({"solver": "adam"}, "did you mean adamw"),
        ({"epochs": 3}, "epochs says nothing to solver='exact': leave it out, or give solver='adamw' or solver='sgd'"),
        ({"solver": "sgd", "C": 1.0}, "C says nothing to solver='sgd'"),
        ({"augment": True}, "unknown setting 'augment'"),
    ],
)
def test_wrong_settings_of_a_head_name_the_legal_ones(
    workshop: SimpleNamespace, tmp_path: Path, options: Quick, words: str
) -> None:
    """Image augmentation in stage two is not a setting."""
    with pytest.raises(ConfigError, match=words):
        train(workshop.cache.cache, workspace=tmp_path, **options)


# -- baselines and evaluation -----------------------------------------------------------------------------------------


def test_baselines_have_the_figures_that_are_asked_for(workshop: SimpleNamespace, tmp_path: Path) -> None:
    report = baseline(workshop.cache.cache, test=True, workspace=tmp_path)
    assert [r["name"] for r in report.results] == [
        *("majority", "centroid", "cosine-centroid", "knn10", "knn20", "knn100", "knn200", "ridge", "logreg")
    ]
    majority = report.results[0]
    assert majority["val"] == majority["test"] == pytest.approx(1 / 3)
    for r in report.results:
        assert set(r) >= {"name", "val", "test", "seconds"}
    assert report.results[-1]["test"] > 0.8


def test_the_test_split_is_scored_once_and_as_scikit_learn_scores_it(workshop: SimpleNamespace) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    rows = open_cache(workshop.cache.cache).split("test")
    predicted = load_head(workshop.head.run).logits(np.array(rows.X)).argmax(1)
    assert workshop.test.test["accuracy"] == accuracy_score(rows.y, predicted)
    assert workshop.test.test["macro_f1"] == pytest.approx(f1_score(rows.y, predicted, average="macro"), abs=1e-12)
    assert workshop.test.test["n"] == 9
    again = evaluate(workshop.head.run, workspace=workshop.root)
    assert again.scored == workshop.test.scored


def test_a_run_whose_cache_has_changed_is_refused(photos: Path, tmp_path: Path, quick: Quick) -> None:
    mine = Path(shutil.copytree(photos, tmp_path / "mine"))
    made = extract(mine, workspace=tmp_path, out=tmp_path / "c.h5", **quick)
    head = train(made.cache, workspace=tmp_path)
    (mine / "ant" / "00.png").unlink()
    extract(mine, workspace=tmp_path, out=tmp_path / "c.h5", **quick)
    with pytest.raises(CacheError, match="have changed since"):
        evaluate(head.run, workspace=tmp_path)
    (tmp_path / "c.h5").unlink()
    extract(mine, workspace=tmp_path, out=tmp_path / "c.h5", **{**quick, "image_size": 48})
    with pytest.raises(CacheError, match="transform.crop: 32 -> 48"):
        evaluate(head.run, workspace=tmp_path)


def test_a_head_of_another_trunks_cache_is_refused(workshop: SimpleNamespace, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(workshop.head.run, tmp_path / "runs" / "0001-train-x"))
    record = json.loads((folder / "head.json").read_text())
    record["key"] = "0" * 64
    (folder / "head.json").write_text(json.dumps(record))
    with pytest.raises(HeadError, match="000000"):
        finetune(folder, workspace=workshop.root)


# -- prediction -------------------------------------------------------------------------------------------------------


def test_predictions_are_the_heads_probabilities_of_the_cached_rows(workshop: SimpleNamespace) -> None:
    cache = open_cache(workshop.cache.cache)
    paths = [workshop.photos / os.fsdecode(i) for i in cache.ids[:20]]
    found = predict(workshop.head.run, paths, top=3, workspace=workshop.root)
    logits = torch.from_numpy(load_head(workshop.head.run).logits(np.array(cache.features[:20])))
    assert workshop.head.temperature != 1 and workshop.head.temperature_from == "val"
    expected = (logits.double() / workshop.head.temperature).softmax(1)
    assert [p.class_name for p in found] == [cache.classes[c] for c in expected.argmax(1)]
    assert [p.probability for p in found] == pytest.approx(expected.max(1).values.tolist(), abs=1e-4)
    for p in found:
        assert sum(q for _, q in p.top) == pytest.approx(1)
        assert set(p.to_json()) == {"path", "class", "probability", "top"}


def test_weights_that_have_changed_are_refused(photos: Path, tmp_path: Path, resnet: Quick) -> None:
    """The head is not put on another trunk without a word."""
    from pipeline.base.errors import WeightsError

    def save(seed: int) -> None:
        torch.manual_seed(seed)
        torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "w.pth")

    save(0)
    made = extract(photos, workspace=tmp_path, **{**resnet, "weights": str(tmp_path / "w.pth")})
    head = train(made.cache, workspace=tmp_path)
    save(1)
    with pytest.raises(WeightsError, match="have changed"):
        predict(head.run, sorted(photos.rglob("*.png"))[0], workspace=tmp_path)
