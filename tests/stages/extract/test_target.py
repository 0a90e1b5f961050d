"""What an extraction's file is called, and when that of another kind of device will do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import extract, inspect, open_cache, store, train
from pipeline.base import machine
from pipeline.base.errors import CacheError, ConfigError
from pipeline.base.workspace import Workspace
from pipeline.runs.recipe import about_of
from pipeline.stages.extract import blocks, job, plan, target
from pipeline.store.find import view_path
from pipeline.store.rewrite import kept
from tests.other_device import as_made_on

Quick = dict[str, Any]


def name_of(trunk: str, weights: str, desk: Workspace) -> str:
    info: Any = SimpleNamespace(trunk=trunk, name=weights, path=None, transform=SimpleNamespace(crop=224))
    listing: Any = SimpleNamespace(name="photos", images=SimpleNamespace(place="/photos"))
    return target._default_path(desk, listing, info, "3da4c1ba" * 8).name


@pytest.mark.parametrize(
    ("trunk", "weights", "expected"),
    [
        ("timm:resnet50.a1_in1k", "a1_in1k", "photos-timm-resnet50-a1_in1k-224px-3da4c1ba.h5"),
        ("timm:resnet50", "a1_in1k", "photos-timm-resnet50-a1in1k-224px-3da4c1ba.h5"),
        ("timm:resnet50.a1_in1k", "random:0", "photos-timm-resnet50-a1_in1k-random0-224px-3da4c1ba.h5"),
        ("resnet50", "IMAGENET1K_V2", "photos-resnet50-imagenet1kv2-224px-3da4c1ba.h5"),
    ],
)
def test_the_name_says_trunk_and_weights_once(tmp_path: Path, trunk: str, weights: str, expected: str) -> None:
    assert name_of(trunk, weights, Workspace(tmp_path)) == expected


def test_a_file_that_says_the_weights_twice_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was called so before."""
    monkeypatch.setattr(target.store, "open_partial", lambda _: None)
    monkeypatch.setattr(target, "images_from", lambda _: SimpleNamespace(place="/photos", there=lambda: True))
    twice = tmp_path / "features" / "photos-timm-lite0-in1k-in1k-224px-3da4c1ba.h5"
    assert name_of("timm:lite0.in1k", "in1k", Workspace(tmp_path)) != twice.name
    twice.parent.mkdir()
    twice.touch()
    assert name_of("timm:lite0.in1k", "in1k", Workspace(tmp_path)) == twice.name


# -- files of another kind of device ----------------------------------------------------------------------------------


@pytest.fixture
def mine(photos: Path, tmp_path: Path) -> Path:
    """A copy of the photographs that a test may change."""
    return Path(shutil.copytree(photos, tmp_path / "mine"))


@pytest.fixture
def made(mine: Path, tmp_path: Path, options: Quick) -> Path:
    """A cache of them, made here."""
    return extract(mine, **options).cache


