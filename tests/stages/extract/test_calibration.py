"""Bounds of int8: found once on images that nothing is judged by, kept beside the cache, part of its key."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import evaluate, extract, finetune, inspect, open_cache, predict, relabel, train, verify
from pipeline.base.errors import CacheError, ConfigError, DataError, EngineError
from pipeline.base.precision import bits_of_weights
from pipeline.cli.main import main
from pipeline.images import loader
from pipeline.runs.recipe import about_of
from pipeline.stages.extract import calibrate
from pipeline.store import difference
from pipeline.store.companions import calibration_path
from pipeline.trunk import frozen
from pipeline.trunk.engines.check import AGREEMENT

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

Quick = dict[str, Any]
Here = Callable[..., Path]


@pytest.fixture(scope="module")
def int8(quick: Quick) -> Quick:
    return {**quick, "engine": "auto", "precision": "int8"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks prepared for onnxruntime, which takes seconds each: common to the workspaces of these tests."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture
def here(tmp_path: Path, prepared: Path) -> Path:
    (tmp_path / "engines").symlink_to(prepared)
    return tmp_path


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray[Any, Any]]:
    """The pixels that bounds were found on, each time."""
    seen, find = [], frozen.find_bounds

    def counted(spec: Any, pixels: Any, **options: Any) -> Any:
        seen.append(pixels)
        return find(spec, pixels, **options)

    monkeypatch.setattr(frozen, "find_bounds", counted)
    return seen


def files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("*") if not path.name.startswith("."))


def test_features_in_int8_say_by_which_bounds_and_how_near_they_are(
    photos: Path, here: Path, int8: Quick, listener: Any
) -> None:
    made = extract(photos, workspace=here, watch=listener, **int8)
    cache, beside = open_cache(made.cache), calibration_path(made.cache)
    float32 = open_cache(extract(photos, workspace=here, **{**int8, "precision": "float32", "engine": "torch"}).cache)
    assert {name.split(".")[0] for name, _, _ in difference(float32.provenance, cache.provenance)} == {
        "precision",
        "calibration",
        "engine",
    }
    told = json.loads(beside.read_text(encoding="utf-8"))
    assert told["weight_bits"] == bits_of_weights() and 16 <= len(told["images"]) <= 64
    assert about_of(cache)["agreement"]["images"] == 16
    assert AGREEMENT["int8"][0] < about_of(cache)["agreement"]["cosine"] < 1
    assert "precision check: int8 against float32 on 16 images" in listener.text
    assert "int8: bounds of the network's maps found on" in listener.text
    inspect(made.cache, workspace=here, watch=listener)
    assert "int8; against float32" in listener.text
    assert cache.provenance["engine"]["name"] == "onnxruntime"
    # The same again, in another workspace: the same bits.
    (other := here / "other").mkdir()
    (other / "engines").symlink_to(here / "engines")
    again = open_cache(extract(photos, workspace=other, **int8).cache)
    assert again.key == cache.key and again.features[:].tobytes() == cache.features[:].tobytes()


def test_no_image_of_val_or_test_is_looked_at(photos: Path, here: Path, int8: Quick) -> None:
    made = extract(photos, workspace=here, **int8)
    cache = open_cache(made.cache)
    used = set(json.loads(calibration_path(made.cache).read_text(encoding="utf-8"))["images"])
    held = {digest.tobytes().hex() for digest in cache.digests[cache.splits > 1]}
    learned = {digest.tobytes().hex() for digest in cache.digests[cache.splits == 1]}
    assert held and used <= learned and not used & held


def test_bounds_are_found_once_and_more_images_cost_no_more(
    photos: Path, here: Path, int8: Quick, calibrated: list[Any], listener: Any
) -> None:
    mine = Path(shutil.copytree(photos, here / "mine"))
    away = [Path(shutil.move(path, here / path.name)) for path in sorted((mine / "ant").iterdir())[:7]]
    first = extract(mine, workspace=here, **int8)
    for path in away:
        shutil.move(path, mine / "ant")
    more = extract(mine, workspace=here, **int8)
    (mine / "cat").rename(mine / "dog")
    renamed = extract(mine, workspace=here, **int8)
    assert (more.new, renamed.new, len(calibrated)) == (7, 0, 1)
    assert first.key == more.key == renamed.key and first.cache == renamed.cache
    # Anew, by all images now, and to another file: the one that is there stays as it is.
    before = first.cache.read_bytes()
    anew = extract(mine, recalibrate=True, workspace=here, watch=listener, **int8)
    assert len(calibrated) == 2 and anew.key != first.key and anew.new == 60
    assert first.cache.read_bytes() == before
    # The last is the one that is gone on with.
    assert extract(mine, workspace=here, **int8).cache == anew.cache


def test_two_sources_share_a_key_by_the_bounds_of_one(
    photos: Path, here: Path, int8: Quick, calibrated: list[Any]
) -> None:
    one = extract(photos, workspace=here, **int8)
    fewer = Path(shutil.copytree(photos, here / "fewer"))
    shutil.rmtree(fewer / "cat")
    alone = extract(fewer, name="alone", workspace=here, **int8)
    assert alone.key != one.key
    head = train(one.cache, workspace=here)
    cure = rf"with the run's settings, and calibration='{one.cache}'"
    with pytest.raises(CacheError, match=rf"calibration.sha256: .*{cure}"):
        evaluate(head.run, data=str(alone.cache), workspace=here)
    alone.cache.unlink()
    other = extract(fewer, calibration=str(one.cache), workspace=here, **int8)
    assert (one.key, len(calibrated), other.new) == (other.key, 2, 0)  # its rows are copied
    scored = evaluate(head.run, data=str(other.cache), workspace=here)
    assert scored.cache == other.cache.stem and scored.test["n"] > 0
    assert extract(fewer, workspace=here, **int8).cache == other.cache  # it has them now


def test_what_has_no_bounds_to_give_is_refused_by_name(photos: Path, here: Path, int8: Quick, quick: Quick) -> None:
    plain = extract(photos, workspace=here, **quick)
    with pytest.raises(ConfigError, match="is a cache of features in float32: give one in int8"):
        extract(photos, calibration=str(plain.cache), workspace=here, **int8)
    made = extract(photos, workspace=here, **int8)
    with pytest.raises(ConfigError, match=r"bounds of another network \(transform.crop: 32 there, 40 asked for"):
        extract(photos, calibration=str(made.cache), workspace=here, **{**int8, "image_size": 40})
    with pytest.raises(CacheError, match="'nothing' is no cache"):
        extract(photos, calibration="nothing", workspace=here, **int8)
    with pytest.raises(ConfigError, match="calibration='.*' is for precision='int8': give both or neither"):
        extract(photos, calibration=str(made.cache), workspace=here, **quick)
    with pytest.raises(ConfigError, match="recalibrate=True is for precision='int8'"):
        extract(photos, recalibrate=True, workspace=here, **quick)
    with pytest.raises(ConfigError, match="calibration='a' and recalibrate=True: give one of them"):
        extract(photos, calibration="a", recalibrate=True, workspace=here, **int8)


@pytest.mark.parametrize("damage", ["gone", "cut", "another bound"])
def test_bounds_that_are_gone_or_others_are_named_and_nothing_is_lost(
    photos: Path, here: Path, int8: Quick, damage: str
) -> None:
    mine = Path(shutil.copytree(photos, here / "mine"))
    made = extract(mine, name="it", workspace=here, **int8)
    beside, before = calibration_path(made.cache), made.cache.read_bytes()
    text = beside.read_text(encoding="utf-8")
    told = json.loads(text)
    told["bounds"] = {name: [2 * low, 2 * high] for name, (low, high) in told["bounds"].items()}
    for path in sorted((mine / "ant").iterdir())[:3]:
        path.unlink()
    beside.unlink()
    if damage != "gone":
        beside.write_text(text[:-20] if damage == "cut" else json.dumps(told), encoding="utf-8")
    why = {"gone": "No such file", "cut": "it is not JSON", "another bound": "has changed since it.h5 was computed"}
    with pytest.raises(
        CacheError, match=rf"it.calibration.json.*{why[damage]}.*bring it back, or give recalibrate=True"
    ):
        extract(mine, name="it", workspace=here, **int8)
    with pytest.raises(CacheError, match=r"it.calibration.json"):
        verify("it", mine, workspace=here)
    assert made.cache.read_bytes() == before
    beside.write_text(text, encoding="utf-8")
    assert extract(mine, name="it", workspace=here, **int8).new == 0


def test_a_source_of_too_few_images_is_told_what_to_give(photos: Path, here: Path, int8: Quick) -> None:
    mine = Path(shutil.copytree(photos, here / "mine"))
    for path in [p for c in sorted(mine.iterdir()) for p in sorted(c.iterdir())[7:]]:
        path.unlink()
    with pytest.raises(DataError, match=r"finds its bounds on 16 images .* and of .*mine 15 can be read: give calibr"):
        extract(mine, workspace=here, **int8)
    assert not (here / "features").exists() or not list(files(here / "features"))
    all_of_them = extract(photos, workspace=here, **int8)
    assert extract(mine, calibration=str(all_of_them.cache), workspace=here, **int8).rows == 21


def test_images_that_fail_are_passed_over_and_more_than_enough_is_not_read(
    photos: Path, here: Path, int8: Quick, calibrated: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "CALIBRATED_ON", 20)
    monkeypatch.setattr(calibrate, "LEAST", 4)  # so many are loaded ahead
    loaded: list[int] = []
    load_one, find = loader.load_one, frozen.find_bounds
    before: list[int] = []

    def found(*args: Any, **options: Any) -> Any:
        before.append(len(loaded))
        return find(*args, **options)

    monkeypatch.setattr(frozen, "find_bounds", found)

    def counted(index: int, *others: Any) -> Any:
        loaded.append(index)
        return load_one(index, *others)

    monkeypatch.setattr(loader, "load_one", counted)
    mine = Path(shutil.copytree(photos, here / "mine"))
    for path in sorted((mine / "ant").iterdir())[:3]:
        path.write_bytes(b"no image")
    shutil.copy(mine / "bee" / "00.png", mine / "bee" / "copy.png")
    made = extract(mine, workspace=here, **int8)
    assert 20 <= before[0] <= 20 + 4 + 4  # those that failed, the copy, and those ahead
    told = json.loads(calibration_path(made.cache).read_text(encoding="utf-8"))["images"]
    assert len(calibrated[0]) == len(told) == len(set(told)) == 20
    bad = {d.tobytes().hex() for d in open_cache(made.cache).digests[open_cache(made.cache).states > 1]}
    assert len(bad) == 1 and not bad & set(told)  # the three are one content


def test_bounds_that_were_lost_and_are_found_again_are_put_back(photos: Path, here: Path, int8: Quick) -> None:
    made = extract(photos, workspace=here, **int8)
    beside, text = calibration_path(made.cache), calibration_path(made.cache).read_text(encoding="utf-8")
    beside.unlink()
    again = extract(photos, recalibrate=True, workspace=here, **int8)
    assert (again.cache, again.new) == (made.cache, 0)
    assert beside.read_text(encoding="utf-8") == text


def test_a_stop_while_bounds_are_found_leaves_nothing(
    photos: Path, here: Path, int8: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.base.errors import Interrupted

    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(frozen, "find_bounds", stopped)
        with pytest.raises((KeyboardInterrupt, Interrupted)):
            extract(photos, workspace=here, **int8)
    assert not (here / "features").exists() or not list(files(here / "features"))
    assert extract(photos, workspace=here, **int8).new == 60


def test_features_that_int8_spoils_are_not_begun(
    photos: Path, here: Path, int8: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By bounds so wide that a map is within one step."""

    def wide(*args: Any, **options: Any) -> dict[str, tuple[float, float]]:
        return {name: (1e4 * low, 1e4 * high) for name, (low, high) in find(*args, **options).items()}

    find = frozen.find_bounds
    monkeypatch.setattr(frozen, "find_bounds", wide)
    with pytest.raises(EngineError, match=r"in int8 are not those .*precision='float32'; nothing was begun"):
        extract(photos, workspace=here, **int8)
    assert not list(files(here / "features"))


