"""What the user may name as a source."""

from __future__ import annotations

import os

import pytest

from pipeline.base.errors import DataError
from pipeline.base.workspace import Workspace
from pipeline.images import list_source, read_file


@pytest.mark.parametrize("spec", ["nowhere", "nowhere.csv", ""])
def test_a_missing_source_lists_the_legal_forms(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        list_source(spec, Workspace(tmp_path))
    for word in (repr(spec), "does not exist", "class folders", "manifest", "digits", "torchvision:NAME"):
        assert word in str(caught.value)


def test_a_file_that_is_no_manifest_is_refused(plant, tmp_path):
    with pytest.raises(DataError, match=r"not a \.csv manifest"):
        list_source(str(plant("a.png") / "a.png"), Workspace(tmp_path))


def test_the_source_is_kept_as_the_user_gave_it(plant, tmp_path, monkeypatch):
    monkeypatch.chdir(plant("a/1.png", "b/1.png").parent)
    listing = list_source("source", Workspace(tmp_path))
    assert (listing.source, listing.name, listing.root) == ("source", "source", b"source")


def test_the_current_folder_gets_its_real_name(plant, tmp_path, monkeypatch):
    monkeypatch.chdir(plant("a/1.png", "b/1.png"))
    assert list_source(".", Workspace(tmp_path)).name == "source"


def test_a_source_whose_name_is_not_utf8_is_found(plant, tmp_path):
    root = os.path.join(bytes(plant()), b"\xff")
    plant(b"\xff/a/1.png", b"\xff/b/1.png")
    listing = list_source(os.fsdecode(root), Workspace(tmp_path))
    assert read_file(listing.path(0)) == b"\xff/a/1.png"
