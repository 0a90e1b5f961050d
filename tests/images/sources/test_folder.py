"""What folders mean: splits, classes, or nothing."""

from __future__ import annotations

import pytest

from pipeline.base.errors import DataError
from pipeline.base.items import SPLITS
from pipeline.base.workspace import Workspace
from pipeline.images import list_source


@pytest.fixture
def listed(plant, tmp_path):
    def make(*names, under="source"):
        return list_source(str(plant(*names, under=under)), Workspace(tmp_path / "cache"))

    return make


def rows(listing) -> list[tuple[bytes, str | None, str]]:
    return [
        (i, listing.classes[y] if y >= 0 else None, SPLITS[s])
        for i, y, s in zip(listing.ids, listing.labels, listing.splits, strict=True)
    ]


def test_split_folders_of_class_folders_give_both(listed):
    listing = listed("train/cat/1.png", "train/dog/1.png", "val/cat/2.png", "test/dog/3.png")
    assert rows(listing) == [
        (b"test/dog/3.png", "dog", "test"),
        (b"train/cat/1.png", "cat", "train"),
        (b"train/dog/1.png", "dog", "train"),
        (b"val/cat/2.png", "cat", "val"),
    ]


@pytest.mark.parametrize("word", ["val", "valid", "validation", "VAL", "Validation"])
def test_words_for_the_validation_split(listed, word):
    listing = listed("Train/cat/1.png", "Train/dog/1.png", f"{word}/cat/2.png")
    assert sorted(SPLITS[s] for s in listing.splits) == ["train", "train", "val"]


def test_class_folders_without_splits(listed):
    listing = listed("dog/1.png", "cat/1.png")
    assert listing.classes == ("cat", "dog")
    assert rows(listing) == [(b"cat/1.png", "cat", "none"), (b"dog/1.png", "dog", "none")]


def test_images_at_any_depth_belong_to_the_class(listed):
    assert rows(listed("cat/a/b/1.png", "dog/1.png"))[0] == (b"cat/a/b/1.png", "cat", "none")
    assert listed("train/cat/a/1.png", "train/dog/1.png", under="split").classes == ("cat", "dog")


def test_a_flat_folder_is_unlabelled(listed):
    listing = listed("1.png", "2.jpg", "empty/")
    assert rows(listing) == [(b"1.png", None, "none"), (b"2.jpg", None, "none")]
    assert listing.classes == ()
    assert listing.skipped == {"folder without images": [b"empty/"]}


def test_a_class_called_train_among_classes_stays_a_class(listed):
    assert listed("bus/1.png", "car/1.png", "train/1.png").classes == ("bus", "car", "train")


def test_other_folders_beside_splits_are_skipped_and_listed(listed):
    listing = listed("train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "extra/1.png", "old/cat/1.png", "top.png")
    assert len(listing) == 3
    assert listing.skipped == {"beside the split folders": [b"extra/1.png", b"old/cat/1.png", b"top.png"]}


def test_images_beside_class_folders_are_skipped_and_listed(listed):
    listing = listed("cat/1.png", "dog/1.png", "stray.png")
    assert listing.skipped == {"beside the class folders": [b"stray.png"]}


def test_empty_class_folders_are_no_classes_and_are_listed(listed):
    assert listed("cat/1.png", "dog/1.png", "eel/", "eel2/x.txt").skipped["empty class folder"] == [b"eel/", b"eel2/"]
    listing = listed("train/cat/1.png", "train/dog/1.png", "train/eel/", "test/", under="split")
    assert listing.skipped["empty class folder"] == [b"train/eel/"]
    assert listing.skipped["folder without images"] == [b"test/"]


def test_ids_are_sorted_by_bytes_and_paths_lead_to_the_files(listed):
    listing = listed("a/10.png", "a/9.png", "B/1.png", b"\xff/1.png")
    assert listing.ids == [b"B/1.png", b"a/10.png", b"a/9.png", b"\xff/1.png"]
    assert [listing.images.read(listing.ids[i]) for i in range(4)] == listing.ids


def test_class_names_that_are_not_utf8_are_escaped_and_numbers_sort_as_words(listed):
    listing = listed(b"\xff\xfe/1.png", "100/1.png", "2/1.png")
    assert listing.classes == ("100", "2", "\\xff\\xfe")


def test_name_is_safe_for_a_file_name(plant, tmp_path):
    root = plant("a/1.png", "b/1.png", under="my set, v2")
    assert list_source(str(root) + "/", Workspace(tmp_path)).name == "my_set_v2"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], ["no images found", "the folder is empty"]),
        (["a/1.txt", ".x/1.png"], ["no images found", "1 as hidden", "1 as not an image"]),
        (["bees/1.png", "bees/2.png"], ["one class only", "'bees', 2 images", "folder of the images itself"]),
        (["train/cat/1.png", "train/1.png"], ["train/", "no class", "a class of that name", "manifest"]),
        (["train/cat/1.png", "train/dog/1.png", "test/1.png"], ["test/", "train/", "manifest"]),
        (["bus/1.png", "train/steam/1.png"], ["train/", "bus/", "a split, or a class", "manifest"]),
        (["train/1.png", "val/1.png"], ["train/ and val/", "unlabelled splits", "manifest"]),
        (["train/a/1.png", "val/a/1.png", "valid/a/1.png"], ["val/ and valid/", "same split"]),
        (["train/a/1.png", "train/b/1.png", "val/c/1.png"], ["'c' has 0 train, 1 val, 0 test", "cannot be learned"]),
        (["set/train/a/1.png", "set/val/a/1.png"], ["holds only set/", "train/ and val/", "source/set instead"]),
    ],
)
def test_folders_that_cannot_be_used_say_why_in_one_line(listed, names, words):
    with pytest.raises(DataError) as caught:
        listed(*names)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_names_with_newlines_do_not_break_a_message_into_lines(listed):
    with pytest.raises(DataError) as caught:
        listed("tr\nain/a/1.png", "tr\nain/b/1.png", under="new\nline")
    assert "\n" not in str(caught.value)
