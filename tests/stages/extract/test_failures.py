"""Images that give no row: how many may, which are tried again, and what is said of those that are passed over."""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline import extract, open_cache, verify
from pipeline.base.errors import DataError
from pipeline.base.watch import Watch
from pipeline.images import formats
from pipeline.store import failures_path, partial_failures_path, read_failures

Quick = dict[str, Any]


class Heard(Watch):
    """Keeps what is said and warned of."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)


def some(photos: Path, root: Path, each: int) -> Path:
    """A folder of ``each`` images of every class."""
    for folder in sorted(p for p in photos.iterdir() if p.is_dir()):
        (root / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:each]:
            there = Path(shutil.copyfile(path, root / folder.name / path.name))
            os.utime(there, ns=(10**18, 10**18))  # long ago: the time of a new file is not relied on
    return root


def spoil(root: Path, number: int) -> None:
    for path in sorted(p for p in root.rglob("*.*"))[:number]:
        path.write_bytes(b"no image at all")


def test_one_corrupt_image_does_not_end_the_job_on_a_small_folder(photos: Path, tmp_path: Path, quick: Quick) -> None:
    mine = some(photos, tmp_path / "mine", 7)
    spoil(mine, 1)
    assert extract(mine, workspace=tmp_path, **quick).failed == 1


@pytest.mark.parametrize(("each", "allowed"), [(1, 1), (2, 3), (7, 5)])
def test_five_may_fail_or_half_of_a_smaller_folder(
    photos: Path, tmp_path: Path, quick: Quick, each: int, allowed: int
) -> None:
    mine = some(photos, tmp_path / "mine", each)
    spoil(mine, allowed)
    assert extract(mine, workspace=tmp_path, **quick).failed == allowed
    spoil(mine, allowed + 1)
    with pytest.raises(DataError, match=rf"{allowed + 1} of {3 * each} images failed, max_failures=0.01 allows"):
        extract(mine, workspace=tmp_path, **quick)


def test_where_every_image_fails_the_job_ends_with_an_error(photos: Path, tmp_path: Path, quick: Quick) -> None:
    mine = some(photos, tmp_path / "mine", 1)
    spoil(mine, 3)
    with pytest.raises(DataError, match="3 of 3 images failed"):
        extract(mine, workspace=tmp_path, **quick)


def test_none_may_fail_where_that_is_asked_for(photos: Path, tmp_path: Path, quick: Quick) -> None:
    mine = some(photos, tmp_path / "mine", 7)
    spoil(mine, 1)
    with pytest.raises(DataError, match="1 of 21 images failed, max_failures=0 allows 0"):
        extract(mine, workspace=tmp_path, max_failures=0, **quick)


def manifest(photos: Path, root: Path, gone: int) -> Path:
    """A manifest of 21 images and of ``gone`` that are not there."""
    mine = some(photos, root, 7)
    paths = [path.relative_to(mine) for path in sorted(mine.rglob("*.*"))]
    paths += [Path(f"{'ant' if n % 2 else 'bee'}/gone{n}.png") for n in range(gone)]
    (mine / "m.csv").write_text("filename,class\n" + "".join(f"{path},{path.parent}\n" for path in paths))
    return mine / "m.csv"


def test_files_of_a_manifest_that_are_missing_are_failures_each_named(
    photos: Path, tmp_path: Path, quick: Quick
) -> None:
    spec = manifest(photos, tmp_path / "mine", 3)
    heard = Heard()
    made = extract(spec, workspace=tmp_path, watch=heard, **quick)
    assert (made.rows, made.failed) == (24, 3)
    assert "3 of 24 files are not there (the first: bee/gone0.png, line 23)" in made.warnings[0]
    assert [line for line in heard.warned if "random" not in line] == list(made.warnings)
    told = read_failures(failures_path(made.cache))
    assert {(f.id, f.kind, f.reason) for f in told.values()} == {
        (name, "vanished", "there is no such file") for name in (b"bee/gone0.png", b"ant/gone1.png", b"bee/gone2.png")
    }
    assert extract(spec, workspace=tmp_path, **quick).new == 0
    shutil.copyfile(sorted(photos.rglob("*.*"))[-1], spec.parent / "ant" / "gone1.png")
    again = extract(spec, workspace=tmp_path, **quick)
    assert (again.new, again.failed) == (1, 2)


def test_too_many_missing_files_end_the_job_before_it_begins_all_named(
    photos: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = manifest(photos, tmp_path / "mine", 6)
    out = tmp_path / "it.h5"
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.stages.extract.blocks.do_blocks", None)
        with pytest.raises(DataError, match=r"6 of 27 images failed.*gone1.png': there is no.*nothing was computed"):
            extract(spec, workspace=tmp_path, out=out, **quick)
    told = read_failures(partial_failures_path(out))
    assert sorted(told) == [
        b"ant/gone1.png",
        b"ant/gone3.png",
        b"ant/gone5.png",
        b"bee/gone0.png",
        b"bee/gone2.png",
        b"bee/gone4.png",
    ]
    assert extract(spec, workspace=tmp_path, out=out, max_failures=0.3, **quick).failed == 6
    assert not partial_failures_path(out).exists()


@pytest.mark.slow
def test_images_above_the_limit_are_tried_again_when_it_is_raised_and_only_then(
    photos: Path, tmp_path: Path, quick: Quick
) -> None:
    mine = some(photos, tmp_path / "mine", 7)
    Image.new("RGB", (100, 90), "red").save(mine / "ant" / "big.png")
    os.utime(mine / "ant" / "big.png", ns=(10**18, 10**18))
    made = extract(mine, workspace=tmp_path, max_pixels=8_999, **quick)
    assert (made.rows, made.failed) == (22, 1)
    [told] = read_failures(failures_path(made.cache)).values()
    assert (told.kind, "100 x 90 pixels, the limit is 8,999" in told.reason) == ("too_large", True)
    before = made.cache.read_bytes()
    for lower in (8_999, 5_000):
        assert extract(mine, workspace=tmp_path, max_pixels=lower, **quick).new == 0
        assert made.cache.read_bytes() == before
    raised = extract(mine, workspace=tmp_path, max_pixels=9_000, **quick)
    assert (raised.cache, raised.new, raised.reused, raised.failed) == (made.cache, 1, 21, 0)
    assert raised.key == made.key
    lowered = extract(mine, workspace=tmp_path, max_pixels=5_000, **quick)
    assert (lowered.new, lowered.failed) == (0, 0)  # a row that is there stays
    assert verify(made.cache, str(mine), sample=22, workspace=tmp_path).sample.rows == 22


def test_a_raised_limit_counts_for_an_unfinished_file_too(photos: Path, tmp_path: Path, quick: Quick) -> None:
    mine = some(photos, tmp_path / "mine", 7)
    Image.new("RGB", (100, 90), "red").save(mine / "ant" / "big.png")
    with pytest.raises(DataError, match="1 of 22 images failed"):
        extract(mine, workspace=tmp_path, max_pixels=8_999, max_failures=0, **quick)
    made = extract(mine, workspace=tmp_path, max_failures=0, **quick)
    assert (made.new, made.reused, made.failed) == (1, 21, 0)


def test_what_could_not_be_read_is_tried_again_once_its_format_can_be(
    photos: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = manifest(photos, tmp_path / "mine", 0)
    picture = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(picture, "AVIF")
    (spec.parent / "new.avif").write_bytes(picture.getvalue())
    (spec.parent / "ant" / "text.png").write_text("no image")
    with spec.open("a") as file:
        file.write("new.avif,ant\nant/text.png,ant\n")
    with monkeypatch.context() as then:
        older = formats.FORMATS[:6]
        for room in ("pipeline.images.formats", "pipeline.images", "pipeline.images.decode"):
            then.setattr(sys.modules[room], "readable", lambda: older)  # the room has a function named decode
        made = extract(spec, workspace=tmp_path, **quick)
        assert made.failed == 2
        assert extract(spec, workspace=tmp_path, **quick).new == 0
    again = extract(spec, workspace=tmp_path, **quick)
    assert (again.cache, again.new, again.failed, again.key) == (made.cache, 1, 1, made.key)
    assert extract(spec, workspace=tmp_path, **quick).new == 0


def test_photographs_that_cannot_be_read_here_are_counted_named_and_warned_of(
    photos: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "readable", lambda: formats.FORMATS[:-1])
    mine = some(photos, tmp_path / "mine", 7)
    for number in range(9):
        (mine / "ant" / f"IMG_{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (mine / "bee" / "raw.NEF").write_bytes(b"II*\0")
    (mine / "notes.txt").write_text("notes")
    heard = Heard()
    made = extract(mine, workspace=tmp_path, watch=heard, **quick)
    assert made.rows == 21
    assert made.warnings == (
        "9 HEIC images passed over: reading them needs the package pillow-heif (`pip install pillow-heif`)",
        "1 image passed over, of formats that are not read (1 .nef): convert them to JPEG, PNG or TIFF",
    )
    assert [line for line in heard.warned if "random" not in line] == list(made.warnings)
    assert "1 skipped as not an image" in heard.said
    assert made.skipped == {formats.NOT_HERE: 9, formats.NOT_READ: 1, "not an image": 1}


def test_a_folder_of_such_images_alone_says_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "readable", lambda: formats.FORMATS[:-1])
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(DataError, match=r"no images found.*1 HEIC image passed over.*pip install pillow-heif"):
        extract(mine, workspace=tmp_path)


def test_the_cache_says_what_could_be_read(photos: Path, tmp_path: Path, quick: Quick) -> None:
    made = extract(some(photos, tmp_path / "mine", 7), workspace=tmp_path, max_pixels=100_000_000, **quick)
    assert open_cache(made.cache).about["readable"]["max_pixels"] == 100_000_000
    assert "AVIF" in open_cache(made.cache).about["readable"]["formats"]
