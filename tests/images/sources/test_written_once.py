"""Folders that we write ourselves are whole or absent."""

from __future__ import annotations

import pytest

from pipeline.base.errors import DataError
from pipeline.images.sources.written_once import written_once


def test_the_folder_is_written_on_the_first_call_only(tmp_path):
    calls = []

    def write(folder):
        calls.append(folder)
        (folder / "x").write_text("x")

    for _ in range(2):
        assert (written_once(tmp_path / "deep" / "set", write) / "x").read_text() == "x"
    assert len(calls) == 1


def test_a_write_that_fails_leaves_nothing_and_can_be_repeated(tmp_path):
    """The rename at the end is the mark 'complete'."""

    def fail(folder):
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written_once(tmp_path / "set", fail)
    assert list(tmp_path.iterdir()) == []
    assert written_once(tmp_path / "set", lambda folder: None).is_dir()


def test_a_full_disk_or_unwritable_place_is_one_line(tmp_path):
    def full(_folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="cannot write in .*No space left on device; free space"):
        written_once(tmp_path / "set", full)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write in "):
        written_once(tmp_path / "file" / "set", lambda folder: None)


def test_another_process_that_was_faster_wins(tmp_path):
    def write(_folder):
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "theirs").write_text("x")

    assert (written_once(tmp_path / "set", write) / "theirs").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
