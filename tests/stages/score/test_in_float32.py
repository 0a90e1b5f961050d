"""A head on features of another precision is scored on the network in float32, too: that is what is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import evaluate, export, extract, open_cache, predict, train
from pipeline.heads.artifact import load_head
from pipeline.runs import network

Quick = dict[str, Any]


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory, quick: Quick) -> SimpleNamespace:
    """A head on features in bfloat16, of images that lie beside."""
    folder = tmp_path_factory.mktemp("made")
    mine = Path(shutil.copytree(photos, folder / "mine"))
    options = {**quick, "precision": "bfloat16", "force_precision": True, "test_fraction": 0.4}
    cache = extract(mine, workspace=folder, **options).cache
    return SimpleNamespace(folder=folder, mine=mine, cache=cache, run=train(cache, C=1e4, workspace=folder).run)


@pytest.fixture
def own(made: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """A copy that a test may change."""
    folder = Path(shutil.copytree(made.folder, tmp_path / "own"))
    return SimpleNamespace(folder=folder, mine=folder / "mine", run=folder / "runs" / made.run.name)


def test_both_networks_are_scored_once_with_the_paired_interval(
    own: SimpleNamespace, quick: Quick, listener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = evaluate(own.run, workspace=own.folder, watch=listener)
    assert found.float32 is not None
    # By another way: features of the same images in float32, and the head's own arithmetic.
    whole = extract(own.mine, workspace=own.folder / "other", test_fraction=0.4, **quick)
    rows = open_cache(whole.cache).split("test")
    head = load_head(own.run)
    right = head.logits(np.asarray(rows.X)).argmax(axis=1) == rows.y
    cached = open_cache(next((own.folder / "features").glob("*.h5"))).split("test")
    before = head.logits(np.asarray(cached.X)).argmax(axis=1) == cached.y
    assert found.float32.accuracy == right.mean() and found.test["accuracy"] == before.mean()
    d = found.float32.difference
    assert (d.n, d.c, d.b) == (len(right), (right & ~before).sum(), (before & ~right).sum())
    assert f"the network in float32, as predict and export run it: accuracy {100 * right.mean():.1f} %" in listener.text
    assert "the network in float32 beside the features in bfloat16: " in listener.text

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("its images went through the network twice")

    monkeypatch.setattr(network.Classifier, "__call__", never)
    assert evaluate(own.run, workspace=own.folder).float32 == found.float32
    told = json.loads((own.run / "evaluation.json").read_text(encoding="utf-8"))
    assert told["float32"]["difference"]["n"] == len(right)
    assert found.to_json()["float32"]["accuracy"] == right.mean()


def test_where_the_images_are_gone_it_is_told_and_the_figures_stay(
    own: SimpleNamespace, made: SimpleNamespace, listener: Any
) -> None:
    away = own.mine.rename(own.folder / "away")
    shutil.rmtree(made.mine)  # nor where they lay when the cache was made
    found = evaluate(own.run, workspace=own.folder, watch=listener)
    assert found.float32 is None
    assert "the network in float32, which predict and export run, was not scored: the images of" in listener.text
    assert found.test["n"] > 0
    away.rename(own.mine)
    again = evaluate(own.run, workspace=own.folder)
    assert again.float32 is not None and again.test == found.test and again.scored == found.scored
    shutil.copytree(own.mine, made.mine)


def test_what_is_used_names_the_network_that_was_scored(own: SimpleNamespace, listener: Any) -> None:
    image = own.mine / "ant" / "00.png"
    predict(own.run, [image], workspace=own.folder, watch=listener)
    assert f"not scored so yet (`pipeline evaluate {own.run.name}`)" in listener.text
    found = evaluate(own.run, workspace=own.folder)
    assert found.float32 is not None
    exported = export(own.run, out=own.folder / "m.safetensors", workspace=own.folder, watch=listener)
    here = f"on test {100 * found.float32.accuracy:.1f} % of accuracy, on features in bfloat16"
    assert here in listener.text
    card = exported.card.read_text(encoding="utf-8")
    assert f"accuracy {100 * found.float32.accuracy:.1f} %" in card and "by this network" in card
    assert "learned from features in bfloat16" in card


def test_a_card_says_where_its_figures_are_not_those_of_its_network(own: SimpleNamespace) -> None:
    evaluate(own.run, workspace=own.folder)
    path = own.run / "evaluation.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    del told["float32"]
    path.write_text(json.dumps(told), encoding="utf-8")
    exported = export(own.run, out=own.folder / "m.safetensors", workspace=own.folder)
    assert "Of the head on features in bfloat16, not of this network." in exported.card.read_text(encoding="utf-8")
