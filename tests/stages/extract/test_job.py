"""Stage one, end to end on small photographs: right rows, nothing twice, nothing lost."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from pipeline import extract, open_cache, store, train
from pipeline.base.errors import CacheError, ConfigError, DataError, EngineError, Interrupted, WeightsError
from pipeline.base.workspace import Workspace
from pipeline.images.sources import files
from pipeline.store import Writer, open_partial, partial_path
from pipeline.trunk import identity
from pipeline.trunk.engines.base import Slot
from pipeline.trunk.engines.torch import TorchEngine
from pipeline.trunk.weights import resolve_weights

Quick = dict[str, Any]


@pytest.fixture
def mine(photos: Path, tmp_path: Path) -> Path:
    """A copy of the photographs that a test may change."""
    return Path(shutil.copytree(photos, tmp_path / "mine"))


@pytest.fixture
def given(photos: Path, tmp_path: Path) -> Path:
    """The same, with given splits, all of one time long ago."""
    for number, path in enumerate(sorted(photos.rglob("*.*"))):
        there = tmp_path / "given" / ("train", "train", "val", "test")[number % 4] / path.relative_to(photos)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, there)
        os.utime(there, ns=(10**18, 10**18))
    return tmp_path / "given"


def killed_after_two_blocks(source: Path, root: Path, options: Quick) -> None:
    """Begin an extraction that ends within its third block, as a kill would end it."""
    from pipeline.stages.extract.blocks import BlockLoop

    block = BlockLoop._block

    def stop_after_two(self: BlockLoop, number: int, loaded: Any) -> Any:
        if number == 2:
            raise RuntimeError("killed")
        return block(self, number, loaded)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(BlockLoop, "_block", stop_after_two)
        extract(source, workspace=root, **options)


def test_a_row_is_torchvisions_own_feature(photos: Path, tmp_path: Path) -> None:
    """Resnet50 with fc replaced by Identity, eval, the weights' transform; 1e-5 relative in float32."""
    made = extract(photos, workspace=tmp_path, weights="random:3", image_size=64, dtype="float32", engine="torch")
    torch.manual_seed(3)
    model = torchvision.models.resnet50(weights=None)
    model.fc = torch.nn.Identity()
    model.eval()
    transform = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms(crop_size=64, resize_size=66)
    cache = open_cache(made.cache)
    for row in (0, 17, 59):
        with Image.open(photos / os.fsdecode(cache.ids[row])) as image, torch.inference_mode():
            expected = model(transform(image)[None])[0].numpy()
        got = cache.features[row]
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_rows_are_labelled_split_and_ordered(photos: Path, tmp_path: Path, quick: Quick) -> None:
    cache = open_cache(extract(photos, workspace=tmp_path, **quick).cache, verify=True)
    assert cache.classes == ("ant", "bee", "cat")
    assert cache.counts() == {"none": 0, "train": 42, "val": 9, "test": 9}
    for split in ("train", "val", "test"):
        part = cache.split(split)
        assert part.ids == sorted(part.ids)
        assert [os.fsdecode(i).split("/")[0] for i in part.ids] == [cache.classes[c] for c in part.y]


def test_a_batch_is_no_larger_than_a_block(photos: Path, tmp_path: Path, quick: Quick) -> None:
    given = {**quick, "batch_size": None}
    assert extract(photos, workspace=tmp_path / "a", block_rows=20, **given).batch == 20
    assert extract(photos, workspace=tmp_path / "b", **given).batch == 128


