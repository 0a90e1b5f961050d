"""The handwritten digits as files."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pipeline.base.workspace import Workspace
from pipeline.images import decode, list_source


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_all_1797_digits_are_there_with_their_labels(cache):
    listing = list_source("digits", Workspace(cache))
    assert len(listing) == 1797
    assert listing.classes == tuple("0123456789")
    assert np.array_equal(np.bincount(listing.labels), np.bincount(load_digits().target))
    assert (listing.name, listing.source, listing.skipped) == ("digits", "digits", {})
    assert not listing.splits.any()


def test_each_file_holds_the_pixels_of_its_index(cache):
    listing, digits = list_source("digits", Workspace(cache)), load_digits()
    for i in range(0, 1797, 100):
        label, _, file = listing.ids[i].partition(b"/")
        index = int(file.removesuffix(b".png"))
        assert int(label) == digits.target[index]
        grey = np.asarray(decode(listing.images.read(listing.ids[i])))[..., 0]
        assert np.abs(grey - digits.images[index] * 255 / 16).max() <= 0.5


def test_files_are_written_once(cache):
    first = list_source("digits", Workspace(cache))
    again = list_source("digits", Workspace(cache))
    assert np.array_equal(first.mtimes_ns, again.mtimes_ns)
