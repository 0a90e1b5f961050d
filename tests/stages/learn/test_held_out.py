"""Out-of-fold logits against heads fitted one by one, and what becomes of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from sklearn.metrics.pairwise import cosine_similarity

from pipeline import extract, open_cache, predict, search
from pipeline.heads.artifact import load_head
from pipeline.heads.exact.path import fit_exact
from pipeline.heads.folds import fewest_groups, fold_numbers
from pipeline.heads.problem import Problem
from pipeline.heads.scores.calibration import fit_temperature
from pipeline.store.rows import load_rows

Quick = dict[str, Any]
CS = (1e-2, 1.0)


def kept(run: Path) -> SimpleNamespace:
    return SimpleNamespace(**safetensors.numpy.load_file(run / "held_out.safetensors"))


def test_each_row_is_scored_by_a_head_that_did_not_learn_from_its_fold(
    workshop: SimpleNamespace, tmp_path: Path
) -> None:
    found = search(workshop.cache.cache, Cs=CS, evaluate=False, workspace=tmp_path)
    cache, held_out = open_cache(workshop.cache.cache), kept(found.run)
    np.testing.assert_array_equal(held_out.rows, np.concatenate([cache.rows("train"), cache.rows("val")]))
    X, y = np.array(cache.features)[held_out.rows], cache.labels[held_out.rows]
    np.testing.assert_array_equal(held_out.y, y)
    (record,) = [load_head(found.run)]
    C = next(c for c in CS if np.allclose(fit_exact(Problem(X, y, 3), [c])[0].weight, record.tensors["weight"]))
    for number in range(5):
        out = held_out.fold == number
        whole = Problem(X, y, 3, folds=np.where(out, 0, 1))
        fit = next(f for f in fit_exact(whole, [C]) if f.fold == 0)
        np.testing.assert_allclose(
            held_out.logits[out], X[out].astype(np.float32) @ fit.weight.T + fit.bias, rtol=0, atol=2e-3
        )
        near = 1 - cosine_similarity(X[out].astype(float), X[~out].astype(float)).max(axis=1)
        np.testing.assert_allclose(held_out.distance[out], near, atol=1e-5)
    assert record.temperature == found.temperature == fit_temperature(held_out.logits, y)


def test_without_a_refit_val_is_what_the_head_did_not_learn_from(workshop: SimpleNamespace, tmp_path: Path) -> None:
    found = search(workshop.cache.cache, Cs=CS, refit=False, evaluate=False, workspace=tmp_path)
    val, held_out = load_rows(open_cache(workshop.cache.cache), "val"), kept(found.run)
    np.testing.assert_allclose(held_out.logits, load_head(found.run).logits(val.X))
    assert found.temperature_from == "val" and found.temperature == fit_temperature(held_out.logits, val.y)


def test_minibatch_heads_are_held_out_alike(workshop: SimpleNamespace, tmp_path: Path) -> None:
    found = search(workshop.cache.cache, space="mlp", trials=2, epochs=3, evaluate=False, workspace=tmp_path)
    held_out = kept(found.run)
    assert sorted(set(held_out.fold.tolist())) == list(range(5)) and np.isfinite(held_out.logits).all()
    assert found.temperature == fit_temperature(held_out.logits, held_out.y) != 1
    # A head that had learned from the rows would be surer of them.
    own = load_head(found.run).logits(np.array(open_cache(workshop.cache.cache).features)[held_out.rows])
    assert not np.allclose(own, held_out.logits)


def test_copies_of_an_image_are_held_out_together(photos: Path, tmp_path: Path, quick: Quick) -> None:
    folder = tmp_path / "copies"
    shutil.copytree(photos, folder)
    for path in sorted(folder.rglob("*.png")):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    made = extract(folder, workspace=tmp_path, val_fraction=0.2, test_fraction=0, **quick)
    found = search(made.cache, Cs=CS, evaluate=False, workspace=tmp_path)
    cache, held_out = open_cache(made.cache), kept(found.run)
    folds: dict[bytes, set[int]] = {}
    for row, fold in zip(held_out.rows.tolist(), held_out.fold.tolist(), strict=True):
        folds.setdefault(cache.digests[row].tobytes(), set()).add(fold)
    assert len(folds) * 2 == len(held_out.rows) and all(len(found) == 1 for found in folds.values())


@pytest.mark.parametrize("conflicts", [0.0, 0.1])
def test_images_stay_whole_and_no_class_is_left_out_of_a_fold(conflicts: float) -> None:
    """Copies in numbers that differ, some of them under another class."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        images = np.arange(int(rng.integers(8, 30)))
        own = rng.integers(0, 3, len(images))
        at = np.repeat(images, rng.choice([1, 2, 5, 20], len(images)))
        y = np.where(rng.random(len(at)) < conflicts, rng.integers(0, 3, len(at)), own[at])
        order = rng.permutation(len(at))
        at, y = at[order], y[order]
        fewest = fewest_groups(y, at)
        if fewest < 2:
            continue
        folds = fold_numbers(y, at, min(5, fewest), 0)
        assert len(np.unique(np.stack([at, folds]), axis=1)[0]) == len(np.unique(at))
        for number in range(min(5, fewest)):
            assert set(y[folds == number]) == set(y[folds != number]) == set(y)


def test_predictions_are_as_sure_as_the_temperature_says(workshop: SimpleNamespace, tmp_path: Path) -> None:
    found = search(workshop.cache.cache, Cs=CS, evaluate=False, workspace=tmp_path)
    cache = open_cache(workshop.cache.cache)
    (told,) = predict(found.run, [sorted(workshop.photos.rglob("*.png"))[0]], workspace=tmp_path)
    row = next(i for i, name in enumerate(cache.ids) if told.path.endswith(name.decode()))
    logits = load_head(found.run).logits(np.array(cache.features[row : row + 1])).astype(float) / found.temperature
    share = np.exp(logits - logits.max())
    assert told.probability == pytest.approx(float(share.max() / share.sum()), abs=1e-4)


def test_a_class_of_one_image_leaves_probabilities_as_they_are(
    photos: Path, tmp_path: Path, quick: Quick, listener: Any
) -> None:
    folder = tmp_path / "few"
    shutil.copytree(photos, folder)
    for path in sorted((folder / "ant").glob("*.png"))[1:]:
        path.unlink()
    made = extract(folder, workspace=tmp_path, val_fraction=0.3, test_fraction=0, **quick)
    found = search(made.cache, Cs=CS, evaluate=False, workspace=tmp_path, watch=listener)
    assert (found.temperature, found.temperature_from) == (1.0, None)
    assert "no temperature can be fitted" in listener.text and not (found.run / "held_out.safetensors").exists()
