"""A workspace that has moved, or is somebody else's: runs, caches, images and weights are found again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from pipeline import compare, evaluate, export, extract, finetune, open_cache, predict, train, verify
from pipeline.base.errors import CacheError, ConfigError, PipelineError, WeightsError
from pipeline.base.watch import Watch
from pipeline.trunk.surgery import build
from tests.conftest import QUICK, SMALL


class Listener(Watch):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def project(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, a file of weights, a workspace with a cache and a run: all below one folder."""
    root = tmp_path_factory.mktemp("before") / "project"
    shutil.copytree(photos, root / "photos")
    weights = build(SMALL, num_classes=1000, image_size=32, seed=3).state_dict()
    safetensors.torch.save_file(weights, root / "mine.safetensors")
    made = extract(root / "photos", **{**QUICK, "weights": root / "mine.safetensors"}, workspace=root / "ws")
    train(made.cache, C=1, workspace=root / "ws")
    return root


@pytest.fixture
def moved(project: Path, tmp_path: Path) -> Path:
    """The project at another place; nothing is left where it was made."""
    place = tmp_path / "after"
    shutil.copytree(project, place)
    hidden = project.with_name("hidden")
    project.rename(hidden)
    try:
        yield place
    finally:
        hidden.rename(project)


def run_of(root: Path) -> Path:
    return next((root / "ws" / "runs").glob("0001-*"))


def cache_in(root: Path) -> Path:
    return next((root / "ws" / "features").glob("*.h5"))


def test_a_moved_project_evaluates_predicts_and_is_verified(moved: Path) -> None:
    ws = moved / "ws"
    assert evaluate("latest", workspace=ws).test["n"] > 0
    answers = predict("latest", moved / "photos" / "ant", workspace=ws)
    assert len(answers) == 20
    assert verify("latest", moved / "photos", workspace=ws).sample is not None
    assert export("latest", format="state_dict", workspace=ws).file.is_file()


def test_a_moved_project_extracted_again_goes_on_with_its_cache(moved: Path) -> None:
    before = cache_in(moved)
    again = extract(moved / "photos", **{**QUICK, "weights": moved / "mine.safetensors"}, workspace=moved / "ws")
    assert (again.new, again.cache) == (0, before)


@pytest.mark.slow
def test_a_moved_project_is_fine_tuned(moved: Path) -> None:
    assert finetune(1, train="last", epochs=1, batch_size=8, workspace=moved / "ws").run.is_dir()


