"""The CSV manifest."""

from __future__ import annotations

import codecs
import os

import pytest

from pipeline.base.errors import DataError
from pipeline.base.items import NONE, SPLITS
from pipeline.base.watch import Watch
from pipeline.base.workspace import Workspace
from pipeline.images import Columns, ImageFailure, list_source, open_images, read_manifest


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


@pytest.mark.parametrize("name", ["list.tsv", "list.txt", "LIST.TSV"])
def test_a_table_may_end_in_tsv_or_txt(plant, tmp_path, name):
    root = plant("a/1.png", "b/2.png")
    (root / name).write_text("path\tlabel\na/1.png\tx, y\nb/2.png\tz\n")
    listing = list_source(str(root / name), Workspace(tmp_path / "cache"))
    assert (listing.classes, listing.name) == (("x, y", "z"), name[:-4])
    assert open_images(str(root / name), listing.images.place).read(b"a/1.png") == b"a/1.png"


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
        ("", ["an empty file", "path,label"]),
        (" \n\n", ["holds no word"]),
        (",,\n", ["holds no word"]),
        ("path,label\n", ["line of column names", "path, label", "no row below"]),
        ("photo,label\n1.png,a\n", ["no column is known to be the image's path", "photo, label", "path_column"]),
        ("path,breed\n1.png,a\n", ["no column is known to be the label", "path, breed", "label_column='none'"]),
        ("path,file,label\n1.png,1.png,a\n", ["path, file could each be the path", "path_column"]),
        ("path,class,target\n1.png,a,0\n", ["class, target could each be the label", "label_column"]),
        ("path,label,split,set\n1.png,a,train,test\n", ["split, set could each be the split", "split_column"]),
        ("path,label,label\n1.png,a,b\n", ["line 1", "twice"]),
        ("path,label,split\n1.png,a,train\n2.png,b,kept\n", ["line 3", "'kept'", "train, ", "val, ", "test, "]),
        ("path,label,set\n1.png,a,train\n2.png,b,tset\n", ["line 3", "'tset'"]),
        ("path,label\n1.png,a\n\n2.png,b\n./1.png,b\n", ["line 5", "already on line 2"]),
        ("path,label\n1.png,a\n1.png,b\n", ["line 3", "'1.png'", "line 2", "another label or split"]),
        ("path,label\nno.png,a\nnone.png,b\n", ["none of its 2 files", "line 2: 'no.png'", "relative to the manifest"]),
        ("id,label\n17,a\n18,b\n", ["line 2: '17'", "nor in those below it", "ending of an image", "path_column"]),
        ("image,label\nhttps://x.org/1.png,a\nhttps://x.org/2.png,b\n", ["is an address", "fetch the images"]),
        ("path,label\n1,a\n", ["'1' could be 1.jpg and 1.png", "write the ending"]),
        ("path,label\n3.png,a\n", ["'3.png' could be in more/ and others/", "write the folder"]),
        ("train,1.png,a,b\n", ["line 1", "no names of columns", "several ways"]),
        ("path,label\n1.png\n", ["line 2", "1 cells under 2 columns", "fill the row"]),
        (b"path,label\n1.png,a\0\n", ["is no text", "UTF-8"]),
        (b"\xff\xfep\0a\0t", ["is not the utf-16-le that it begins as"]),
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
        listed(text, "1.png", "1.jpg", "2.png", "folder/", "more/3.png", "others/3.png")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