@pytest.fixture
def options(tmp_path: Path, quick: Quick) -> Quick:
    return {**quick, "workspace": tmp_path / "w", "engine": "auto"}


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch sees a GPU; what runs on it runs on the CPU."""
    monkeypatch.setattr(machine, "_sees_gpu", lambda: True)
    monkeypatch.setattr(job, "_faster_ones", lambda device: [])
    monkeypatch.setattr(plan, "gpu", lambda device: {"name": "H200", "capability": "9.0"})
    opened = blocks.open_trunk
    monkeypatch.setattr(blocks, "open_trunk", lambda recipe, *more: opened(recipe.computed(device="cpu"), *more))


def says(listener: Any) -> list[str]:
    """The lines that speak of the kind of device."""
    return [line for line in listener.text.splitlines() if line.startswith("engine.device: ")]


def files_of(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.parent.glob("mine-*.h5*"))


@pytest.fixture(params=["a GPU's file on a CPU", "a CPU's file on a GPU"])
def there(request: pytest.FixtureRequest, made: Path) -> SimpleNamespace:
    """The file of another kind of device, and which is which."""
    if request.param == "a GPU's file on a CPU":
        return SimpleNamespace(cache=as_made_on("cuda", made, version="9.9.9+cu999"), its="cuda", own="cpu")
    request.getfixturevalue("a_gpu")
    return SimpleNamespace(cache=as_made_on("cpu", made, name="onnxruntime", version="0.1"), its="cpu", own="cuda")


def test_a_finished_file_of_another_kind_of_device_is_served_as_it_is(
    mine: Path, there: SimpleNamespace, options: Quick, listener: Any
) -> None:
    before = there.cache.read_bytes()
    for _ in range(2):
        found = extract(mine, watch=listener, **options)
        assert (found.cache, found.new, found.reused) == (there.cache, 0, 60)
    assert there.cache.read_bytes() == before and files_of(there.cache) == [there.cache.name]
    engine = open_cache(there.cache).provenance["engine"]
    line = (
        f"engine.device: {there.cache.name} was computed on {there.its}, by {engine['name']} {engine['version']}, "
        "and is taken as it is: nothing is to be "
        f"computed; new images would need {there.its}; device='{there.own}' computes all of it anew, in another file"
    )
    assert says(listener) == [line, line]
    assert "nothing to do" in listener.text


def test_no_torch_is_imported_to_serve_it(mine: Path, made: Path, options: Quick) -> None:
    as_made_on("cuda", made)
    code = (
        "import sys; from pipeline.base import machine; machine._has_driver = lambda: False\n"
        "from pipeline import extract\n"
        f"r = extract({str(mine)!r}, **{ {**options, 'workspace': str(options['workspace'])}!r})\n"
        "assert r.new == 0 and r.reused == 60, r\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_is_served_where_its_engine_is_not_installed(
    mine: Path, made: Path, options: Quick, a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = as_made_on("cpu", made, name="onnxruntime")
    find_spec, version = importlib.util.find_spec, importlib.metadata.version

    def none_of_onnx(name: str, *more: Any) -> Any:
        return None if name.startswith("onnx") else find_spec(name, *more)

    def no_version(name: str) -> str:
        if name.startswith("onnx"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.util, "find_spec", none_of_onnx)
    monkeypatch.setattr(importlib.metadata, "version", no_version)
    assert extract(mine, **options).cache == cache
    (mine / "ant").rename(mine / "wasp")
    again = extract(mine, **options)
    assert (again.cache, again.new, open_cache(cache).classes) == (cache, 0, ("bee", "cat", "wasp"))


def test_what_needs_no_trunk_is_written_anew_under_its_own_key(
    mine: Path, there: SimpleNamespace, options: Quick, listener: Any
) -> None:
    """Renamed classes, other splits, and images that are gone."""
    before = open_cache(there.cache)
    features = np.array(before.features)
    (mine / "ant").rename(mine / "wasp")
    (mine / "bee" / "00.png").unlink()
    found = extract(mine, watch=listener, val_fraction=0.3, **options)
    assert (found.cache, found.new, found.reused) == (there.cache, 0, 59)
    after = open_cache(there.cache, verify=True)
    assert (after.key, after.provenance) == (before.key, before.provenance)
    assert after.classes == ("bee", "cat", "wasp") and after.counts()["val"] > before.counts()["val"]
    rows = {digest.tobytes(): row for row, digest in enumerate(before.digests)}
    assert np.array_equal(after.features, features[[rows[d.tobytes()] for d in after.digests]])
    assert files_of(there.cache) == [there.cache.name] and len(says(listener)) == 1


def test_new_images_begin_the_own_kinds_file_and_it_is_said(
    mine: Path, there: SimpleNamespace, options: Quick, listener: Any
) -> None:
    shutil.copy(mine / "ant" / "00.png", mine / "ant" / "again.png")  # no new one: its bytes are there
    with Image.open(mine / "ant" / "01.png") as image:
        image.rotate(90).save(mine / "ant" / "new.png")
    found = extract(mine, watch=listener, **options)
    assert (found.cache == there.cache, found.new, found.reused) == (False, 62, 0)
    assert open_cache(found.cache).provenance["engine"]["device"] == there.own
    where = "" if there.its == "cpu" else ", where there is one"
    assert says(listener) == [
        f"engine.device: {there.cache.name} was computed on {there.its} and lacks 1 image of these: another file is "
        f"made on {there.own}; device='{there.its}' goes on with that one{where}"
    ]
    again = extract(mine, watch=listener, **options)
    assert (again.cache, again.new, len(says(listener))) == (found.cache, 0, 1)


def test_a_begun_file_is_left_to_its_own_kind_of_device(mine: Path, made: Path, options: Quick, listener: Any) -> None:
    there = as_made_on("cuda", made, begun=True)
    found = extract(mine, watch=listener, **options)
    assert (found.new, found.cache) == (60, made)
    assert says(listener) == [
        f"engine.device: {there.name} was computed on cuda and is not finished: another file is made on cpu; "
        "device='cuda' goes on with that one, where there is one"
    ]
    assert files_of(made) == sorted([made.name, f"{there.name}.partial"])


def test_a_begun_file_of_the_own_kind_is_gone_on_with_though_the_other_is_finished(
    mine: Path, made: Path, options: Quick, listener: Any
) -> None:
    there = shutil.copy(made, made.with_name("kept.h5"))
    as_made_on("cuda", made)
    old = open_cache(there)
    store.create_partial(made, kept(old, np.arange(60), "test"))
    found = extract(mine, watch=listener, **options)
    assert (found.cache, found.reused, says(listener)) == (made, 60, [])


def test_another_precision_is_never_served(mine: Path, made: Path, options: Quick, listener: Any) -> None:
    as_made_on("cuda", made, precision="bfloat16")
    found = extract(mine, watch=listener, **options)
    assert (found.cache, found.new, says(listener)) == (made, 60, [])


def test_a_precision_that_the_device_lacks_is_served_and_not_computed(mine: Path, made: Path, options: Quick) -> None:
    """tf32 is a GPU's; what it made can be learned from anywhere."""
    with pytest.raises(ConfigError, match="precision='tf32' needs a GPU of NVIDIA's"):
        extract(mine, precision="tf32", **options)
    other = as_made_on("cuda", made, precision="tf32")
    assert extract(mine, precision="tf32", **options).cache == other
    shutil.copy(mine / "ant" / "00.png", mine / "ant" / "new.png")
    assert extract(mine, precision="tf32", **options).cache == other
    with (mine / "ant" / "new.png").open("ab") as file:
        file.write(b"other bytes")
    with pytest.raises(ConfigError, match="precision='tf32' needs a GPU of NVIDIA's"):
        extract(mine, precision="tf32", **options)
    with pytest.raises(ConfigError, match="precision='tf32' needs a GPU of NVIDIA's"):
        extract(mine, **{**options, "precision": "tf32", "device": "cpu"})


