"""`pipeline relabel`: other labels, splits and paths on the same rows, never a row under the wrong one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import extract, open_cache, relabel
from pipeline.base.errors import CacheError, ConfigError
from pipeline.cli.main import main
from pipeline.store import Cache, create_partial, partial_path, stale_partials

Quick = dict[str, Any]


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory, quick: Quick) -> Path:
    return extract(photos, workspace=tmp_path_factory.mktemp("made"), block_rows=16, **quick).cache


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> Path:
    """A copy of the cache that a test may change."""
    return Path(shutil.copy(made, tmp_path / "mine.h5"))


@pytest.fixture
def mine(photos: Path, tmp_path: Path) -> Path:
    """A copy of the photographs, times and all, that a test may change."""
    return Path(shutil.copytree(photos, tmp_path / "photos"))


@pytest.fixture(autouse=True)
def no_trunk(monkeypatch: pytest.MonkeyPatch, made: Path) -> None:
    """No test here may run a trunk but those that extract on purpose."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a trunk was loaded")

    monkeypatch.setattr("pipeline.trunk.frozen.FrozenTrunk.__init__", refuse)


def by_content(cache: Cache) -> dict[bytes, np.ndarray[Any, Any]]:
    return {d.tobytes(): np.array(row) for d, row in zip(cache.digests, cache.features, strict=True)}


def manifest(path: Path, rows: dict[str, tuple[str, str]]) -> Path:
    path.write_text("path,label,split\n" + "".join(f"{i},{y},{s}\n" for i, (y, s) in rows.items()))
    return path