def test_nothing_changed_is_nothing_done_and_no_torch(photos: Path, tmp_path: Path, quick: Quick) -> None:
    first = extract(photos, workspace=tmp_path, **quick)
    before, bits = first.cache.stat(), first.cache.read_bytes()
    code = (
        "import sys; from pipeline import extract\n"
        f"r = extract({str(photos)!r}, workspace={str(tmp_path)!r}, **{quick!r})\n"
        "assert r.new == 0 and r.reused == 60, r\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (first.cache.stat().st_ino, first.cache.read_bytes()) == (before.st_ino, bits)


def test_rows_that_are_only_copied_need_no_torch_nor_does_verifying_them(
    photos: Path, tmp_path: Path, quick: Quick
) -> None:
    extract(photos, workspace=tmp_path / "w", **quick)
    shutil.copytree(photos, tmp_path / "other")
    (tmp_path / "other" / "ant").rename(tmp_path / "other" / "wasp")
    code = (
        "import sys; from pipeline import extract, verify\n"
        f"r = extract({str(tmp_path / 'other')!r}, workspace={str(tmp_path / 'w')!r}, **{quick!r})\n"
        "assert r.new == 0 and r.reused == 60, r\n"
        "verify(r.cache)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_remembered_transform_that_is_not_the_weights_own_makes_no_row(
    photos: Path, tmp_path: Path, quick: Quick
) -> None:
    """One who changes it, and its checksum, is found out as soon as a feature is computed; then all is well again."""
    options = {**quick, "trunk": "resnet18", "weights": "random:0"}
    resolve_weights("random:0", "resnet18", Workspace(tmp_path))
    known = identity.recall("random:0", "resnet18", None, Workspace(tmp_path))
    assert known is not None
    changed = dataclasses.replace(known.transform, mean=(0.1, 0.2, 0.3))
    identity.remember(dataclasses.replace(known, transform=changed), None, Workspace(tmp_path))
    with pytest.raises(WeightsError, match=r"known.json was changed: its transform of resnet18 random:0 .*run again"):
        extract(photos, workspace=tmp_path, **options)
    assert not [p for p in (tmp_path / "features").iterdir() if not p.name.startswith(".")]
    made = extract(photos, workspace=tmp_path, **options)
    assert open_cache(made.cache).provenance["transform"]["mean"] == [0.485, 0.456, 0.406]


def test_new_images_alone_go_through_the_trunk(mine: Path, tmp_path: Path, quick: Quick) -> None:
    """Adding k images costs k; renaming and moving cost none; old rows keep their bits."""
    first = open_cache(extract(mine, workspace=tmp_path, **quick).cache)
    rows = {first.digests[i].tobytes(): np.array(first.features[i]) for i in range(len(first))}
    shutil.copy(mine / "ant" / "00.png", mine / "ant" / "copy.png")
    (mine / "bee" / "01.png").rename(mine / "bee" / "renamed.png")
    Image.effect_noise((40, 40), 50).convert("RGB").save(mine / "cat" / "new.png")
    (mine / "cat" / "02.png").unlink()
    second = extract(mine, workspace=tmp_path, **quick)
    assert (second.new, second.reused, second.rows) == (1, 60, 61)
    cache = open_cache(second.cache, verify=True)
    kept = [i for i in range(len(cache)) if cache.digests[i].tobytes() in rows]
    assert len(kept) == 60
    for i in kept:
        np.testing.assert_array_equal(cache.features[i], rows[cache.digests[i].tobytes()])


def test_moving_the_folder_and_new_labels_cost_no_forward(mine: Path, tmp_path: Path, quick: Quick) -> None:
    extract(mine, workspace=tmp_path, **quick)
    moved = mine.rename(tmp_path / "elsewhere" / "mine") if (tmp_path / "elsewhere").mkdir() is None else mine
    assert extract(moved, workspace=tmp_path, **quick).new == 0
    (moved / "ant").rename(moved / "wasp")
    again = extract(moved, workspace=tmp_path, **quick)
    assert (again.new, again.reused) == (0, 60)
    assert open_cache(again.cache).classes == ("bee", "cat", "wasp")
    resplit = extract(moved, workspace=tmp_path, split_seed=1, **quick)
    assert (resplit.new, resplit.reused) == (0, 60)


def test_touched_files_are_read_but_not_computed(mine: Path, tmp_path: Path, quick: Quick) -> None:
    extract(mine, workspace=tmp_path, **quick)
    for path in mine.rglob("*.png"):
        os.utime(path, ns=(1, 1))
    again = extract(mine, workspace=tmp_path, **quick)
    assert (again.new, again.reused) == (0, 60)


def test_a_changed_image_is_computed_again_although_its_name_stays(mine: Path, tmp_path: Path, quick: Quick) -> None:
    extract(mine, workspace=tmp_path, **quick)
    Image.effect_noise((40, 40), 50).convert("RGB").save(mine / "ant" / "03.png")
    assert extract(mine, workspace=tmp_path, **quick).new == 1


@pytest.mark.slow
def test_other_settings_make_another_file(photos: Path, tmp_path: Path, quick: Quick) -> None:
    """Every setting that decides a number gives another key; batch size and workers do not."""
    base = extract(photos, workspace=tmp_path, **quick)
    keys = {base.key}
    for change in ({"weights": "random:1"}, {"image_size": 40}, {"dtype": "float32"}, {"layer": "previous"}):
        other = extract(photos, workspace=tmp_path, **{**quick, **change})
        assert other.cache != base.cache
        keys.add(other.key)
    assert len(keys) == 5
    assert extract(photos, workspace=tmp_path, **{**quick, "batch_size": 4, "workers": 1}).new == 0


def test_an_existing_file_of_other_settings_is_refused_field_by_field(
    photos: Path, tmp_path: Path, quick: Quick
) -> None:
    out = tmp_path / "mine.h5"
    extract(photos, out=out, workspace=tmp_path, **quick)
    before = out.read_bytes()
    with pytest.raises(CacheError, match=r"transform.crop: 32 there, 48 asked for.*another out"):
        extract(photos, out=out, workspace=tmp_path, **{**quick, "image_size": 48})
    assert out.read_bytes() == before


def test_two_folders_of_one_name_get_two_files(photos: Path, tmp_path: Path, quick: Quick) -> None:
    for place in ("a", "b"):
        shutil.copytree(photos, tmp_path / place / "images")
    (tmp_path / "b" / "images" / "ant" / "00.png").unlink()
    made = [extract(tmp_path / place / "images", workspace=tmp_path, **quick) for place in ("a", "b")]
    assert made[0].cache != made[1].cache
    assert made[1].new == 0  # the rows are known by content, wherever the images lie


def test_bad_images_are_named_and_too_many_end_the_job_with_the_good_rows_kept(
    mine: Path, tmp_path: Path, quick: Quick
) -> None:
    (mine / "ant" / "00.png").write_text("this is text")
    (mine / "bee" / "00.png").write_bytes((mine / "bee" / "01.png").read_bytes()[:700])
    for number in range(4):
        (mine / "bee" / f"1{number}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"6 of 60 images failed, max_failures=0.01 allows 5; .*ant/00.png"):
        extract(mine, workspace=tmp_path, **quick)
    assert not list((tmp_path / "features").glob("*.h5"))
    made = extract(mine, workspace=tmp_path, max_failures=0.1, **quick)
    assert (made.new, made.failed, made.rows) == (0, 6, 60)  # the good rows were computed by the first call
    cache = open_cache(made.cache, verify=True)
    assert sum(cache.failed().values()) == 6
    assert sum(cache.counts().values()) == 54
    told = made.cache.with_name(made.cache.stem + ".failures.jsonl").read_text()
    assert "ant/00.png" in told
    assert "bee/00.png" in told


def test_a_mended_image_is_tried_again(mine: Path, tmp_path: Path, quick: Quick) -> None:
    """Retried when the bytes change, and only then."""
    good = (mine / "ant" / "00.png").read_bytes()
    (mine / "ant" / "00.png").write_bytes(good[:300])
    options = {**quick, "max_failures": 0.1}
    assert extract(mine, workspace=tmp_path, **options).failed == 1
    (mine / "bee" / "00.png").unlink()
    again = extract(mine, workspace=tmp_path, **options)
    assert (again.new, again.failed) == (0, 1)
    (mine / "ant" / "00.png").write_bytes(good)
    mended = extract(mine, workspace=tmp_path, **options)
    assert (mended.new, mended.failed) == (1, 0)
    assert not list((tmp_path / "features").glob("*.failures.jsonl"))


def test_an_interrupted_job_resumes_to_the_same_bits(
    photos: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal is answered after the block in work; resumed = uninterrupted."""

    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    quick = {**quick, "block_rows": 16}
    whole = extract(photos, workspace=tmp_path, out=tmp_path / "whole.h5", **quick)
    shutil.move(whole.cache, tmp_path / "kept")  # so that no row can be copied from it
    calls = 0
    start = TorchEngine.start

    def interrupt_second_block(self: TorchEngine, slot: Slot) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:  # in the second block
            os.kill(os.getpid(), signal.SIGTERM)
        start(self, slot)

    monkeypatch.setattr(TorchEngine, "start", interrupt_second_block)
    with pytest.raises(Interrupted, match="the same command goes on") as stop:
        extract(photos, workspace=tmp_path, out=tmp_path / "whole.h5", **quick)
    assert stop.value.signal == signal.SIGTERM
    assert not (tmp_path / "whole.h5").exists()
    resumed = extract(photos, workspace=tmp_path, out=tmp_path / "whole.h5", **quick)
    assert resumed.new == 60 - 32
    assert (tmp_path / "kept").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_images_added_after_an_interruption_keep_what_was_done(mine: Path, tmp_path: Path, quick: Quick) -> None:
    quick = {**quick, "block_rows": 16}
    killed_after_two_blocks(mine, tmp_path, quick)
    Image.effect_noise((40, 40), 50).convert("RGB").save(mine / "ant" / "added.png")
    made = extract(mine, workspace=tmp_path, **quick)
    assert (made.new, made.reused) == (61 - 32, 32)
    assert not list((tmp_path / "features").glob("*.old-*"))


@pytest.fixture(scope="module")
def sound(photos: Path, tmp_path_factory: pytest.TempPathFactory, quick: Quick) -> bytes:
    """The file that the photographs give, in blocks of 8 rows."""
    root = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "0")
        return extract(photos, workspace=root, out=root / "it.h5", block_rows=8, **quick).cache.read_bytes()


@pytest.mark.parametrize("fault", ["features, from the 3rd batch on", "a weight, in the 3rd batch"])
def test_blocks_of_an_engine_that_was_shown_wrong_are_made_again(
    photos: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch, sound: bytes, fault: str
) -> None:
    """Found by the check of a later batch, or at the end; what came before is not to be trusted either."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    options = {**quick, "block_rows": 8, "out": tmp_path / "it.h5"}
    finish, batches = TorchEngine.finish, itertools.count(1)

    def failing(self: TorchEngine, slot: Slot) -> np.ndarray:
        number, features = next(batches), finish(self, slot)
        if number == 3 and fault.startswith("a weight"):
            next(p for p in self.net.parameters() if p.ndim == 1)[0] += 1e-7
        return features * 1.001 if number >= 3 and fault.startswith("features") else features

    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "finish", failing)
        blocks = 3 if fault.startswith("features") else 8
        with pytest.raises(EngineError, match=f"{blocks} finished blocks of this run .*the same command") as error:
            extract(photos, workspace=tmp_path, **options)
    assert "\n" not in str(error.value) and not (tmp_path / "it.h5").exists()
    with Writer(tmp_path / "it.h5") as writer:
        assert not writer.done.any()
    assert extract(photos, workspace=tmp_path, **options).new == 60
    assert (tmp_path / "it.h5").read_bytes() == sound


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"image_size": 8}, ConfigError, "image_size is 8: it must be at least 32"),
        ({"dtype": "float64"}, ConfigError, "choose from float16, float32"),
        ({"weights": "random:x"}, WeightsError, "whole number"),
        ({"trunk": "resnet51"}, ConfigError, "resnet50"),
        ({"wieghts": "random:0"}, ConfigError, "did you mean weights"),
        ({"out": "x.hdf"}, ConfigError, "must end in .h5"),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, ConfigError, "fraction"),
    ],
)
def test_wrong_options_are_one_line_with_the_legal_values(
    photos: Path, tmp_path: Path, quick: Quick, options: Quick, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as refusal:
        extract(photos, workspace=tmp_path, **{**quick, **options})
    assert "\n" not in str(refusal.value)


def test_wrong_weights_are_refused_with_their_keys(photos: Path, tmp_path: Path, resnet: Quick) -> None:
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "r34.pth")
    with pytest.raises(WeightsError, match="layer1"):
        extract(photos, workspace=tmp_path, **{**resnet, "weights": str(tmp_path / "r34.pth")})