@pytest.mark.parametrize("named", [{"device": "cpu"}, {"engine": "torch"}])
def test_a_device_or_an_engine_by_name_is_that_alone(
    mine: Path, made: Path, options: Quick, listener: Any, named: Quick
) -> None:
    as_made_on("cuda", made)
    found = extract(mine, watch=listener, **{**options, **named})
    assert (found.cache, found.new, says(listener)) == (made, 60, [])


@pytest.mark.parametrize("given", ["name", "out"])
def test_a_file_of_a_given_name_is_served_and_new_images_are_refused_by_the_device(
    mine: Path, tmp_path: Path, options: Quick, given: str
) -> None:
    where = {"name": "mine"} if given == "name" else {"out": tmp_path / "there" / "mine.h5"}
    made = extract(mine, **options, **where).cache
    as_made_on("cuda", made)
    assert extract(mine, **options, **where).cache == made
    with (mine / "ant" / "01.png").open("ab") as file:
        file.write(b"other bytes")
    with pytest.raises(
        CacheError,
        match=r"made with other settings .engine.device: 'cuda' there, 'cpu' asked for.: give another out, or these "
        "settings, device='cuda' among them$",
    ):
        extract(mine, **options, **where)


def test_a_begun_file_of_a_given_name_is_refused_by_its_device(mine: Path, options: Quick) -> None:
    made = extract(mine, **options, name="mine").cache
    as_made_on("cuda", made, begun=True)
    with pytest.raises(CacheError, match=r"begun with other settings: finish it with those, device='cuda' among them,"):
        extract(mine, **options, name="mine")


