"""`pipeline verify`: a sound cache is said to be sound, and each way of being wrong is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline import extract, open_cache, verify
from pipeline.base.errors import CacheError, ConfigError
from pipeline.cli.main import main


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory, quick: dict[str, Any]) -> Path:
    root = tmp_path_factory.mktemp("made")
    return extract(photos, workspace=root, block_rows=16, **quick).cache


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> Path:
    """A copy of the cache that a test may damage."""
    return Path(shutil.copy(made, tmp_path / "mine.h5"))


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A cache root that knows the weights and has every row."""
    return Path(shutil.copytree(made.parents[1], tmp_path / "root"))


@pytest.fixture
def mine(photos: Path, tmp_path: Path) -> Path:
    """A copy of the photographs that a test may change."""
    return Path(shutil.copytree(photos, tmp_path / "photos"))


def flip(path: Path, dataset: str, at: int) -> None:
    """Turn one bit of a dataset's byte ``at``."""
    with h5py.File(path, "r") as file:
        place = file[dataset].id.get_offset() + at
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 4]))


def put(path: Path, dataset: str, row: int, value: Any) -> None:
    with h5py.File(path, "r+") as file:
        file[dataset][row] = value


def test_a_sound_cache_passes_in_one_plain_line(cache: Path, tmp_path: Path, listener: Any) -> None:
    report = verify(cache, watch=listener, workspace=tmp_path)
    assert (report.rows, report.blocks, report.failed) == (60, 4, 0)
    assert listener.text == f"{cache} is sound: 60 good rows, 4 blocks, all checksums hold\n"


def test_every_damaged_block_is_named_and_the_sound_ones_are_not(cache: Path, tmp_path: Path, listener: Any) -> None:
    """Blocks 1 and 3 have a flipped bit."""
    width = open_cache(cache).dim * 2
    flip(cache, "/features", 20 * width)
    flip(cache, "/features", 59 * width)
    with pytest.raises(CacheError, match="2 wrong; the first: block 1 "):
        verify(cache, watch=listener, workspace=tmp_path)
    assert "block 3" in listener.text
    assert "block 0" not in listener.text
    assert "block 2" not in listener.text


@pytest.mark.parametrize(
    ("dataset", "row", "value", "words"),
    [
        ("/items/state", 7, 0, "digests or states of block 0 do not match"),
        ("/items/digest", 7, 0, "digests or states of block 0 do not match"),
        ("/labels/y", 7, 1, "labels, splits or class names do not match"),
        ("/items/id/text", 7, 66, "item ids do not match"),
    ],
)
def test_a_changed_byte_outside_the_features_is_found(
    cache: Path, tmp_path: Path, dataset: str, row: int, value: Any, words: str
) -> None:
    put(cache, dataset, row, value)
    with pytest.raises(CacheError, match=words):
        verify(cache, workspace=tmp_path)


def test_rows_extracted_afresh_are_within_the_rounding_of_the_storage(
    photos: Path, root: Path, quick: dict[str, Any]
) -> None:
    for dtype, low, high in (("float16", 1e-5, 6e-4), ("float32", 0.0, 3e-5)):
        made = extract(photos, workspace=root, dtype=dtype, **quick).cache
        sample = verify(made, source=photos, sample=12, workspace=root).sample
        assert sample is not None
        assert sample.rows == 12
        assert low <= sample.max_difference <= sample.tolerance <= high


def test_rows_of_other_numbers_are_found_though_their_checksums_hold(photos: Path, cache: Path, root: Path) -> None:
    """Rows rolled by one, with checksums to match: only a fresh extraction can tell."""
    from pipeline.base.workspace import Workspace
    from pipeline.store.rewrite import kept, locked, rewrite

    with locked(open_cache(cache), root / "rolled.h5") as (held, target):
        rows = np.arange(60)
        rewrite(held, np.roll(rows, 1), kept(held, rows, "rolled"), target, Workspace(root))
    assert verify(root / "rolled.h5", workspace=root).rows == 60
    with pytest.raises(CacheError, match="rows extracted afresh differ by"):
        verify(root / "rolled.h5", source=photos, sample=8, workspace=root)


def test_another_folder_than_the_caches_is_told_from_one_that_has_changed(
    cache: Path, mine: Path, made: Path, photos: Path
) -> None:
    """Nothing is to be extracted then, but the right folder given."""
    for number, path in enumerate(sorted(mine.rglob("*.png"))):
        path.write_bytes(path.read_bytes() + b"%d" % number)
    with pytest.raises(CacheError, match=f"none of its 60 images is in .*made of .*lay in {photos}; give what is"):
        verify(cache, source=mine, workspace=made.parents[1])


def test_changed_missing_new_renamed_and_relabelled_images_are_listed(
    cache: Path, mine: Path, made: Path, listener: Any
) -> None:
    """By content, under whatever name, size and time."""
    shutil.copy(mine / "ant" / "01.png", mine / "ant" / "00.png")
    (mine / "bee" / "02.png").unlink()
    shutil.copy(mine / "cat" / "03.png", mine / "cat" / "more.png")
    (mine / "cat" / "04.png").rename(mine / "cat" / "renamed.png")
    with pytest.raises(CacheError, match="1 changed, 1 missing, 1 new, 1 renamed; `pipeline extract`"):
        verify(cache, source=mine, sample=4, workspace=made.parents[1], watch=listener)
    for line in ("changed", "ant/00.png", "bee/02.png", "cat/more.png", "cat/04.png -> cat/renamed.png"):
        assert line in listener.text
    report = verify(cache, source=mine, sample=4, allow_changes=True, workspace=made.parents[1])
    assert report.changes is not None
    assert report.changes["missing"] == {"count": 1, "first": ["bee/02.png"]}
    assert report.sample is not None
    json.dumps(report.to_json())


def test_a_class_or_split_that_the_source_says_otherwise_is_found(
    cache: Path, mine: Path, root: Path, tmp_path: Path, quick: dict[str, Any]
) -> None:
    """A manifest with one label swapped, and one with a row in another split."""
    held = open_cache(cache)
    lines = [
        f"photos/{name.decode()},{held.classes[y]},{('', 'train', 'val', 'test')[s]}"
        for name, y, s in zip(held.ids, held.labels, held.splits, strict=True)
    ]
    for number, (old, new) in enumerate(((",ant,train", ",bee,train"), (",cat,val", ",cat,train"), ("", ""))):
        manifest = tmp_path / f"{number}.csv"
        manifest.write_text("\n".join(["path,label,split", "\n".join(lines).replace(old, new, 1)]) + "\n")
        copy = extract(manifest, workspace=root, out=root / "features" / f"{number}.h5", **quick).cache
        truth = tmp_path / "2.csv"
        truth.write_text("\n".join(["path,label,split", *lines]) + "\n")
        if old:
            with pytest.raises(CacheError, match="1 relabelled; `pipeline relabel`"):
                verify(copy, source=truth, sample=0, workspace=root)
        else:
            assert verify(copy, source=truth, sample=0, workspace=root).source == str(truth)


def test_the_command_exits_2_on_damage_and_0_without(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["verify", str(cache), "--workspace", str(tmp_path)]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["blocks"] == 4
    flip(cache, "/features", 5)
    assert main(arguments) == 2
    assert "error:" in capsys.readouterr().err


def test_a_negative_sample_is_refused() -> None:
    with pytest.raises(ConfigError, match="sample is -1"):
        verify("latest", sample=-1)
