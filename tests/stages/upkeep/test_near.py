"""Near pairs by a bound: the very pairs of a float64 product of all rows, of which few are compared in full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import store
from pipeline.stages.upkeep import audit_words, near
from pipeline.stages.upkeep.audit import _near

ROWS, DIM = 700, 96
Made = tuple[store.Cache, np.ndarray]


def spread(rng: np.random.Generator, decay: float) -> np.ndarray:
    """Rows in random directions, the k-th of which has k^-decay of the first one's deviation; a few are near others."""
    X = rng.standard_normal((ROWS, DIM)) * np.arange(1, DIM + 1) ** -decay
    X = X @ np.linalg.qr(rng.standard_normal((DIM, DIM)))[0] + 0.3
    X[::50] = X[1::50] * 3 + 0.02 * rng.standard_normal((ROWS // 50, DIM))
    return X


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Made]:
    def make(decay: float, dtype: str = "float16") -> Made:
        rng = np.random.default_rng(3)
        X = spread(rng, decay).astype(dtype)
        X[5] = X[333]  # the same features of two images
        digests = rng.integers(1, 256, (ROWS, 32)).astype(np.uint8)
        digests[40], digests[41] = digests[60], digests[61]
        X[40], X[41] = X[60], X[61]  # and copies of one image, which are no pair
        contents = store.Contents(
            ids=[b"%05d" % row for row in range(ROWS)],
            digests=digests,
            sizes=np.zeros(ROWS, np.int64),
            mtimes_ns=np.zeros(ROWS, np.int64),
            labels=rng.integers(-1, 3, ROWS),
            splits=np.sort(rng.integers(0, 4, ROWS)).astype(np.uint8),
            classes=("a", "b", "c"),
            dim=DIM,
            dtype=dtype,
            block_rows=64,
            provenance={"made": "here"},
            about={},
        )
        path = tmp_path / "made.h5"
        store.create_partial(path, contents)
        with store.Writer(path) as writer:
            for block in range(len(writer.done)):
                here = slice(*writer.span(block))
                writer.write_block(block, X[here], digests[here], np.ones(len(X[here]), np.uint8))
            writer.publish()
        return store.open_cache(path), X.astype(np.float64)

    return make


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles and pieces so small that pairs lie in and across them; any number of rows is worth a bound."""
    for name, value in {"TILE": 64, "IN_FULL": 0, "PIECE": 5, "SAMPLE": 300, "FEWEST": 4, "LOOK": 1}.items():
        monkeypatch.setattr(near, name, value)


def numbered(cache: store.Cache) -> tuple[np.ndarray, np.ndarray]:
    whole = np.ascontiguousarray(cache.digests).view("V32").ravel()
    return np.arange(ROWS), np.unique(whole, return_inverse=True)[1]


def all_pairs(X: np.ndarray, content: np.ndarray) -> dict[tuple[int, int], float]:
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    left, right = np.triu_indices(ROWS, 1)
    other = content[left] != content[right]
    cosines = (unit @ unit.T)[left, right]
    return {(a, b): c for a, b, c in zip(left[other].tolist(), right[other].tolist(), cosines[other], strict=True)}


def found_by(search: near.Search) -> dict[tuple[int, int], float]:
    found: dict[tuple[int, int], float] = {}
    for tile in search.tiles():
        for a, b, cosine in zip(*(part.tolist() for part in search.in_tile(*tile)), strict=True):
            assert (a, b) not in found and a < b
            found[a, b] = cosine
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.5])
def test_a_bound_misses_no_pair_of_any_spread_at_any_threshold(
    make: Callable[..., Made], decay: float, threshold: float, dtype: str
) -> None:
    """Against float64 over all pairs, also where the bound says nothing (all directions alike)."""
    cache, X = make(decay, dtype)
    rows, content = numbered(cache)
    truth = all_pairs(X, content)
    basis = near._basis(near.unit(cache, rows), 8)
    bound = near.bound_of(near.unit(cache, rows), basis)
    for search in (
        near.search_of(cache, rows, content, threshold),
        near.Search(cache, rows, content, threshold, bound),
        near.Search(cache, rows, content, threshold, None),
    ):
        found = found_by(search)
        unsure = {pair for pair, cosine in truth.items() if abs(cosine - threshold) < 2e-6}
        assert found.keys() - unsure == {pair for pair, cosine in truth.items() if cosine >= threshold} - unsure
        assert (5, 333) in found and (40, 60) not in found and (41, 61) not in found
        assert max(abs(truth[pair] - cosine) for pair, cosine in found.items()) < 1e-6


@pytest.mark.parametrize("k", [1, 8, 48])
def test_the_bound_is_never_below_the_cosine(make: Callable[..., Made], k: int) -> None:
    cache, X = make(0.5)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    rows = near.unit(cache, np.arange(ROWS))
    basis = near._basis(rows, k)
    np.testing.assert_allclose(basis.T @ basis, np.eye(k), atol=1e-6)
    bound = near.bound_of(rows, basis)
    assert bound.shape == (ROWS, k + 1)
    assert (bound @ bound.T >= unit @ unit.T - near.SLACK / 10).all()


def test_the_basis_has_the_directions_of_most_length(make: Callable[..., Made]) -> None:
    rows = near.unit(make(1.0)[0], np.arange(ROWS))
    held = np.linalg.norm(rows @ near._basis(rows, 8)) ** 2
    best = (np.linalg.svd(rows.astype(float), compute_uv=False)[:8] ** 2).sum()
    assert held == pytest.approx(best, rel=1e-3)


def test_few_pairs_of_many_are_compared_in_full(make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: cosines taken by themselves, and tiles of rows of full length."""
    cache, _ = make(1.0)
    rows, content = numbered(cache)
    search = near.search_of(cache, rows, content, 0.99)
    assert search.dimensions is not None and search.dimensions <= DIM // 2
    alone, in_full = [], []
    taken = near.Search._alone
    monkeypatch.setattr(near.Search, "_alone", lambda self, a, b: (alone.append(len(a)), taken(self, a, b))[1])
    monkeypatch.setattr(near, "unit", lambda *_: in_full.append(1))
    found = found_by(search)
    assert 15 <= len(found) <= sum(alone) < 0.02 * ROWS**2 / 2 and not in_full


def test_a_tile_in_which_the_bound_says_nothing_is_compared_in_full(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, X = make(0.0)
    rows, content = numbered(cache)
    assert near.search_of(cache, rows, content, 0.3).bound is None  # no direction is better than another
    bound = near.bound_of(near.unit(cache, rows), near._basis(near.unit(cache, rows), 4))
    monkeypatch.setattr(near.Search, "_alone", None)
    found = found_by(near.Search(cache, rows, content, -1.0, bound))
    assert len(found) == len(all_pairs(X, content))


def test_few_rows_are_compared_in_full(make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "IN_FULL", ROWS)
    cache, _ = make(1.0)
    assert near.search_of(cache, *numbered(cache), 0.99).bound is None


def test_the_bounds_of_all_rows_have_room_in_memory(make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch) -> None:
    cache, _ = make(1.0)
    monkeypatch.setattr(near, "BOUND_BYTES", 4 * ROWS * 9)
    dimensions = near.search_of(cache, *numbered(cache), 0.99).dimensions
    assert dimensions is not None and dimensions <= 8
    monkeypatch.setattr(near, "BOUND_BYTES", 4 * ROWS * 3)
    assert near.search_of(cache, *numbered(cache), 0.99).bound is None


def test_the_same_rows_are_searched_in_the_same_way(make: Callable[..., Made]) -> None:
    cache, _ = make(1.0)
    first, second = (near.search_of(cache, *numbered(cache), 0.99) for _ in range(2))
    assert first.bound is not None and second.bound is not None
    assert first.bound.tobytes() == second.bound.tobytes()


def test_how_long_it_takes_is_told_before_it_begins_and_how_far_it_is_meanwhile(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, X = make(1.0)
    told: list[Any] = []

    class Bar:
        def __init__(self, what: str) -> None:
            self.what = what

        def __enter__(self) -> Bar:
            told.append(f"begin {self.what}")
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def advance(self, n: int = 1) -> None:
            told.append((self.what, n))

    done = near.Search.in_tile
    monkeypatch.setattr(near.Search, "in_tile", lambda self, *tile: (told.append(tile), done(self, *tile))[1])
    watch = SimpleNamespace(say=told.append, track=lambda what, total, unit: Bar(what))
    found = _near(cache, 0.99, SimpleNamespace(watch=watch))  # type: ignore[arg-type]
    tiles = -(-ROWS // 64) * (-(-ROWS // 64) + 1) // 2
    said = next(i for i, one in enumerate(told) if isinstance(one, str) and "pairs of rows" in one)
    assert told[said - near.MEASURED - 1] == ("verify", ROWS % 64)  # rows are verified, a few tiles timed
    assert "244,650 pairs of rows are compared" in told[said] and "about" in told[said]
    assert told[said + 1] == "begin compare"
    assert sum(1 for one in told[said:] if one == ("compare", 1)) == tiles
    assert (found.recall, found.count) == (
        1.0,
        sum(c >= 0.99 - 1e-6 for c in all_pairs(X, numbered(cache)[1]).values()),
    )
    assert found.dimensions is not None


def test_what_is_about_to_be_done_is_told() -> None:
    told = audit_words.comparing(1_000_000, 64, 1234.0)
    assert told.startswith("499,999,500,000 pairs of rows are compared, by a bound in 64 dimensions, which misses none")
    assert "about 20 min" in told and "Ctrl-C" in told
    assert "in full: about" in audit_words.comparing(10, None, 1.0)
