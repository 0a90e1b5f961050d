"""Features in another precision: a check before anything is begun, kept in the file; never two precisions in one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import extract, finetune, inspect, open_cache, predict, train, verify
from pipeline.base.errors import CacheError, ConfigError, EngineError
from pipeline.runs.recipe import about_of
from pipeline.stages.extract.agreement import sample_of
from pipeline.store import difference
from pipeline.trunk.engines import check as checks
from pipeline.trunk.engines.check import AGREEMENT, Agreement, agreement
from pipeline.trunk.engines.torch import TorchEngine

Quick = dict[str, Any]
FORCED = {"precision": "bfloat16", "force_precision": True}


@pytest.fixture(autouse=True)
def all_of_them(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The sample of the check is every image, that it can be compared with the file."""
    if "rows" not in request.fixturenames:
        monkeypatch.setattr("pipeline.stages.extract.agreement.LEAST", 64)


@pytest.mark.parametrize(("rows", "expected"), [(5, 5), (60, 16), (398, 39), (5000, 64)])
def test_of_a_small_source_a_tenth_is_checked_and_of_a_large_one_64(rows: int, expected: int) -> None:
    assert sample_of(np.arange(rows)).tolist() == sorted(set(sample_of(np.arange(rows)).tolist()))
    assert len(sample_of(np.arange(rows))) == expected
    assert {0, rows - 1} <= set(sample_of(np.arange(rows)).tolist())


def test_the_check_is_printed_kept_and_shown(photos: Path, tmp_path: Path, quick: Quick, listener: Any) -> None:
    plain = extract(photos, dtype="float32", workspace=tmp_path, **quick)
    made = extract(photos, dtype="float32", workspace=tmp_path, watch=listener, **quick, **FORCED)
    cache, whole = open_cache(made.cache), open_cache(plain.cache)
    assert [name for name, _, _ in difference(cache.provenance, whole.provenance)] == ["precision"]
    told = about_of(cache)["agreement"]
    assert told["images"] == 60
    # The same of the rows themselves: the sample is all of them.
    reference = agreement(cache.features[:], whole.features[:])
    assert vars(reference) == pytest.approx(told, rel=1e-3, abs=1e-6)
    assert AGREEMENT["bfloat16"][0] < told["cosine"] < 1
    [line] = [line for line in listener.text.splitlines() if line.startswith("precision check")]
    assert line == (
        f"precision check: bfloat16 against float32 on 60 images: cosine {told['cosine']:.4f} (least "
        f"{told['least_cosine']:.4f}), relative error {100 * told['error']:.1f} % (largest "
        f"{100 * told['largest_error']:.1f} %)"
    )
    inspect(made.cache, workspace=tmp_path, watch=listener)
    assert line.removeprefix("precision check: bfloat16 against") in " ".join(listener.text.split())
    assert about_of(whole).get("agreement") is None


