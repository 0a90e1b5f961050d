"""The CSV manifest."""

from __future__ import annotations

import pytest

from pipeline.base.errors import DataError
from pipeline.base.items import SPLITS
from pipeline.base.workspace import Workspace
from pipeline.images import list_source


@pytest.fixture
def listed(plant, tmp_path):
    """listed(text or bytes, *image names): the listing of that manifest beside those images."""

    def make(text, *names):
        root = plant(*names)
        (root / "list.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        return list_source(str(root / "list.csv"), Workspace(tmp_path / "cache"))

    return make


def test_paths_labels_and_splits_are_read(listed):
    listing = listed(
        "path,label,split\nb.png,dog,train\na/c.png,cat,test\nd.png,cat,Train\n", "b.png", "a/c.png", "d.png"
    )
    assert listing.ids == [b"a/c.png", b"b.png", b"d.png"]
    assert [listing.classes[y] for y in listing.labels] == ["cat", "dog", "cat"]
    assert [SPLITS[s] for s in listing.splits] == ["test", "train", "train"]
    assert listing.name == "list"


def test_columns_may_come_in_any_order_and_a_byte_order_mark_is_no_part_of_them(listed):
    listing = listed(b"\xef\xbb\xbflabel,path\r\nx,1.png\r\ny,2.png\r\n", "1.png", "2.png")
    assert listing.classes == ("x", "y")


def test_empty_labels_are_unlabelled_and_a_manifest_needs_no_label_column(listed):
    assert listed("path,label\n1.png,a\n2.png,b\n3.png,\n", "1.png", "2.png", "3.png").labels.tolist() == [0, 1, -1]
    assert listed("path\n1.png\n", "1.png").labels.tolist() == [-1]


def test_numeric_labels_are_names_sorted_as_words(listed):
    """The label "100" is a name, not a number."""
    listing = listed("path,label\n1.png,2\n2.png,100\n3.png,010\n", "1.png", "2.png", "3.png")
    assert listing.classes == ("010", "100", "2")


def test_names_with_commas_newlines_and_bytes_that_are_not_utf8_are_found(listed):
    names = [b"a,b.png", b"new\nline.png", b"\xff.png"]
    text = b'path,label\n"a,b.png",x\n"new\nline.png",y\n\xff.png,x\n'
    listing = listed(text, *names)
    assert listing.ids == sorted(names)
    assert [listing.images.read(listing.ids[i]) for i in range(3)] == sorted(names)


def test_the_root_is_the_manifests_folder_and_paths_may_leave_it(plant, tmp_path):
    root = plant("lists/", "images/1.png", "images/2.png")
    (root / "lists" / "m.csv").write_text("path,label\n../images/1.png,a\n./../images/2.png,b\n")
    listing = list_source(str(root / "lists" / "m.csv"), Workspace(tmp_path))
    assert listing.ids == [b"../images/1.png", b"../images/2.png"]
    assert listing.images.read(listing.ids[0]) == b"images/1.png"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["line 1", "no column 'path'"]),
        ("path,label\n", ["no images found"]),
        ("file,label\n1.png,a\n", ["line 1", "unknown column 'file'", "path,label"]),
        ("path;label\n1.png;a\n", ["line 1", "unknown column 'path;label'"]),
        ("path,label,label\n1.png,a,b\n", ["line 1", "twice"]),
        ("path,label,split\n1.png,a,train\n2.png,b,dev\n", ["line 3", "'dev'", "train, val, test"]),
        ("path,label\n1.png,a\n\n2.png,b\n./1.png,b\n", ["line 5", "already on line 2"]),
        ("path,label\n1.png,a\nnone.png,b\n", ["line 3", "'none.png'", "not found", "relative to the manifest"]),
        ("path,label\n1.png,a\nfolder,b\n", ["line 3", "not a file"]),
        ("path,label\n,a\n", ["line 2", "path is empty"]),
        ("path,label\n1.png,a,train\n", ["line 2", "3 cells under 2 columns", "double quotes"]),
        ('path,label\n"1.png,a\n', ["line 2", "not a well-formed CSV"]),
        ("path,label,split\n1.png,a,train\n2.png,b,\n", ["line 3", "no split", "for all labelled rows or for none"]),
        ("path,label\n1.png,a\n2.png,a\n", ["one class only"]),
        ("path,label,split\n1.png,a,train\n2.png,b,val\n", ["'b' has 0 train, 1 val, 0 test"]),
    ],
)
def test_wrong_manifests_are_refused_with_the_line(listed, text, words):
    with pytest.raises(DataError) as caught:
        listed(text, "1.png", "2.png", "folder/")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
