"""Which files count as images, and that no name is too strange."""

from __future__ import annotations

import builtins
import os
import time

import pytest

from pipeline.images import IMAGE_EXTENSIONS, formats
from pipeline.images.sources.walk import walk


def paths(root) -> list[bytes]:
    return sorted(f.path for f in walk(bytes(root)).files)


def test_every_image_extension_counts_in_any_case(plant, all_formats):
    names = [f"x{e}" for e in IMAGE_EXTENSIONS] + [f"y{e.upper()}" for e in IMAGE_EXTENSIONS]
    assert paths(plant(*names)) == sorted(n.encode() for n in names)


def test_hidden_junk_and_other_files_are_skipped_and_listed_by_reason(plant):
    """A folder .ipynb_checkpoints must not become a class."""
    root = plant(
        "cat/1.png", "cat/.DS_Store", ".ipynb_checkpoints/1.png", "cat/._1.png", "Thumbs.db", "DESKTOP.INI",
        "__MACOSX/cat/1.png", "cat/@eaDir/1.png", "cat/2.png.tmp", "cat/3.png~", "cat/notes.txt", "cat/no_extension",
    )  # fmt: skip
    found = walk(bytes(root))
    assert [f.path for f in found.files] == [b"cat/1.png"]
    assert {reason: sorted(left) for reason, left in found.skipped.items()} == {
        "hidden": [b".ipynb_checkpoints", b"cat/.DS_Store", b"cat/._1.png"],
        "junk": sorted([b"Thumbs.db", b"DESKTOP.INI", b"__MACOSX", b"cat/@eaDir", b"cat/2.png.tmp", b"cat/3.png~"]),
        "not an image": [b"cat/no_extension", b"cat/notes.txt"],
    }


@pytest.mark.parametrize(
    "name", [b"new\nline.png", "snow\u2603 \U0001f600.png".encode(), b"not-utf8-\xff\xfe.png", b" .png"]
)
def test_strange_names_come_through_byte_for_byte(plant, name):
    root = plant(b"c/" + name)
    assert paths(root) == [b"c/" + name]
    with open(os.path.join(bytes(root), paths(root)[0]), "rb") as file:
        assert file.read() == b"c/" + name


def test_links_to_files_and_folders_are_followed(plant):
    root = plant("a/1.png")
    other = plant("deep/2.png", under="elsewhere")
    (root / "a" / "linked.png").symlink_to(other / "deep" / "2.png")
    (root / "b").symlink_to(other)
    assert paths(root) == [b"a/1.png", b"a/linked.png", b"b/deep/2.png"]


def test_loops_of_links_end_and_are_listed(plant):
    root = plant("a/1.png")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self.png").symlink_to(root / "a" / "self.png")
    (root / "a" / "gone.png").symlink_to(root / "nowhere.png")
    found = walk(bytes(root))
    assert [f.path for f in found.files] == [b"a/1.png"]
    assert {reason: sorted(left) for reason, left in found.skipped.items()} == {
        "link to a folder that is listed already": [b"a/up/"],
        "broken link": [b"a/gone.png", b"a/self.png"],
    }


def test_each_folder_is_entered_once_however_many_ways_lead_to_it(plant):
    """24 levels of two links each: 16 million ways to one image."""
    root = plant("real/1.png")
    for level in range(24):
        (root / f"{level:02d}").mkdir()
        target = root / f"{level + 1:02d}" if level < 23 else root / "real"
        for name in ("left", "right"):
            (root / f"{level:02d}" / name).symlink_to(target)
    found = walk(bytes(root))
    assert [f.path for f in found.files] == [b"real/1.png"], "where it lies, not through a link"
    assert len(found.skipped["link to a folder that is listed already"]) == 48
    (root / "real").rename(root.parent / "elsewhere")
    for name in ("b", "a", "c"):
        (root / name).symlink_to(root.parent / "elsewhere")
    assert paths(root) == [b"a/1.png"], "of links alone the first by name"


def test_a_pipe_with_an_image_name_is_not_an_image(plant):
    root = plant("a/1.png")
    os.mkfifo(root / "a" / "pipe.png")
    assert walk(bytes(root)).skipped == {"not a regular file": [b"a/pipe.png"]}


def test_sizes_and_times_are_those_of_the_file_system(plant):
    root = plant("a/1.png")
    os.utime(root / "a/1.png", ns=(5, 1_700_000_000_123_456_789))
    (found,) = walk(bytes(root)).files
    assert (found.size, found.mtime_ns) == (7, os.stat(root / "a/1.png").st_mtime_ns)


def test_no_image_is_opened(plant, monkeypatch):
    root = plant("a/1.png", "b/2.jpg")

    def refuse(*_args, **_options):
        raise AssertionError("an image was opened")

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(os, "open", refuse)
    assert paths(root) == [b"a/1.png", b"b/2.jpg"]


@pytest.mark.slow
def test_thousands_of_files_are_listed_fast(tmp_path):
    """Issue 3: 50,000 files again in under 3 s all told, so the walk may take a small part of a second for 3,000."""
    for c in range(3):
        (tmp_path / str(c)).mkdir()
        for i in range(1000):
            os.close(os.open(tmp_path / str(c) / f"{i}.png", os.O_CREAT | os.O_WRONLY))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert len(walk(bytes(tmp_path)).files) == 3_000
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.3  # wide margin: the machine may be busy


def test_images_that_cannot_be_read_are_told_from_what_is_none(plant, monkeypatch):
    monkeypatch.setattr(formats, "readable", lambda: formats.FORMATS[:-1])
    root = plant("1.HEIC", "2.heif", "a/3.hif", "4.CR2", "5.dng", "6.dng", "7.jxl", "8.txt", ".DS_Store", "9.avif")
    found = walk(bytes(root))
    assert [file.path for file in found.files] == [b"9.avif"]
    assert {reason: sorted(paths) for reason, paths in found.skipped.items()} == {
        formats.NOT_HERE: [b"1.HEIC", b"2.heif", b"a/3.hif"],
        formats.NOT_READ: [b"4.CR2", b"5.dng", b"6.dng", b"7.jxl"],
        "not an image": [b"8.txt"],
        "hidden": [b".DS_Store"],
    }
    assert formats.passed_over(found.skipped) == [
        "3 HEIC images passed over: reading them needs the package pillow-heif (`pip install pillow-heif`)",
        "4 images passed over, of formats that are not read (1 .cr2, 2 .dng, 1 .jxl): convert them to JPEG, PNG or "
        "TIFF",
    ]
    assert formats.passed_over({"not an image": [b"8.txt"]}) == []
