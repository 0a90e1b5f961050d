"""Halves of labelled rows: stratified, copies of an image together, also of classes with a single image."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.heads.folds import halves


@pytest.mark.parametrize("seed", range(5))
def test_halves_are_equal_of_each_class_and_hold_images_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    of_image = rng.integers(0, 7, 101)
    images = np.concatenate([np.arange(101), rng.integers(0, 101, 30)])  # 30 rows are copies
    half = halves(of_image[images], images, seed)
    for image in range(101):
        assert len(set(half[images == image].tolist())) == 1
    own = half[:101]
    for c in range(7):
        first, second = np.bincount(own[of_image == c], minlength=2)
        assert abs(first - second) <= 1
    assert abs(np.bincount(own)[0] - np.bincount(own)[1]) <= 1


def test_another_seed_deals_otherwise_and_the_same_one_the_same() -> None:
    y, images = np.repeat([0, 1], 50), np.arange(100)
    np.testing.assert_array_equal(halves(y, images, 3), halves(y, images, 3))
    assert not np.array_equal(halves(y, images, 3), halves(y, images, 4))


def test_a_class_may_have_a_single_image() -> None:
    half = halves(np.array([0, 1, 2]), np.arange(3), 0)
    assert sorted(np.bincount(half).tolist()) == [1, 2]
