"""`pipeline relabel`: other labels, splits and paths on the same rows, never a row under the wrong one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import extract, open_cache, relabel, rows, train
from pipeline.base.errors import CacheError, ConfigError, DataError
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


@pytest.fixture(scope="module")
def flawed(photos: Path, tmp_path_factory: pytest.TempPathFactory, quick: Quick) -> Path:
    """A cache of images of which one failed."""
    root = tmp_path_factory.mktemp("flawed")
    shutil.copytree(photos, root / "photos")
    (root / "photos" / "ant" / "bad.png").write_bytes(b"no image")
    return extract(root / "photos", workspace=root, block_rows=16, **quick).cache


@pytest.fixture(autouse=True)
def no_trunk(monkeypatch: pytest.MonkeyPatch, made: Path, flawed: Path) -> None:
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


def test_runs_that_learned_from_the_old_labels_are_named(cache: Path, mine: Path, listener: Any) -> None:
    place = mine.parent
    run = train(cache, workspace=place).run.name
    same = manifest(mine / "same.csv", listed(open_cache(cache), lambda path, name, split: (name, split)))
    relabel(cache, same, workspace=place, watch=listener)
    elsewhere = manifest(
        mine / "other.csv", listed(open_cache(cache), lambda path, name, split: (name.replace("ant", "wasp"), split))
    )
    relabel(cache, elsewhere, out=place / "copy.h5", workspace=place, watch=listener)
    assert "must be trained again" not in listener.text
    relabel(cache, elsewhere, workspace=place, watch=listener)
    assert f"learned from what {cache.name} held before, and must be trained again: {run}" in listener.text


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
    with pytest.raises(
        CacheError, match=r"1 image of .*'ant/new.png'\): what is new needs the trunk: run `pipeline extract`"
    ):
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
    with pytest.raises(CacheError, match=r"1 image .*'ant/03.png'.*drop_missing=True"):
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


def splits_of(cache: Cache) -> dict[bytes, int]:
    return dict(zip(cache.ids, cache.splits.tolist(), strict=True))


def test_a_source_without_splits_leaves_those_of_the_cache(
    cache: Path, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ants become bees: a division by class would be another one; asked for, it is made."""
    before = splits_of(open_cache(cache))
    ids = [item.decode() for item in open_cache(cache).ids]
    (mine / "new.csv").write_text("path,label\n" + "".join(f"{i},{i[:3].replace('ant', 'bee')}\n" for i in ids))
    relabel(cache, mine / "new.csv", workspace=mine.parent)
    assert splits_of(open_cache(cache)) == before
    assert open_cache(cache).classes == ("bee", "cat")
    shutil.move(mine / "ant" / "00.png", mine / "bee" / "ant.png")
    assert main(["relabel", str(cache), str(mine), "--workspace", str(mine.parent)]) == 0
    assert "gives no splits: the images keep those of the cache (--val-fraction divides" in capsys.readouterr().out
    relabel(cache, mine, split_seed=1, workspace=mine.parent)
    assert splits_of(open_cache(cache)) != before


def test_a_class_without_train_images_in_the_splits_that_stay_is_refused(cache: Path, mine: Path) -> None:
    before = open_cache(cache)
    wanted = {i.decode(): "new" if s == 3 else i.decode()[:3] for i, s in splits_of(before).items()}
    (mine / "new.csv").write_text("path,label\n" + "".join(f"{i},{y}\n" for i, y in wanted.items()))
    with pytest.raises(DataError, match="'new' would have no train images in the splits that stay"):
        relabel(cache, mine / "new.csv", workspace=mine.parent)


