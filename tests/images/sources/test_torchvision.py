"""torchvision's sets as files; downloads are played by small stand-ins, nothing here touches a network."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from pipeline.base.errors import DataError
from pipeline.base.items import SPLITS
from pipeline.base.watch import Watch
from pipeline.base.workspace import Workspace
from pipeline.images import decode, list_source
from pipeline.images.sources.torchvision import SETS


def test_a_set_becomes_files_with_its_splits_and_classes(tmp_path):
    listing = list_source("torchvision:FakeData", Workspace(tmp_path))
    assert listing.name == "fakedata"
    assert np.bincount(listing.splits, minlength=4).tolist() == [0, 48, 0, 12]
    assert listing.classes == ("0", "1", "2")
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["torchvision-FakeData"]
    part = torchvision.datasets.FakeData(size=48, image_size=(3, 16, 16), num_classes=3)
    for i in np.flatnonzero(listing.splits == SPLITS.index("train"))[::7]:
        image, target = part[int(listing.ids[i].rsplit(b"/", 1)[1][:6])]
        assert np.array_equal(np.asarray(decode(listing.images.read(listing.ids[int(i)]))), np.asarray(image))
        assert listing.classes[listing.labels[i]] == str(int(target))


def test_a_set_is_written_once_and_the_watch_sees_every_image(tmp_path):
    seen = []

    class Counting(Watch):
        def track(self, what, total, unit="images", done=0):
            seen.append((what, total))
            return contextlib.nullcontext(self)

        def advance(self, n=1):
            seen.append(n)

    first = list_source("torchvision:FakeData", Workspace(tmp_path, Counting()))
    times = [first.images.stat(item) for item in first.ids]
    again = list_source("torchvision:FakeData", Workspace(tmp_path, Counting()))
    assert seen == [("writing FakeData", 60)] + [1] * 60
    assert [again.images.stat(item) for item in again.ids] == times


def test_class_names_with_slashes_and_original_files_are_kept(tmp_path, monkeypatch, noise):
    pictures = []
    for i in range(4):
        pictures.append(tmp_path / f"{i}.JPG")
        Image.fromarray(noise(8, 8, seed=i)).save(pictures[-1], "JPEG")

    class Aircraft:
        classes = ("F/A-18", "DC-3")
        _image_files = pictures

        def __init__(self, root, *, split, download):
            pass

        def __len__(self):
            return 4

        def __getitem__(self, i):
            return Image.open(pictures[i]).convert("RGB"), i % 2

    monkeypatch.setattr(torchvision.datasets, "FGVCAircraft", Aircraft)
    listing = list_source("torchvision:FGVCAircraft", Workspace(tmp_path / "cache"))
    assert listing.classes == ("DC-3", "F-A-18")
    assert set(listing.ids[:4]) == {
        b"test/DC-3/000001.jpg", b"test/DC-3/000003.jpg", b"test/F-A-18/000000.jpg", b"test/F-A-18/000002.jpg",
    }  # fmt: skip
    for i, item in enumerate(listing.ids):
        assert listing.images.read(listing.ids[i]) == pictures[int(item[-10:-4])].read_bytes()


def test_without_a_network_one_line_says_what_where_and_the_cure(tmp_path, monkeypatch, capsys):
    class Offline:
        def __init__(self, root, *, train, download):
            print("noise that must not reach the user")
            if download:
                raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>\nsecond line")
            raise RuntimeError("Dataset not found")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Offline)
    with pytest.raises(DataError) as caught:
        list_source("torchvision:CIFAR10", Workspace(tmp_path))
    message = str(caught.value)
    assert "\n" not in message
    for word in (
        "CIFAR10",
        "could not be downloaded",
        "name resolution",
        str(tmp_path / "data" / "torchvision"),
        "connect",
    ):
        assert word in message
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "data" / "torchvision-CIFAR10").exists()


def test_a_set_that_lies_on_disk_is_not_downloaded(tmp_path, monkeypatch, noise):
    class OnDisk:
        def __init__(self, root, *, train, download):
            assert not download

        def __len__(self):
            return 2

        def __getitem__(self, i):
            return Image.fromarray(noise(4, 4, seed=i)), i

    monkeypatch.setattr(torchvision.datasets, "MNIST", OnDisk)
    assert len(list_source("torchvision:MNIST", Workspace(tmp_path))) == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [("cifar10", "did you mean CIFAR10?"), ("ImageNet21k", "choose from CIFAR10"), ("", "choose from")],
)
def test_an_unknown_set_lists_the_known_ones(tmp_path, name, words):
    with pytest.raises(DataError) as caught:
        list_source(f"torchvision:{name}", Workspace(tmp_path))
    assert words in str(caught.value)
    assert all(known in str(caught.value) for known in SETS)


def test_every_set_in_the_table_exists_in_torchvision_and_names_legal_splits():
    for name, parts in SETS.items():
        assert hasattr(torchvision.datasets, name)
        assert all(0 <= split < len(SPLITS) for split in parts)
