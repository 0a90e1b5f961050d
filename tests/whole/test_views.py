"""Augmented views: the same every time, of train only, and learned from on request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import extract, open_cache, train
from pipeline.base.errors import CacheError
from pipeline.images import Geometry, View, to_pixels
from pipeline.store.find import view_path

Quick = dict[str, Any]


def test_a_view_is_a_mirrored_or_plain_part_of_the_image_and_always_the_same() -> None:
    ramp = np.zeros((60, 90, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(90)[None], np.arange(60)[:, None]
    image, mirrored = Image.fromarray(ramp), 0
    for number in range(1, 41):
        geometry = Geometry(36, 32, view=View(number, 0))
        x, y, _ = to_pixels(image, geometry, b"d" * 32).astype(int)
        np.testing.assert_array_equal(x, to_pixels(image, geometry, b"d" * 32)[0])
        assert (np.diff(y[:, 5]) >= 0).all()  # never upside down
        steps = np.diff(x[5])
        assert (steps >= 0).all() or (steps <= 0).all()
        mirrored += bool((steps <= 0).all())
        share = (abs(x[5, -1] - x[5, 0]) + 2) * (y[-1, 5] - y[0, 5] + 2) / (60 * 90)
        assert 0.25 < share < 1.1
    assert 8 < mirrored < 32


def test_views_of_another_seed_number_or_image_differ() -> None:
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    base = to_pixels(image, Geometry(36, 32, view=View(1, 0)), b"a" * 32)
    for view, digest in ((View(2, 0), b"a" * 32), (View(1, 1), b"a" * 32), (View(1, 0), b"b" * 32)):
        assert (to_pixels(image, Geometry(36, 32, view=view), digest) != base).any()


@pytest.mark.slow
def test_views_are_files_of_train_rows_beside_the_cache(photos: Path, tmp_path: Path, quick: Quick) -> None:
    made = extract(photos, workspace=tmp_path, views=2, **quick)
    assert made.new == 60 + 2 * 42
    plain = open_cache(made.cache)
    views = [open_cache(view_path(made.cache, n), verify=True) for n in (1, 2)]
    for view in views:
        assert view.counts() == {"none": 0, "train": 42, "val": 0, "test": 0}
        assert view.ids == plain.split("train").ids
        assert (view.features != plain.split("train").X).any(axis=1).all()
    assert (views[0].features != views[1].features).any(axis=1).all()
    assert extract(photos, workspace=tmp_path, views=2, **quick).new == 0


def test_a_head_learns_from_the_views_it_is_given(photos: Path, tmp_path: Path, quick: Quick) -> None:
    made = extract(photos, workspace=tmp_path, views=1, **quick)
    plain = train(solver="adamw", epochs=3, workspace=tmp_path)
    more = train(solver="adamw", epochs=3, views=1, workspace=tmp_path)
    assert (plain.run / "head.safetensors").read_bytes() != (more.run / "head.safetensors").read_bytes()
    with pytest.raises(CacheError, match="no augmented copies number 2 of its train images"):
        train(made.cache, views=2, workspace=tmp_path)


def test_a_view_of_other_labels_is_refused(photos: Path, tmp_path: Path, quick: Quick) -> None:
    made = extract(photos, workspace=tmp_path, out=tmp_path / "a.h5", views=1, **quick)
    extract(photos, workspace=tmp_path, out=tmp_path / "a.h5", split_seed=5, **quick)
    with pytest.raises(CacheError, match="other images or labels"):
        train(made.cache, views=1, workspace=tmp_path)