def test_what_rows_writes_is_taken_back(flawed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it is, with other classes, and of one split alone; the failed image, which has no row there, stays."""
    cache = Path(shutil.copy(flawed, tmp_path / "mine.h5"))
    before, table = open_cache(flawed), tmp_path / "rows.csv"
    rows(str(cache), out=table, workspace=tmp_path)
    assert not relabel(cache, table, workspace=tmp_path).written
    table.write_text(table.read_text().replace(",ant,", ",wasp,"))
    assert main(["relabel", str(cache), str(table), "--workspace", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "not named in" in said and "left as it is in the cache (--drop-missing drops it): 1 image" in said
    after = open_cache(cache, verify=True)
    assert after.classes == ("ant", "bee", "cat", "wasp")
    assert splits_of(after) == splits_of(before)
    assert by_content(after).keys() == by_content(before).keys()
    ant, wasp = (dict(zip(after.ids, after.labels.tolist(), strict=True))[i] for i in (b"ant/bad.png", b"ant/00.png"))
    assert (ant, wasp) == (0, 3)
    assert [after.about[name] for name in ("source", "root")] == [before.about[name] for name in ("source", "root")]
    rows(str(cache), out=tmp_path / "test.csv", split=("test",), workspace=tmp_path)
    one = (tmp_path / "test.csv").read_text().replace(",test,", ",val,")
    (tmp_path / "test.csv").write_text(one)
    assert relabel(cache, tmp_path / "test.csv", workspace=tmp_path).resplit == before.counts()["test"]
    assert open_cache(cache).counts()["test"] == 0
    assert relabel(cache, tmp_path / "test.csv", drop_missing=True, workspace=tmp_path).rows == before.counts()["test"]


def test_a_table_of_rows_in_which_the_number_alone_was_changed_is_refused(cache: Path, tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("id,label,class,split,f0\nant/00.png,1,ant,train,0.5\n")
    with pytest.raises(DataError, match="line 2: label 1 and class 'ant'.*write the new one into the column class"):
        relabel(cache, table, workspace=tmp_path)
    table.write_text("id,label,class,split,f0\nant/none.png,1,ant,train,0.5\n")
    with pytest.raises(DataError, match="line 2: the cache has no image 'ant/none.png'"):
        relabel(cache, table, workspace=tmp_path)


def test_a_table_of_ids_that_lies_elsewhere_changes_what_it_names(cache: Path, tmp_path: Path) -> None:
    """Only its labels: paths, splits and the other images stay."""
    before = open_cache(cache)
    (tmp_path / "few.csv").write_text("image,label\nant/00.png,wasp\nant/01.png,\n")
    result = relabel(cache, tmp_path / "few.csv", workspace=tmp_path)
    after = open_cache(cache)
    assert (result.relabelled, result.renamed, result.resplit) == (2, 0, 0)
    assert splits_of(after) == splits_of(before)
    found = dict(zip(after.ids, [*after.labels.tolist()], strict=True))
    assert (after.classes[found[b"ant/00.png"]], found[b"ant/01.png"]) == ("wasp", -1)
    assert after.classes[found[b"ant/02.png"]] == "ant"


def test_an_image_that_failed_is_not_missed(flawed: Path, mine: Path, tmp_path: Path) -> None:
    """A folder from which the damaged file was removed holds all that the cache has rows of."""
    cache = Path(shutil.copy(flawed, tmp_path / "mine.h5"))
    assert relabel(cache, mine, workspace=mine.parent).dropped == ["ant/bad.png"]
    assert len(open_cache(cache)) == 60


def test_the_new_cache_may_be_named(cache: Path, mine: Path, tmp_path: Path) -> None:
    before = cache.read_bytes()
    assert relabel(cache, mine, name="other", workspace=tmp_path).cache == tmp_path / "features" / "other.h5"
    assert cache.read_bytes() == before
    with pytest.raises(ConfigError, match="give one of them"):
        relabel(cache, mine, name="other", out=tmp_path / "o.h5", workspace=tmp_path)
    with pytest.raises(CacheError, match="exists already"):
        relabel(cache, mine, name="other", workspace=tmp_path)


def test_the_command_says_what_became_of_the_rows(cache: Path, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move(mine / "ant" / "00.png", mine / "bee" / "ant.png")
    assert main(["relabel", str(cache), str(mine), "--workspace", str(mine.parent)]) == 0
    assert "60 rows: 1 with another class" in capsys.readouterr().out