class Said(Watch):
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture
def understood(plant, tmp_path):
    """understood(text or bytes, *image names, **columns): [(path, label, split)] of that manifest, and what is said."""

    def make(text, *names, **columns):
        root = plant(*names)
        (root / "m.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        watch = Said()
        spec = str(root / "m.csv")
        found = list_source(spec, Workspace(tmp_path / "cache", watch), Columns(**columns))
        labels = [found.classes[y] if y >= 0 else None for y in found.labels]
        rows = list(zip([os.fsdecode(i) for i in found.ids], labels, [SPLITS[s] for s in found.splits], strict=True))
        return rows, " | ".join(watch.lines).replace(spec, "m.csv")

    return make


TWO = [("1.png", "cat", "none"), ("2.png", "dog", "none")]

AS_PEOPLE_HAVE_THEM = {
    "pandas, with its index": (",filename,class\n0,1.png,cat\n1,2.png,dog\n", "path = filename, label = class"),
    "pandas, read and written again": ("Unnamed: 0,file,target\n0,1.png,cat\n1,2.png,dog\n", "path = file, label"),
    "huggingface": ("file_name,label\n1.png,cat\n2.png,dog\n", "path = file_name, label = label"),
    "kaggle": (
        "image_id,label\n1,cat\n2,dog\n",
        "path = image_id, label = label | m.csv: endings are added to paths (.png)",
    ),
    "kaggle, with more": ("Id,Species,x,y\n1,cat,0,5\n2,dog,1,6\n", "path = Id, label = Species; kept aside: x, y"),
    "fastai": ("name,label\n1.png,cat\n2.png,dog\n", "path = name, label = label"),
    "excel, german": ("Filename;Class\r\n1.png;cat\r\n2.png;dog\r\n", "path = Filename, label = Class; delimiter ';'"),
    "excel, with its hint": ("sep=;\r\npath;label\r\n1.png;cat\r\n2.png;dog\r\n", "label = label; delimiter ';'"),
    "excel, unicode text": ("path\tlabel\r\n1.png\tcat\r\n2.png\tdog\r\n".encode("utf-16"), "delimiter tab, UTF-16"),
    "utf-16, the other order": (
        codecs.BOM_UTF16_BE + "path,label\n1.png,cat\n2.png,dog\n".encode("utf-16-be"),
        "path = path, label = label; UTF-16",
    ),
    "a database": ("path|label\n1.png|cat\n2.png|dog\n", "delimiter '|'"),
    "spaces": ("path, label\n1.png, cat\n2.png, dog\n", ""),
    "quotes": ('"image path","label"\n"1.png","cat"\n"2.png","dog"\n', "path = image path"),
    "other columns": ("path,width,label,height\n1.png,8,cat,9\n2.png,8,dog,9\n", "kept aside: width, height"),
    "columns that end early": ("path,label,,\n1.png,cat,,\n2.png,dog,,,,\n,,,\n", ""),
    "windows": (".\\1.png,cat\n2.png,dog\n", "column 1, label = column 2 | m.csv: backslashes in paths"),
    "rows twice": ("path,label\n1.png,cat\n2.png,dog\n./1.png,cat\n", "rows that repeat an earlier one: 1"),
}


@pytest.mark.parametrize("name", AS_PEOPLE_HAVE_THEM)
def test_manifests_as_people_have_them(understood, name):
    text, words = AS_PEOPLE_HAVE_THEM[name]
    rows, said = understood(text, "1.png", "2.png")
    assert rows == TWO
    assert words in said and bool(words) == bool(said)


def test_a_plain_manifest_is_not_talked_about(understood):
    assert understood("path,label,split\n1.png,cat,train\n2.png,dog,train\n", "1.png", "2.png")[1] == ""


def test_words_for_splits_are_those_of_folders(understood):
    words = {"train": "training", "test": "Testing", "val": "validation", "none": "UNASSIGNED"}
    names = [f"{i}.png" for i in range(8)]
    splits = ["train", "train", "val", "test", "none", "train", "val", "test"]
    lines = [f"{words[s]},{n},{'ab'[i % 2]}" for i, (s, n) in enumerate(zip(splits, names, strict=True)) if s != "none"]
    rows, said = understood("subset,file,class\n" + "\n".join(lines), *names)
    assert [row[2] for row in rows] == [s for s in splits if s != "none"]
    assert "split = subset" in said


def test_automl_names_no_columns(understood):
    text = "TRAIN,a/1.png,cat\nTRAIN,a/2.png,dog\nVALIDATION,a/3.png,cat\nTEST,a/4.png,dog\n"
    rows, said = understood(text, *(f"a/{i}.png" for i in range(1, 5)))
    assert [row[1:] for row in rows] == [("cat", "train"), ("dog", "train"), ("cat", "val"), ("dog", "test")]
    assert "no line of names; path = column 2, label = column 3, split = column 1" in said


def test_a_column_of_other_words_is_no_split(understood):
    rows, said = understood("path,label,fold\n1.png,cat,0\n2.png,dog,1\n", "1.png", "2.png")
    assert rows == TWO and "kept aside: fold" in said


def test_named_columns_go_before_guesses(understood):
    text = "path;Bild;label;art;split\nx;1.png;9;cat;test\nx;2.png;8;dog;test\n"
    rows, said = understood(text, "1.png", "2.png", path="bild", label="art", split="none")
    assert rows == TWO
    assert "path = Bild, label = art" in said and "kept aside: path, label, split" in said


def test_a_delimiter_is_found_by_the_columns_that_are_named(understood):
    text = "Bild;Art, grob\n1.png;cat\n2.png;dog\n"
    assert understood(text, "1.png", "2.png", path="Bild", label="Art, grob")[0] == TWO


def test_a_named_column_that_is_not_there_is_refused(understood):
    with pytest.raises(DataError, match=r"no column 'photo' \(path_column\): its columns are path, label"):
        understood("path,label\n1.png,cat\n", "1.png", path="photo")


def test_columns_of_a_folder_are_refused(plant, tmp_path):
    with pytest.raises(DataError, match="label_column"):
        list_source(str(plant("a/1.png", "b/2.png")), Workspace(tmp_path), Columns(label="class"))


def test_windows_1252_is_found_by_what_is_no_utf8(understood):
    text = "path;label\r\nB\xe4r.png;B\xe4r\r\nM\xf6we.png;M\xf6we\r\n".encode("cp1252")
    rows, said = understood(text, "B\xe4r.png", "M\xf6we.png")
    assert rows == [("B\xe4r.png", "B\xe4r", "none"), ("M\xf6we.png", "M\xf6we", "none")]
    assert "Windows-1252" in said


def test_utf8_with_a_path_of_other_bytes_stays_utf8(understood):
    rows, said = understood(b"path,label\n" + b"\xff.png,\xc3\xa4\n2.png,b\n", b"\xff.png", "2.png")
    assert rows == [("2.png", "b", "none"), ("\udcff.png", "\xe4", "none")]
    assert said == ""


def test_paths_relative_to_the_one_folder_that_has_them_are_found(understood):
    text = "image_id,label\n1,cat\n2,dog\n3,dog\n"
    rows, said = understood(text, "train_images/1.jpg", "train_images/2.jpg", "test_images/9.jpg")
    assert rows[:2] == [("train_images/1.jpg", "cat", "none"), ("train_images/2.jpg", "dog", "none")]
    assert "the files are in train_images/" in said and "endings are added to paths (.jpg)" in said


def test_files_in_class_folders_are_found_by_their_names(understood):
    rows, _ = understood("filename,label\n1.png,cat\n2.png,dog\n", "all/cat/1.png", "all/dog/2.png")
    assert [row[0] for row in rows] == ["all/cat/1.png", "all/dog/2.png"]


def test_no_file_is_looked_for_elsewhere_where_the_others_are_in_place(understood):
    """A missing image is not silently another one of its name."""
    rows, _ = understood("path,label\n1.png,cat\n2.png,dog\n3.png,dog\n", "1.png", "2.png", "backup/3.png")
    assert rows[2][0] == "3.png"


def test_missing_files_are_items_that_cannot_be_read(plant, tmp_path):
    root = plant("1.png", "2.png")
    (root / "m.csv").write_text("path,label\n1.png,cat\nno.png,dog\n2.png,dog\nnot.png,cat\n")
    found = list_source(str(root / "m.csv"), Workspace(tmp_path))
    assert found.missing == (b"no.png", b"not.png") and len(found) == 4
    assert "2 of 4 files are not there (the first: no.png, line 3)" in found.warnings[0]
    with pytest.raises(ImageFailure, match="no such file"):
        found.images.read(b"no.png")


def test_a_column_of_numbers_is_one_of_names(understood):
    assert [r[1] for r in understood("path,label\n1.png,0\n2.png,dog\n", "1.png", "2.png")[0]] == ["0", "dog"]


def test_the_rows_are_to_be_had_without_labels(plant):
    root = plant("1.png", "2.png")
    (root / "m.csv").write_text("file,width,class,target\n2.png,8,a,b\n1.png,9,,\n")
    found = read_manifest(bytes(root / "m.csv"), wanted=("path",))
    assert [(row.path, row.label, row.split, row.others) for row in found.rows] == [
        (b"2.png", None, NONE, ("8", "a", "b")),
        (b"1.png", None, NONE, ("9", "", "")),
    ]
    assert found.others == ("width", "class", "target") and found.images.read(b"2.png") == b"2.png"


def test_what_a_manifest_names_elsewhere_is_found_again_however_it_was_written(plant, tmp_path):
    root = plant("lists/", "images/1.jpg", "images/2.jpg", "images/3.jpg")
    (root / "lists" / "m.csv").write_bytes("Bild;label\n..\\images\\1.jpg;a\n../images/2;b\n".encode("utf-16"))
    spec = str(root / "lists" / "m.csv")
    found = list_source(spec, Workspace(tmp_path), Columns(path="Bild"))
    again = open_images(spec, found.images.place)
    assert found.ids == [b"../images/1.jpg", b"../images/2.jpg"]
    assert [again.read(item) for item in found.ids] == [b"images/1.jpg", b"images/2.jpg"]
    with pytest.raises(ImageFailure, match="leads out"):
        again.read(b"../images/3.jpg")
