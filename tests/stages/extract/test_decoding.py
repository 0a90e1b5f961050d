"""Large JPEGs that are shrunk while they are decoded: another key, files that are there, later stages, and kills."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import extract, open_cache, predict, train, verify
from pipeline.heads.artifact import load_head
from pipeline.images import Geometry, decode, to_pixels
from pipeline.images.decode import examine
from pipeline.runs.recipe import geometry_of, provenance_of
from pipeline.store import difference
from pipeline.store.format import key_of

Quick = dict[str, Any]


@pytest.fixture(scope="module")
def large(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs as JPEGs twenty times as large as the trunk wants, with edges that shrinking softens."""
    root = tmp_path_factory.mktemp("large")
    for path in sorted(photos.rglob("*.png")):
        there = (root / path.relative_to(photos)).with_suffix(".jpg")
        there.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.convert("RGB").resize((640, 600), Image.Resampling.NEAREST).save(there, quality=90)
    return root


def test_the_policies_are_two_keys_that_differ_in_one_field(large: Path, tmp_path: Path, quick: Quick) -> None:
    exact, scaled = (
        open_cache(extract(large, decode=d, dtype="float32", workspace=tmp_path, **quick).cache)
        for d in ("exact", "scaled")
    )
    assert [field for field, _, _ in difference(exact.provenance, scaled.provenance)] == ["decode.scaled"]
    assert exact.key != scaled.key == key_of(scaled.provenance)
    assert "scaled" not in exact.provenance["decode"]  # as it was before there were two
    reach = np.abs(exact.features).max()
    assert 0 < np.abs(exact.features - scaled.features).max() < 0.1 * reach


def test_auto_goes_on_with_an_exact_file_and_says_so(large: Path, tmp_path: Path, quick: Quick, listener: Any) -> None:
    mine = Path(shutil.copytree(large, tmp_path / "mine"))
    taken = sorted(mine.rglob("*.jpg"))[5]
    kept = taken.read_bytes()
    taken.unlink()
    first = extract(mine, decode="exact", workspace=tmp_path / "w", **quick)
    again = extract(mine, workspace=tmp_path / "w", watch=listener, **quick)
    assert (again.cache, again.new) == (first.cache, 0)
    assert "decode.scaled" not in listener.text  # nothing was decoded
    taken.write_bytes(kept)
    more = extract(mine, workspace=tmp_path / "w", watch=listener, **quick)
    assert (more.cache, more.new) == (first.cache, 1)
    [line] = [line for line in listener.text.splitlines() if "decode.scaled" in line]
    assert line == (
        f"decode.scaled: {first.cache.name} was decoded exactly, and so are new images; decode='scaled' is faster for "
        "large JPEGs, and makes another file"
    )
    assert len(list((tmp_path / "w" / "features").glob("*.h5"))) == 1


def test_auto_takes_a_new_file_to_be_scaled(large: Path, tmp_path: Path, quick: Quick) -> None:
    assert geometry_of(provenance_of(open_cache(extract(large, workspace=tmp_path, **quick).cache))).scaled


@pytest.mark.parametrize("decoding", ["exact", "scaled"])
def test_views_are_decoded_as_the_cache_that_they_lie_beside(
    large: Path, tmp_path: Path, quick: Quick, decoding: str
) -> None:
    made = extract(large, decode=decoding, workspace=tmp_path, **quick)
    again = extract(large, views=1, workspace=tmp_path, **quick)
    assert (again.cache, again.new) == (made.cache, 42)  # the view's: of the train images
    [view] = again.views
    assert geometry_of(provenance_of(open_cache(view))).scaled == (decoding == "scaled")
    train(made.cache, views=1, workspace=tmp_path)


@pytest.mark.parametrize(("first", "then"), [("exact", "scaled"), ("scaled", "exact")])
def test_the_other_way_makes_another_file_and_says_what_keeps_the_old(
    large: Path, tmp_path: Path, quick: Quick, listener: Any, first: str, then: str
) -> None:
    old = extract(large, decode=first, workspace=tmp_path, **quick)
    new = extract(large, decode=then, workspace=tmp_path, watch=listener, **quick)
    assert (new.cache == old.cache, new.new) == (False, 60)
    said = f"decode.scaled differs from {old.cache.name}: another file is made; decode={first!r} keeps that one"
    assert said in listener.text.splitlines()


def test_later_stages_see_what_the_rows_were_made_of(
    large: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipeline.images.loader as module

    made = extract(large, decode="scaled", dtype="float32", workspace=tmp_path, **quick)
    head = train(made.cache, workspace=tmp_path)
    sides: list[int | None] = []

    def noted(blob: bytes, sized: Any, most: int, side: int | None) -> Any:
        sides.append(side)
        return examine(blob, sized, most, side)

    monkeypatch.setattr(module, "examine", noted)
    sample = verify(made.cache, large, workspace=tmp_path).sample
    assert sample is not None and sample.max_difference < 1e-5
    cache = open_cache(made.cache)
    part = cache.split("val")
    paths = [large / os.fsdecode(item) for item in part.ids]
    found = predict(head.run, paths, workspace=tmp_path)
    own = load_head(head.run).logits(part.X).argmax(axis=1)
    assert [f.class_name for f in found] == [cache.classes[c] for c in own]
    assert set(sides) == {geometry_of(provenance_of(cache)).side} != {None}


def test_small_images_give_the_same_rows_either_way(photos: Path, tmp_path: Path, quick: Quick) -> None:
    rows = [
        open_cache(extract(photos, decode=d, workspace=tmp_path, **quick).cache).features for d in ("exact", "scaled")
    ]
    assert np.array_equal(*rows)


def test_the_square_is_that_of_the_shrunk_image(large: Path) -> None:
    blob = next(large.rglob("*.jpg")).read_bytes()
    with Image.open(next(large.rglob("*.jpg"))) as drafted:
        drafted.draft(None, (64, 64))
        reference = np.asarray(drafted.convert("RGB").resize((32, 30), Image.Resampling.BILINEAR))
    geometry = Geometry(30, 30, scaled=True)
    image, _ = examine(blob, side=geometry.side)
    assert image.size == (80, 75)
    assert np.array_equal(to_pixels(image, geometry).transpose(1, 2, 0), reference[:, 1:31])
    assert decode(blob).size == (640, 600)