def listed(cache: Cache, change: Callable[[str, str, str], tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Each item with the class and split that ``change(path, class, split)`` gives it."""
    names = ("", "train", "val", "test")
    return {
        i.decode(): change(i.decode(), cache.classes[y], names[s])
        for i, y, s in zip(cache.ids, cache.labels, cache.splits, strict=True)
    }


def test_a_manifest_gives_new_classes_and_splits_and_rows_keep_their_bits(cache: Path, mine: Path) -> None:
    """Ants become wasps, the order of the classes changes; every fifth image goes to test."""
    before = open_cache(cache)
    rows = by_content(before)

    def change(path: str, name: str, split: str) -> tuple[str, str]:
        return ("wasp" if name == "ant" else name), ("test" if path[-5] in "05" else split)

    wanted = listed(before, change)
    result = relabel(cache, manifest(mine / "new.csv", wanted), workspace=mine.parent)
    after = open_cache(cache, verify=True)
    assert after.classes == ("bee", "cat", "wasp")
    assert result.relabelled == 20
    assert result.resplit == sum(wanted[i.decode()][1] != ("", "train", "val", "test")[s]
                                 for i, s in zip(before.ids, before.splits, strict=True))  # fmt: skip
    for split in ("train", "val", "test"):
        part = after.split(split)
        assert {(i.decode(), after.classes[y]) for i, y in zip(part.ids, part.y, strict=True)} == {
            (i, y) for i, (y, s) in wanted.items() if s == split
        }
        assert part.ids == sorted(part.ids)
    for digest, row in zip(after.digests, after.features, strict=True):
        np.testing.assert_array_equal(row, rows[digest.tobytes()])
    assert after.key == before.key
    assert after.about["weights"] == before.about["weights"]
    assert after.about["history"][0]["created"] == before.created


def test_moved_and_renamed_files_keep_their_rows(cache: Path, mine: Path) -> None:
    """Two files swap their names: content decides, not the path."""
    before = open_cache(cache)
    rows = by_content(before)
    (mine / "ant" / "00.png").rename(mine / "swap")
    (mine / "bee" / "00.png").rename(mine / "ant" / "00.png")
    (mine / "swap").rename(mine / "bee" / "00.png")
    (mine / "cat" / "05.png").rename(mine / "cat" / "moved.png")
    result = relabel(cache, mine, workspace=mine.parent)
    assert (result.relabelled, result.renamed, result.rows) == (2, 3, 60)
    after = open_cache(cache, verify=True)
    for digest, row in zip(after.digests, after.features, strict=True):
        np.testing.assert_array_equal(row, rows[digest.tobytes()])
    assert b"cat/moved.png" in after.ids


def test_carving_is_that_of_extract(cache: Path, mine: Path, quick: Quick) -> None:
    """After relabel with other fractions, extract with the same ones finds nothing to do."""
    relabel(cache, mine, val_fraction=0.3, test_fraction=0.1, split_seed=4, workspace=mine.parent)
    assert open_cache(cache).counts() == {"none": 0, "train": 36, "val": 18, "test": 6}
    before = cache.read_bytes()
    again = extract(mine, out=cache, workspace=mine.parent, val_fraction=0.3, test_fraction=0.1, split_seed=4, **quick)
    assert (again.new, again.reused) == (0, 60)
    assert cache.read_bytes() == before


def test_images_that_the_cache_has_not_are_refused_with_the_cure(cache: Path, mine: Path) -> None:
    before = cache.read_bytes()
    (mine / "ant" / "new.png").write_bytes((mine / "ant" / "00.png").read_bytes() + b"more")
    with pytest.raises(CacheError, match=r"1 images of .*'ant/new.png'\): they need the trunk: run `pipeline extract`"):
        relabel(cache, mine, workspace=mine.parent)
    assert cache.read_bytes() == before


def test_a_changed_image_is_refused_though_its_path_stays(cache: Path, mine: Path) -> None:
    """The row is of the old bytes."""
    with (mine / "ant" / "00.png").open("ab") as file:
        file.write(b"more")
    with pytest.raises(CacheError, match="run `pipeline extract`"):
        relabel(cache, mine, drop_missing=True, workspace=mine.parent)


def test_rows_that_the_source_has_not_are_dropped_only_when_asked_for(cache: Path, mine: Path) -> None:
    (mine / "ant" / "03.png").unlink()
    with pytest.raises(CacheError, match=r"1 images .*'ant/03.png'.*drop_missing=True"):
        relabel(cache, mine, workspace=mine.parent)
    result = relabel(cache, mine, drop_missing=True, workspace=mine.parent)
    assert (result.dropped, result.rows) == (["ant/03.png"], 59)
    assert b"ant/03.png" not in open_cache(cache, verify=True).ids


def test_another_copy_of_a_known_image_takes_its_row(cache: Path, mine: Path) -> None:
    shutil.copy(mine / "ant" / "00.png", mine / "bee" / "copy.png")
    result = relabel(cache, mine, workspace=mine.parent)
    assert (result.copied, result.rows) == (1, 61)
    after = open_cache(cache, verify=True)
    at = [after.ids.index(i) for i in (b"ant/00.png", b"bee/copy.png")]
    np.testing.assert_array_equal(after.features[at[0]], after.features[at[1]])
    assert after.splits[at[0]] == after.splits[at[1]]


def test_an_unreadable_file_takes_the_row_of_its_path(cache: Path, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that goes away between listing and reading still has its row."""
    from pipeline.images import ImageFailure
    from pipeline.images.sources import files

    real = files.read_file

    def vanished(path: bytes) -> bytes:
        if path.endswith(b"ant/00.png"):
            raise ImageFailure("vanished", "there is no such file")
        return real(path)

    monkeypatch.setattr(files, "read_file", vanished)
    (mine / "ant" / "01.png").rename(mine / "bee" / "x.png")
    assert relabel(cache, mine, workspace=mine.parent).rows == 60
    after = open_cache(cache, verify=True)
    assert after.digests[after.ids.index(b"ant/00.png")].any()


def test_the_same_labels_again_write_nothing(cache: Path, mine: Path) -> None:
    relabel(cache, mine, workspace=mine.parent)
    before = cache.stat().st_mtime_ns, cache.stat().st_ino
    assert not relabel(cache, mine, workspace=mine.parent).written
    assert (cache.stat().st_mtime_ns, cache.stat().st_ino) == before


def test_out_leaves_the_cache_alone(cache: Path, mine: Path, tmp_path: Path) -> None:
    before = cache.read_bytes()
    shutil.move(mine / "ant" / "00.png", mine / "bee" / "ant.png")
    result = relabel(cache, mine, out=tmp_path / "other.h5", workspace=tmp_path)
    assert result.cache == tmp_path / "other.h5"
    assert cache.read_bytes() == before
    with pytest.raises(ConfigError, match="must end in .h5"):
        relabel(cache, mine, out=tmp_path / "other.txt", workspace=tmp_path)


def test_a_job_that_breaks_off_leaves_the_cache_whole_and_nothing_beside_it(
    cache: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache.read_bytes()
    shutil.move(mine / "ant" / "00.png", mine / "bee" / "ant.png")

    def full(*_: Any) -> None:
        raise CacheError("disk full")

    monkeypatch.setattr("pipeline.store.Writer.write_block", full)
    with pytest.raises(CacheError, match="disk full"):
        relabel(cache, mine, workspace=mine.parent)
    assert cache.read_bytes() == before
    assert not list(cache.parent.glob("mine.h5.*"))


def test_an_unfinished_file_is_removed_only_when_the_cache_has_its_rows(cache: Path, mine: Path) -> None:
    """What a killed rewriting leaves is worthless; what an interrupted extraction leaves is not."""
    from pipeline.store import Writer
    from pipeline.store.rewrite import kept

    held = open_cache(cache)
    for known in (True, False):
        contents = kept(open_cache(cache), np.arange(60), "begun")
        create_partial(cache, contents)
        with Writer(cache) as writer:
            digests = contents.digests[:16] if known else contents.digests[:16] ^ 1
            writer.write_block(0, np.array(held.features[:16]), digests, held.states[:16])
        (mine / "ant" / f"{1 if known else 2:02d}.png").rename(mine / "bee" / f"{known}.png")
        relabel(cache, mine, workspace=mine.parent)
        assert not partial_path(cache).exists()
        assert len(stale_partials(cache)) == (0 if known else 1)


def test_the_command_says_what_became_of_the_rows(cache: Path, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move(mine / "ant" / "00.png", mine / "bee" / "ant.png")
    assert main(["relabel", str(cache), str(mine), "--workspace", str(mine.parent)]) == 0
    assert "60 rows: 1 with another class" in capsys.readouterr().out