def test_of_a_copied_project_the_copy_is_used(project: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    evaluated = evaluate(run_of(copy), workspace=copy / "ws")
    assert evaluated.run == run_of(copy)
    cache_in(copy).unlink()
    for image in (copy / "photos").glob("*/*"):
        image.unlink()
    second = train(cache_in(project), C=2, workspace=copy / "ws")  # the first one's cache is there, where it was made
    assert compare(1, second.run.name, workspace=copy / "ws").to_json()


def test_a_cache_under_another_name_is_found_by_its_content(project: Path, moved: Path) -> None:
    cache = cache_in(moved)
    cache.rename(cache.with_name("renamed.h5"))
    assert evaluate("latest", workspace=moved / "ws").test["n"] > 0


def test_a_cache_that_is_gone_is_named_with_the_place_where_it_is_expected(moved: Path) -> None:
    cache = cache_in(moved)
    cache.unlink()
    with pytest.raises(
        CacheError, match=f"is not at {cache} or .*project.*, and none in .*features holds the same rows: put it there"
    ):
        evaluate("latest", workspace=moved / "ws")


def test_weights_that_are_put_into_the_workspace_are_found(moved: Path) -> None:
    image = moved / "photos" / "ant" / "00.png"
    here = moved / "mine.safetensors"
    elsewhere = moved / "ws" / "weights" / "mine.safetensors"
    here.rename(elsewhere)
    assert len(predict("latest", image, workspace=moved / "ws")) == 1
    other = build(SMALL, num_classes=1000, image_size=32, seed=4).state_dict()
    safetensors.torch.save_file(other, elsewhere)
    with pytest.raises(WeightsError, match="have changed"):
        predict("latest", image, workspace=moved / "ws")


def test_a_head_lands_beside_the_cache_that_was_given_by_its_path(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(project, tmp_path / "shared")
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.delenv("PIPELINE_WORKSPACE", raising=False)
    shared = tmp_path / "shared" / "ws"
    head = train(cache_in(tmp_path / "shared"))
    assert head.run.parent == shared / "runs"
    assert evaluate(head.run).scored_before == 0
    assert (shared / "tested.jsonl").exists()
    assert not (tmp_path / "mine" / "cache").exists()
    assert train(cache_in(tmp_path / "shared"), workspace="ours").run.parent == Path("ours/runs")
    monkeypatch.setenv("PIPELINE_WORKSPACE", "env")
    assert train(cache_in(tmp_path / "shared")).run.parent == Path("env/runs")


def test_a_cache_that_lies_in_no_workspace_is_learned_from_in_the_usual_one(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIPELINE_WORKSPACE", raising=False)
    shutil.copy(cache_in(project), tmp_path / "loose.h5")
    assert train("loose.h5").run.parent == Path("cache/runs")


def test_open_cache_takes_names_and_latest(project: Path, tmp_path: Path) -> None:
    ws, cache = project / "ws", cache_in(project)
    for spec in ("latest", cache.name, cache.stem, "photos", cache):
        assert open_cache(spec, workspace=ws, verify=True).path == cache
    with pytest.raises(CacheError, match="'nothing' is no cache.*photos-.* \\(of .*photos\\)"):
        open_cache("nothing", workspace=ws)
    with pytest.raises(CacheError, match="no feature cache in .* yet"):
        open_cache("latest", workspace=tmp_path)


def test_two_caches_of_one_name_are_told_apart_by_their_source(photos: Path, tmp_path: Path) -> None:
    for place in ("a", "b"):
        shutil.copytree(photos, tmp_path / place / "shapes")
        extract(tmp_path / place / "shapes", **QUICK, workspace=tmp_path / "ws")
    with pytest.raises(CacheError, match="fits several.*-2.h5 \\(of .*b/shapes\\), .*\\(of .*a/shapes\\)"):
        train("shapes", workspace=tmp_path / "ws")


def test_latest_is_what_was_asked_for_last_and_is_said(photos: Path, tmp_path: Path) -> None:
    heard = Listener()
    first = extract(photos, **QUICK, name="first", workspace=tmp_path)
    second = extract(photos, **QUICK, name="second", workspace=tmp_path)
    assert (first.cache, second.cache) == (tmp_path / "features/first.h5", tmp_path / "features/second.h5")
    before = first.cache.read_bytes()
    assert extract(photos, **QUICK, name="first", workspace=tmp_path).new == 0
    train("latest", C=1, workspace=tmp_path, watch=heard)
    assert "latest cache: first.h5" in heard.said
    assert first.cache.read_bytes() == before
    evaluate("latest", workspace=tmp_path, watch=heard)
    assert "latest run: 0001-train-first" in heard.said


@pytest.mark.parametrize("name", ["a/b", "latest", "", ".x", "x.h5", "ü", "-x"])
def test_a_name_that_is_none_is_refused(photos: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="give letters, digits"):
        extract(photos, **QUICK, name=name, workspace=tmp_path)


def test_a_name_is_not_taken_from_other_images(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "other")
    made = extract(photos, **QUICK, name="mine", workspace=tmp_path)
    with pytest.raises(PipelineError, match=f"mine.h5 is of the images at {photos}: give another name"):
        extract(tmp_path / "other", **QUICK, name="mine", workspace=tmp_path)
    with pytest.raises(ConfigError, match="give one of them"):
        extract(photos, **QUICK, name="mine", out=made.cache, workspace=tmp_path)
    assert np.isfinite(open_cache(made.cache).features).all()
