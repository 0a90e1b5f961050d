"""What the user may name as a source."""

from __future__ import annotations

import os

import pytest

from pipeline.base.errors import DataError
from pipeline.base.workspace import Workspace
from pipeline.images import is_source, list_source, open_images
from pipeline.images.sources import named


@pytest.mark.parametrize("spec", ["nowhere", "nowhere.csv", ""])
def test_a_missing_source_lists_the_legal_forms(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        list_source(spec, Workspace(tmp_path))
    for word in (repr(spec), "does not exist", "class folders", "manifest", "digits", "torchvision:NAME"):
        assert word in str(caught.value)


def test_a_file_that_is_no_manifest_is_refused(plant, tmp_path):
    with pytest.raises(DataError, match=r"no manifest, which would end in \.csv, \.tsv, \.txt"):
        list_source(str(plant("a.png") / "a.png"), Workspace(tmp_path))


def test_the_source_is_kept_as_the_user_gave_it(plant, tmp_path, monkeypatch):
    monkeypatch.chdir(plant("a/1.png", "b/1.png").parent)
    listing = list_source("source", Workspace(tmp_path))
    assert (listing.source, listing.name) == ("source", "source")
    assert listing.images.place == os.path.realpath("source")


def test_the_current_folder_gets_its_real_name(plant, tmp_path, monkeypatch):
    monkeypatch.chdir(plant("a/1.png", "b/1.png"))
    assert list_source(".", Workspace(tmp_path)).name == "source"


def test_a_source_whose_name_is_not_utf8_is_found(plant, tmp_path):
    root = os.path.join(bytes(plant()), b"\xff")
    plant(b"\xff/a/1.png", b"\xff/b/1.png")
    listing = list_source(os.fsdecode(root), Workspace(tmp_path))
    assert listing.images.read(listing.ids[0]) == b"\xff/a/1.png"


def test_the_listing_and_what_a_cache_keeps_of_it_give_the_same_bytes(plant, tmp_path, monkeypatch):
    """Long after, in another folder, the spec means nothing or another folder: the place alone decides."""
    root = plant("a/1.png", "b/1.png")
    (root / "m.csv").write_text("path,label\na/1.png,a\nb/1.png,b\n")
    monkeypatch.chdir(root.parent)
    for spec in ("source", "source/m.csv"):
        listing = list_source(spec, Workspace(tmp_path))
        place = listing.images.place
        with monkeypatch.context() as elsewhere:
            for here in (tmp_path / "here", tmp_path / "there" / "source"):
                here.mkdir(parents=True, exist_ok=True)
                elsewhere.chdir(here.parent)
                again = open_images(listing.source, place)
                assert again.there() and again.place == place
                assert [again.read(item) for item in listing.ids] == [b"a/1.png", b"b/1.png"]
                for item, size, mtime_ns in zip(listing.ids, listing.sizes, listing.mtimes_ns, strict=True):
                    assert again.stat(item) == (size, mtime_ns)


def test_a_place_that_has_gone_is_not_there(tmp_path):
    assert not open_images("digits", str(tmp_path / "gone")).there()


def test_a_folder_of_a_sources_name_is_that_source(plant, tmp_path, monkeypatch):
    monkeypatch.chdir(plant("a/1.png", "b/1.png", under="digits").parent)
    assert list_source("digits", Workspace(tmp_path)).classes == tuple("0123456789")


def test_every_source_says_its_form(tmp_path):
    assert not is_source("nowhere")
    with pytest.raises(DataError) as caught:
        list_source("nowhere", Workspace(tmp_path))
    assert all(source.FORM in str(caught.value) for source in named.SOURCES)
