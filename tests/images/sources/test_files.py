"""Images that are files: what else a path can lead to is told, never read or waited for."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.images import Files, ImageFailure, digest_many, open_images


def failure(files, item):
    with pytest.raises(ImageFailure) as caught:
        files.read(item)
    return str(caught.value)


def test_what_is_no_regular_file_is_neither_waited_for_nor_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    files = Files(str(tmp_path))
    for name in (b"pipe.png", b"zero.png"):
        assert failure(files, name) == "unreadable: the file cannot be read: it is not a regular file"
    assert failure(files, b"folder.png") == "unreadable: the file cannot be read: it is a folder"
    assert "embedded null" in failure(files, b"a\0.png")
    assert not digest_many(files, [b"pipe.png", b"zero.png", b"a\0.png"], workers=2).any()


def test_a_file_is_measured_before_it_is_read(tmp_path):
    """200 GB that take no room on the disk."""
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(200 << 30)
    assert failure(Files(str(tmp_path)), b"sparse.png") == (
        "too_large: 214,748,364,800 bytes, the limit is 1,073,741,824"
    )


@pytest.mark.parametrize("item", [b"../outside.png", b"a/../../outside.png", b"/etc/hostname", b"a/.."])
def test_ids_of_a_cache_stay_below_its_root(tmp_path, item):
    (tmp_path / "outside.png").write_bytes(b"x")
    (tmp_path / "root" / "a").mkdir(parents=True)
    images = open_images(str(tmp_path / "root"), str(tmp_path / "root"))
    assert "leads out of" in failure(images, item)
    with pytest.raises(ImageFailure, match="leads out of"):
        images.stat(item)
    assert failure(images, b"..a.png").startswith("vanished"), "a name may begin with dots"


def test_but_for_those_that_its_manifest_names(tmp_path, monkeypatch):
    (tmp_path / "outside.png").write_bytes(b"x")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "list.csv").write_text(f"path,label\n../outside.png,a\n{tmp_path}/outside.png,b\n")
    monkeypatch.chdir(tmp_path)
    for spec in ("root/list.csv", "elsewhere/list.csv"):  # the place decides, wherever this is called
        images = open_images(spec, str(tmp_path / "root"))
        assert images.read(b"../outside.png") == images.read(os.fsencode(tmp_path / "outside.png")) == b"x"
        assert "leads out of" in failure(images, b"/etc/hostname")
    (tmp_path / "root" / "list.csv").unlink()
    assert "leads out of" in failure(open_images("root/list.csv", str(tmp_path / "root")), b"../outside.png")


@pytest.mark.slow
def test_many_threads_see_all_that_a_manifest_names(tmp_path):
    (tmp_path / "root").mkdir()
    names = [f"../{i:04d}.png" for i in range(3000)]
    for name in names:
        (tmp_path / "root" / name).write_bytes(b"x")
    (tmp_path / "root" / "list.csv").write_text("path\n" + "\n".join(names))
    images = open_images("list.csv", str(tmp_path / "root"))
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(images.read, [os.fsencode(name) for name in reversed(names)])) == {b"x"}