def test_bounds_go_where_their_cache_goes(photos: Path, here: Path, int8: Quick) -> None:
    made = extract(photos, name="it", views=1, workspace=here, **int8)
    beside = calibration_path(made.cache)
    text = beside.read_text(encoding="utf-8")
    # A view is between the same bounds, and has no file of its own for them.
    view = open_cache(made.views[0])
    assert view.provenance["calibration"] == open_cache(made.cache).provenance["calibration"]
    assert [path.name for path in (here / "features").glob("*.json")] == ["it.calibration.json"]
    assert verify(made.views[0], photos, allow_changes=True, workspace=here).sample is not None
    copied = relabel("it", photos, out=here / "elsewhere" / "copy.h5", val_fraction=0.3, workspace=here)
    assert calibration_path(copied.cache).read_text(encoding="utf-8") == text
    assert main(["list", "it", "--caches", "--rename", "that", "--workspace", str(here)]) == 0
    assert not beside.exists()
    assert (here / "features" / "that.calibration.json").read_text(encoding="utf-8") == text
    sample = verify("that", photos, workspace=here).sample
    assert sample is not None and sample.max_difference < 1e-3 and sample.engine == "onnxruntime on cpu, int8"
    assert main(["list", "that", "--caches", "--delete", "--yes", "--workspace", str(here)]) == 0
    assert not list((here / "features").glob("that*"))


def test_later_stages_compute_in_float32(photos: Path, here: Path, int8: Quick) -> None:
    made = extract(photos, workspace=here, **int8)
    head = train(made.cache, workspace=here)
    calibration_path(made.cache).unlink()  # they need no bounds
    [named] = predict(head.run, [photos / "ant" / "00.png"], workspace=here)
    assert named.class_name in ("ant", "bee", "cat")
    tuned = finetune(head.run, train="last", epochs=1, batch_size=16, workspace=here)
    assert tuned.run.exists()


def test_without_onnxruntime_the_cure_is_named(
    photos: Path, here: Path, int8: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.trunk import identity

    monkeypatch.setattr(
        identity, "available_engines", lambda device, precision="float32": ["torch"][precision == "int8" :]
    )
    for engine in ("auto", "onnxruntime"):
        with pytest.raises(ConfigError, match="pip install onnx onnxscript onnxruntime, or give precision='float32'"):
            extract(photos, workspace=here, **{**int8, "engine": engine})
    with pytest.raises(ConfigError, match="'torch' does not compute in int8: give engine='onnxruntime'"):
        extract(photos, workspace=here, **{**int8, "engine": "torch"})