def test_a_local_state_dict_with_its_own_head_is_used(photos: Path, tmp_path: Path, resnet: Quick) -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None, num_classes=1000)
    state = {**model.state_dict(), "fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}
    torch.save(state, tmp_path / "mine.pth")
    ours = extract(photos, workspace=tmp_path, **{**resnet, "weights": str(tmp_path / "mine.pth")})
    random = extract(photos, workspace=tmp_path, **resnet)
    np.testing.assert_array_equal(open_cache(ours.cache).features, open_cache(random.cache).features)
    assert ours.key != random.key


def test_a_cache_follows_its_images_to_their_new_place(mine: Path, tmp_path: Path, quick: Quick) -> None:
    """Fine-tuning looks for them where the cache says; rows are copied, and runs go on with them."""
    first = extract(mine, workspace=tmp_path, **quick)
    before = open_cache(first.cache)
    features, content = np.array(before.features), before.content
    moved = mine.rename(mine.with_name("elsewhere"))
    again = extract(moved, workspace=tmp_path, out=first.cache, **quick)
    after = open_cache(again.cache, verify=True)
    assert (again.new, again.reused, after.content) == (0, 60, content)
    assert after.about["root"] == os.path.realpath(moved)
    np.testing.assert_array_equal(after.features, features)
    inode = first.cache.stat().st_ino
    extract(moved, workspace=tmp_path, out=first.cache, **quick)
    assert first.cache.stat().st_ino == inode, "and then there is nothing to do"


def test_an_image_that_vanishes_while_the_job_runs_is_a_failure_and_the_rest_is_kept(
    mine: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, seen = files.read_file, []

    def gone(path: bytes) -> bytes:
        if path.endswith(b"bee/07.png"):
            seen.append(path)
            if len(seen) == 2:  # the first time it was only hashed
                os.unlink(path)
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "read_file", gone)
        made = extract(mine, workspace=tmp_path, max_failures=0.1, **quick)
    assert open_cache(made.cache, verify=True).failed() == {"vanished": 1}
    again = extract(mine, workspace=tmp_path, **quick)
    assert (again.new, again.rows, again.failed) == (0, 59, 0)


def test_runs_that_learned_from_what_the_cache_held_before_are_named(
    mine: Path, tmp_path: Path, quick: Quick, listener: Any
) -> None:
    first = extract(mine, workspace=tmp_path, **quick)
    run = train(first.cache, workspace=tmp_path).run
    Image.effect_noise((40, 40), 50).convert("RGB").save(mine / "cat" / "new.png")
    extract(mine, workspace=tmp_path, watch=listener, **quick)
    assert f"must be trained again: {run.name}" in listener.text


@pytest.mark.parametrize("same_size", [False, True])
def test_an_image_replaced_between_a_kill_and_the_resuming_is_computed_again(
    given: Path, tmp_path: Path, quick: Quick, same_size: bool
) -> None:
    """With given splits nothing else makes the job read the images before it plans."""
    quick = {**quick, "block_rows": 16, "out": tmp_path / "it.h5"}
    killed_after_two_blocks(given, tmp_path, quick)
    with Writer(tmp_path / "it.h5") as writer:
        assert writer.done[:2].all()
    first = open_partial(partial_path(tmp_path / "it.h5")).ids[0]
    replaced = given / os.fsdecode(first)
    size = replaced.stat().st_size
    Image.effect_noise((40, 40), 50).convert("RGB").save(replaced)
    with replaced.open("ab") as file:
        file.write(bytes(max(0, size - replaced.stat().st_size)) if same_size else b"0")
    if same_size:
        os.truncate(replaced, size)
    made = extract(given, workspace=tmp_path, max_failures=0.1, **quick)
    cache = open_cache(made.cache, verify=True)
    assert cache.digests[0].tobytes() == hashlib.sha256(replaced.read_bytes()).digest()
    assert made.reused == 31, "the other finished rows are kept"
    again = extract(given, workspace=tmp_path, max_failures=0.1, **quick)
    assert (again.new, open_cache(made.cache).content) == (0, cache.content)


def test_touched_images_cost_no_forward_when_a_job_goes_on(given: Path, tmp_path: Path, quick: Quick) -> None:
    quick = {**quick, "block_rows": 16, "out": tmp_path / "it.h5"}
    killed_after_two_blocks(given, tmp_path, quick)
    for path in given.rglob("*.*"):
        os.utime(path, ns=(10**18 + 1, 10**18 + 1))
    made = extract(given, workspace=tmp_path, **quick)
    assert made.new == made.rows - 32
    assert (open_cache(made.cache).stats[1] == 10**18 + 1).all(), "and the next time nothing is hashed"


def test_a_change_within_a_tick_of_the_clock_is_seen(
    mine: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image changed just after it was read, to one of the same size and the same time."""
    image = sorted(mine.rglob("*.png"))[0]
    one, other = (Image.new("RGB", (8, 8), colour) for colour in ("red", "lime"))
    one.save(image.with_suffix(".bmp"))
    image.unlink()
    image = image.with_suffix(".bmp")
    now = time.time_ns()
    os.utime(image, ns=(now, now))
    monkeypatch.setattr(files, "FINE_NS", 60 * 10**9)
    first = extract(mine, workspace=tmp_path, **quick)
    other.save(image)
    os.utime(image, ns=(now, now))
    assert extract(mine, workspace=tmp_path, **quick).new == 1
    assert open_cache(first.cache).digests.tobytes().count(hashlib.sha256(image.read_bytes()).digest()) == 1


def test_what_a_killed_job_left_beside_a_finished_cache_goes_when_there_is_nothing_to_do(
    photos: Path, tmp_path: Path, quick: Quick
) -> None:
    first = extract(photos, workspace=tmp_path, **quick)
    tree = sorted(p.name for p in first.cache.parent.iterdir())
    left = first.cache.with_name(first.cache.name + ".partial")
    shutil.copy(first.cache, left)
    shutil.copy(first.cache, left.with_name(left.name + ".old-1"))
    store.partial_failures_path(first.cache).write_text("")
    store.partial_failures_path(first.cache, 1).write_text("")
    first.cache.with_name(f".{first.cache.name}.holder.json").write_text("{}")
    with store.writing_lock(first.cache.with_name("other.h5")):
        pass
    assert extract(photos, workspace=tmp_path, **quick).new == 0
    assert sorted(p.name for p in first.cache.parent.iterdir()) == sorted([*tree, ".other.h5.lock"])


@pytest.mark.parametrize("carved", [True, False])
def test_rehash_looks_at_finished_rows_when_a_job_goes_on(
    given: Path, mine: Path, tmp_path: Path, quick: Quick, carved: bool
) -> None:
    """An image replaced by one of the same size and time: only its bytes tell; carving reads them anyway."""
    source = mine if carved else given
    for path in source.rglob("*.png"):
        os.utime(path, ns=(10**18, 10**18))
    quick = {**quick, "block_rows": 16, "out": tmp_path / "it.h5"}
    killed_after_two_blocks(source, tmp_path, quick)
    item = open_partial(partial_path(tmp_path / "it.h5")).ids[0]
    replaced = source / os.fsdecode(item)
    size = replaced.stat().st_size
    Image.new("RGB", (8, 8), "red").save(replaced)
    assert replaced.stat().st_size < size
    os.truncate(replaced, size)
    os.utime(replaced, ns=(10**18, 10**18))
    made = extract(source, workspace=tmp_path, rehash=not carved, **quick)
    cache = open_cache(made.cache, verify=True)
    assert cache.digests[cache.ids.index(item)].tobytes() == hashlib.sha256(replaced.read_bytes()).digest()


def test_a_mended_image_is_no_failure_any_more_when_a_job_goes_on(given: Path, tmp_path: Path, quick: Quick) -> None:
    quick = {**quick, "block_rows": 16, "out": tmp_path / "it.h5", "max_failures": 0.5}
    bad = sorted((given / "train").rglob("*.png"))[0]
    good = bad.read_bytes()
    bad.write_text("no image")
    killed_after_two_blocks(given, tmp_path, quick)
    bad.write_bytes(good)
    assert extract(given, workspace=tmp_path, **quick).failed == 0
    assert not (tmp_path / "it.failures.jsonl").exists()


def test_what_another_job_published_between_the_plan_and_the_lock_is_not_computed_again(
    given: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.stages.extract import job

    plan_file, others = job.plan_file, []

    def planned_beside_another(*arguments: Any) -> Any:
        plan = plan_file(*arguments)
        if not others:
            others.append(1)
            assert extract(given, workspace=tmp_path, **quick).new == 60
        return plan

    monkeypatch.setattr(job, "plan_file", planned_beside_another)
    assert extract(given, workspace=tmp_path, **quick).new == 0