def test_another_folders_file_is_not_taken(mine: Path, made: Path, options: Quick, tmp_path: Path) -> None:
    there = as_made_on("cuda", made)
    other = Path(shutil.copytree(mine, tmp_path / "other" / "mine"))
    found = extract(other, **options)
    assert (found.cache == there, found.new) == (False, 60)


# -- which GPU --------------------------------------------------------------------------------------------------------


def test_a_file_says_which_gpus_have_computed_it_and_inspect_shows_them(
    mine: Path, options: Quick, a_gpu: None, monkeypatch: pytest.MonkeyPatch, listener: Any
) -> None:
    cards = [
        {"name": "H200", "capability": "9.0", "cuda": "12.8", "cudnn": "91002", "driver": "570.86"},
        {"name": "MI300X", "capability": "9.4", "rocm": "6.2"},
    ]
    first, second = cards
    monkeypatch.setattr(plan, "gpu", lambda device: cards[0])
    made = extract(mine, **options).cache
    assert about_of(open_cache(made))["gpus"] == [first]
    cards.reverse()
    (mine / "ant").rename(mine / "wasp")
    assert extract(mine, **options).cache == made
    assert about_of(open_cache(made))["gpus"] == [first]  # nothing was computed on the other
    with (mine / "wasp" / "01.png").open("ab") as file:
        file.write(b"other bytes")
    assert extract(mine, **options).new == 1
    assert about_of(open_cache(made))["gpus"] == [first, second]
    inspect(made, workspace=options["workspace"], watch=listener)
    shown = " ".join(listener.text.split())
    assert "computed on H200 (compute capability 9.0, CUDA 12.8, cuDNN 91002, driver 570.86); MI300X (comp" in shown
    assert "capability 9.4, ROCm 6.2)" in shown


def test_of_a_cpu_nothing_is_said(mine: Path, made: Path, options: Quick, listener: Any) -> None:
    assert "gpus" not in open_cache(made).about
    inspect(made, workspace=options["workspace"], watch=listener)
    assert "computed on" not in listener.text


# -- views ------------------------------------------------------------------------------------------------------------


def with_its_view(mine: Path, options: Quick, device: str, **engine: str) -> tuple[Path, Path]:
    """A cache and its view as another kind of device makes them."""
    made = extract(mine, views=1, **options)
    cache, view = (as_made_on(device, Path(path), **engine) for path in (made.cache, *made.views))
    return cache, view.rename(view_path(cache, 1))


def test_views_of_a_served_file_are_served(mine: Path, options: Quick) -> None:
    cache, view = with_its_view(mine, options, "cuda")
    found = extract(mine, views=1, **options)
    assert (found.cache, found.views, found.new) == (cache, (str(view),), 0)
    (mine / "ant").rename(mine / "wasp")
    assert extract(mine, views=1, **options).new == 0
    assert train(cache, views=1, workspace=options["workspace"], epochs=1, solver="adamw").run.exists()


def test_views_that_are_missing_need_the_device_of_their_file(mine: Path, options: Quick) -> None:
    cache, view = with_its_view(mine, options, "cuda")
    view.unlink()
    with pytest.raises(
        ConfigError,
        match=f"{cache.name} was computed by torch .* on cuda, and so must be what belongs to it: go on there, or give "
        "device='cpu', which makes another file of all of it",
    ):
        extract(mine, views=1, **options)
    assert extract(mine, views=1, **{**options, "device": "cpu"}).new == 60 + 42


def test_views_of_a_cpus_file_are_computed_on_the_cpu(mine: Path, made: Path, options: Quick, a_gpu: None) -> None:
    found = extract(mine, views=1, **options)
    assert (found.cache, found.new) == (made, 42)
    assert open_cache(found.views[0]).provenance["engine"] == open_cache(made).provenance["engine"]


def test_views_of_an_engine_of_another_version_are_refused(mine: Path, made: Path, options: Quick, a_gpu: None) -> None:
    """They would be of other settings than their cache, and no head could learn from both."""
    as_made_on("cpu", made, version="0.1")
    with pytest.raises(ConfigError, match=r"was computed by torch 0\.1 on cpu, .*device='cuda'"):
        extract(mine, views=1, **options)