def test_features_that_are_not_the_networks_stop_the_job_before_it_begins(
    photos: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = TorchEngine.__call__
    monkeypatch.setattr(TorchEngine, "__call__", lambda self, pixels: call(self, np.roll(pixels, 1, axis=0)))
    with pytest.raises(
        EngineError, match=r"bfloat16 are not those .* worst of 60 images .*precision='float32'; nothing"
    ):
        extract(photos, workspace=tmp_path, **quick, **FORCED)
    assert not [path for path in (tmp_path / "features").glob("*") if not path.name.startswith(".")]


def test_new_images_are_checked_alone_and_an_unchanged_or_relabelled_file_not_at_all(
    photos: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Path(shutil.copytree(photos, tmp_path / "mine"))
    away = [shutil.move(path, tmp_path / path.name) for path in sorted((mine / "ant").iterdir())[:7]]
    options = {**quick, **FORCED, "workspace": tmp_path / "w"}
    first = about_of(open_cache(extract(mine, **options).cache))["agreement"]
    seen: list[int] = []
    eager = checks.eager_features

    def counted(trunk: Any, info: Any, pixels: Any, *dtype: Any) -> Any:
        seen.append(len(pixels))
        return eager(trunk, info, pixels, *dtype)

    import pipeline.stages.extract.agreement as module

    monkeypatch.setattr(module, "eager_features", counted)
    again = extract(mine, **options)
    (mine / "cat").rename(mine / "dog")
    renamed = extract(mine, **options)
    assert (again.new, renamed.new, seen) == (0, 0, [])
    assert about_of(open_cache(renamed.cache))["agreement"] == first
    for path in away:
        shutil.move(path, mine / "ant")
    more = extract(mine, **options)
    assert (more.new, sum(seen)) == (7, 7)
    both = about_of(open_cache(more.cache))["agreement"]
    assert (first["images"], both["images"]) == (53, 60)
    assert both["least_cosine"] <= first["least_cosine"]


def test_a_precision_is_kept_to_and_later_stages_compute_in_float32(photos: Path, tmp_path: Path, quick: Quick) -> None:
    made = extract(photos, name="mine", workspace=tmp_path, **quick, **FORCED)
    with pytest.raises(CacheError, match="precision: 'bfloat16' there, 'float32' asked for"):
        extract(photos, name="mine", workspace=tmp_path, **quick)
    sample = verify(made.cache, photos, workspace=tmp_path).sample
    assert sample is not None and sample.max_difference < 2.0**-10 and sample.engine.endswith("bfloat16")
    head = train(made.cache, workspace=tmp_path)
    [named] = predict(head.run, [photos / "ant" / "00.png"], workspace=tmp_path)
    assert named.class_name in ("ant", "bee", "cat")
    tuned = finetune(head.run, train="last", epochs=1, batch_size=16, workspace=tmp_path, **FORCED)
    assert tuned.run.exists()


def test_what_this_processor_lacks_is_refused_by_name(
    photos: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.base.precision.cpu_description", lambda: "flags : avx2\n")
    with pytest.raises(ConfigError, match="bfloat16' needs a processor .* force_precision=True computes it"):
        extract(photos, precision="bfloat16", workspace=tmp_path, **quick)
    with pytest.raises(ConfigError, match="'onnxruntime' does not compute in bfloat16: give engine='torch'"):
        extract(photos, workspace=tmp_path, **{**quick, "engine": "onnxruntime"}, **FORCED)
    auto = extract(photos, precision="auto", workspace=tmp_path, **quick)
    assert open_cache(auto.cache).provenance["precision"] == "float32"


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("installed", [True, False])
def test_the_faster_choice_is_named_where_there_is_one(
    photos: Path,
    tmp_path: Path,
    quick: Quick,
    monkeypatch: pytest.MonkeyPatch,
    listener: Any,
    there: bool,
    installed: bool,
) -> None:
    told = f"flags : avx2{' avx512_bf16' * there}\n"
    monkeypatch.setattr("pipeline.base.precision.cpu_description", lambda: told)
    monkeypatch.setattr("pipeline.stages.extract.words.trunk_is_the_bottleneck", lambda shares: True)
    monkeypatch.setattr("pipeline.stages.extract.job.available_engines", lambda _, p: p == "bfloat16" or installed)
    extract(photos, workspace=tmp_path, watch=listener, **quick)
    names = ["bfloat16"] * there + ["int8"] * installed
    said = [line for line in listener.text.splitlines() if "would be faster" in line]
    if not names:
        assert not said
        return
    also = ", precision='int8' even more so" if len(names) == 2 else ""
    assert said == [f"precision='{names[0]}' would be faster here{also}: checked against float32, in another file"]
    extract(photos, workspace=tmp_path, watch=listener, **quick, **FORCED)
    assert listener.text.count("would be faster") == 1


def test_agreement_is_that_of_the_whole_and_joins_as_one() -> None:
    rng = np.random.default_rng(0)
    reference = rng.random((10, 5)).astype(np.float32)
    found = reference + 0.01 * rng.standard_normal((10, 5)).astype(np.float32)
    reference[3] = found[3] = 0  # an image without an active feature
    whole, a, b = agreement(found, reference), agreement(found[:4], reference[:4]), agreement(found[4:], reference[4:])
    assert vars(a.joined(b)) == pytest.approx(vars(whole))
    cosines = [f @ r / np.linalg.norm(f) / np.linalg.norm(r) for f, r in zip(found[:3], reference[:3], strict=True)]
    assert agreement(found[:3], reference[:3]).least_cosine == pytest.approx(min(cosines), abs=1e-6)
    assert (agreement(found[3:4], reference[3:4]).cosine, agreement(found[3:4], reference[3:4]).error) == (1.0, 0.0)
    assert agreement(found[:1], reference[3:4]).cosine == 0  # active where nothing should be


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_never_agrees(value: float) -> None:
    reference = np.ones((3, 4), np.float32)
    found = reference.copy()
    found[1, 2] = value
    assert agreement(found, reference).refusal("bfloat16") is not None
    assert agreement(found, reference).refusal("bfloat16", one=True) is not None


def test_a_few_images_are_judged_one_by_one() -> None:
    mean, least = AGREEMENT["bfloat16"]
    between = Agreement(2, (mean + least) / 2, (mean + least) / 2, 0.1, 0.1)
    assert between.refusal("bfloat16") is not None
    assert between.refusal("bfloat16", one=True) is None
