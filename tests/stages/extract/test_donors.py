"""Rows of earlier files: which are taken, and that looking for them costs no more than there is to look at."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import extract, store
from pipeline.base.errors import CacheError
from pipeline.stages.extract.donors import Donor, _rows_with
from pipeline.store import Cache, open_cache

Quick = dict[str, Any]


def test_the_first_usable_row_of_a_digest_is_found_as_a_search_row_by_row_finds_it() -> None:
    rng = np.random.default_rng(0)
    some = rng.integers(0, 2, (12, 32), dtype=np.uint8)
    some[0, -3:] = 0
    some[1] = some[0]
    some[1, -1] = 1
    theirs, wanted = some[rng.integers(0, 9, 40)], some[rng.integers(0, 12, 30)]
    usable = rng.random(40) < 0.5
    expected = [next((i for i, t in enumerate(theirs) if usable[i] and t.tobytes() == w.tobytes()), -1) for w in wanted]
    assert _rows_with(wanted, theirs, usable).tolist() == expected
    assert -1 in expected and max(expected) > 0
    assert _rows_with(wanted[:0], theirs, usable).shape == (0,)
    assert (_rows_with(wanted, theirs[:0], usable[:0]) == -1).all()


@pytest.fixture
def regrouped(photos: Path, tmp_path: Path, quick: Quick) -> tuple[Path, Path]:
    """A workspace with a cache of blocks of 8 rows, and the same photographs in other folders, so that rows move."""
    extract(photos, workspace=tmp_path, **{**quick, "block_rows": 8})
    other = tmp_path / "other"
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        place = other / f"group{number * 7 % 5}" / f"{number * 13 % 60:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, place)
    return tmp_path, other


def test_each_block_of_an_earlier_file_is_verified_once_and_its_digests_are_read_once(
    regrouped: tuple[Path, Path], quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, other = regrouped
    [earlier] = (root / "features").glob("*.h5")
    verified: Counter[int] = Counter()
    read: Counter[str] = Counter()
    verify, digests = Cache.verify, Cache._read_digests

    def counted(self: Cache, rows: Any = None, **options: Any) -> None:
        if self.path == earlier:
            verified.update(np.unique(rows // self.block_rows).tolist())
        verify(self, rows, **options)

    def noted(self: Cache) -> Any:
        read[self.path.name] += 1
        return digests(self)

    monkeypatch.setattr(Cache, "verify", counted)
    monkeypatch.setattr(Cache, "_read_digests", noted)
    found = extract(other, workspace=root, **{**quick, "block_rows": 8})
    assert (found.new, found.reused) == (0, 60)
    assert verified == dict.fromkeys(range(8), 1)
    assert read[earlier.name] == 1
    first, second = open_cache(earlier), open_cache(found.cache)
    rows = {digest.tobytes(): row for row, digest in enumerate(first.digests)}
    moved = [rows[digest.tobytes()] for digest in second.digests]
    assert moved != sorted(moved)
    assert np.array_equal(second.features, first.features[moved])


def test_a_damaged_block_gives_no_row(regrouped: tuple[Path, Path], quick: Quick) -> None:
    root, other = regrouped
    [earlier] = (root / "features").glob("*.h5")
    with earlier.open("r+b") as file:
        file.seek(open_cache(earlier)._structure.offset("/features") + 100)
        file.write(b"\x55\x55")
    with pytest.raises(CacheError, match="block 0 .rows 0 to 7. is damaged"):
        extract(other, workspace=root, **quick)
    cache = open_cache(earlier)
    assert len(Donor(cache, {}).take(np.array([8, 59]))) == 2
    with pytest.raises(CacheError, match="damaged"):
        Donor(cache, {}).take(np.array([8, 3]))


def test_of_many_files_those_are_opened_that_have_something_and_none_is_looked_at_when_all_is_found(
    photos: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = tmp_path / "features"
    extract(photos / "bee", workspace=tmp_path, out=features / "a0.h5", **quick)
    for number in range(1, 10):
        shutil.copy2(features / "a0.h5", features / f"a{number}.h5")
        shutil.copy2(features / "a0.h5", features / f"n{number}.h5")
    extract(photos, workspace=tmp_path, out=features / "m.h5", **quick)
    looked: list[str] = []
    opened: list[str] = []
    look, open_partial = store.digests_at, store.open_partial

    def noted(path: Path, key: str) -> Any:
        looked.append(path.name)
        return look(path, key)

    def counted(path: Path) -> Cache:
        opened.append(path.name)
        return open_partial(path)

    monkeypatch.setattr(store, "digests_at", noted)
    monkeypatch.setattr(store, "open_partial", counted)
    found = extract(photos / "cat", workspace=tmp_path, out=features / "b.h5", **quick)
    assert (found.new, found.reused) == (0, 20)
    assert opened == ["b.h5.partial", "m.h5"]
    # Once to know that there is one of the key, and once each until all is found.
    assert looked == ["a0.h5", *(f"a{n}.h5" for n in range(10)), "m.h5"]


def test_what_a_file_says_is_asked_of_any_file(photos: Path, tmp_path: Path, quick: Quick) -> None:
    made = open_cache(extract(photos, workspace=tmp_path, **quick).cache)
    assert np.array_equal(store.digests_at(made.path, made.key), made.digests)
    assert store.digests_at(made.path, "f" * 64) is None
    assert store.digests_at(tmp_path / "none.h5", made.key) is None
    cut = tmp_path / "cut.h5"
    cut.write_bytes(made.path.read_bytes()[:3000])
    text = tmp_path / "text.h5"
    text.write_text("text")
    assert store.digests_at(cut, made.key) is None and store.digests_at(text, made.key) is None
