"""Few-shot: so many images of each class, drawn several times; chosen on val, test scored at the end."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import extract, open_cache, search
from pipeline.base.errors import HeadError
from pipeline.heads.exact.path import fit_exact
from pipeline.heads.problem import Problem
from pipeline.stages.learn.few_shot import drawn
from pipeline.store.rows import Rows, load_rows

FEW = (1e-4, 1e-2, 1.0)


@pytest.fixture
def cache(workshop: SimpleNamespace) -> Path:
    found: Path = workshop.cache.cache
    return found


def draws_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "draws.jsonl").read_text().splitlines()]


def test_every_number_of_shots_has_its_draws_with_mean_and_deviation(cache: Path, tmp_path: Path) -> None:
    found = search(cache, shots=(1, 4), draws=3, Cs=FEW, workspace=tmp_path)
    draws = draws_of(found.run)
    assert [(d["shots"], d["draw"]) for d in draws] == [(k, i) for k in (1, 4) for i in range(3)]
    assert [r["shots"] for r in found.results] == [1, 4]
    for result in found.results:
        mine = [d for d in draws if d["shots"] == result["shots"]]
        for split in ("val", "test"):
            assert result[split] == pytest.approx(np.mean([d[split] for d in mine]))
            assert result[f"{split}_deviation"] == pytest.approx(np.std([d[split] for d in mine], ddof=1))
        assert result["C"] == statistics.median(d["C"] for d in mine)


def test_the_same_seed_gives_the_same_draws_and_another_seed_others(cache: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"shots": (2,), "draws": 4, "Cs": FEW, "metric": "log_loss", "workspace": tmp_path}
    first, again, other = (draws_of(search(cache, seed=seed, **options).run) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_draws_figures_are_those_of_the_head_that_is_best_on_val(cache: Path, tmp_path: Path) -> None:
    found = search(cache, shots=(3,), draws=2, Cs=FEW, metric="log_loss", seed=7, workspace=tmp_path)
    fitted, val, test = (load_rows(open_cache(cache), split) for split in ("train", "val", "test"))

    def log_loss(rows: Rows, fit: Any) -> float:
        z = rows.X.astype(np.float64) @ fit.weight.T.astype(np.float64) + fit.bias
        return float((np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), rows.y]).mean())

    for number, draw in enumerate(draws_of(found.run)):
        few = drawn(fitted, 3, seed=(7, number))
        best = min(fit_exact(Problem(few.X, few.y, 3), FEW), key=lambda fit: log_loss(val, fit))
        assert draw["C"] == best.C
        assert draw["val"] == pytest.approx(log_loss(val, best), rel=1e-4)
        assert draw["test"] == pytest.approx(log_loss(test, best), rel=1e-4)


def test_test_rows_are_asked_for_only_when_all_heads_are_fixed(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipeline.stages.learn.task as module
    from pipeline.store.reader import Cache

    told: list[str] = []
    rows, fit = Cache.rows, module.fit_exact

    def asked(self: Cache, split: str) -> Any:
        told.append(split)
        return rows(self, split)

    def fitting(*arguments: Any, **options: Any) -> Any:
        told.append("fit")
        return fit(*arguments, **options)

    monkeypatch.setattr(Cache, "rows", asked)
    monkeypatch.setattr(module, "fit_exact", fitting)
    search(cache, shots=(1, 2), draws=2, Cs=FEW, workspace=tmp_path)
    fixed = len(told) - told[::-1].index("fit")
    assert set(told[:fixed]) == {"train", "val", "fit"}
    assert told.count("fit") == 4
    assert set(told[fixed:]) == {"test"}


def test_without_evaluation_test_rows_are_not_asked_for(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.store.reader import Cache

    rows = Cache.rows

    def sealed(self: Cache, split: str) -> Any:
        assert split != "test", "few-shot asked for test rows"
        return rows(self, split)

    monkeypatch.setattr(Cache, "rows", sealed)
    found = search(cache, shots=(1,), draws=2, Cs=FEW, evaluate=False, workspace=tmp_path)
    draws = [json.loads(line) for line in (found.run / "draws.jsonl").read_text().splitlines()]
    assert [d["test"] for d in draws] == [None, None]
    assert found.results[0]["test"] is None
    assert found.results[0]["val"] == pytest.approx(np.mean([d["val"] for d in draws]))
    with pytest.raises(AssertionError, match="few-shot asked"):
        search(cache, shots=(1,), draws=2, Cs=FEW, workspace=tmp_path)  # the scoring at the end does


def test_its_record_says_that_val_chose(cache: Path, tmp_path: Path, listener: Any) -> None:
    found = search(cache, shots=(1,), draws=2, Cs=FEW, evaluate=False, workspace=tmp_path, watch=listener)
    record = json.loads((found.run / "metrics.json").read_text())
    assert record == {k: v for k, v in found.to_json().items() if k != "run"}
    assert record["chosen_by"] == "val" and record["scored_before"] is None
    assert "Val (chose C)" in listener.text and "val is optimistic" in listener.text


def test_one_draw_has_no_deviation(cache: Path, tmp_path: Path) -> None:
    result = search(cache, shots=(2,), draws=1, Cs=FEW, workspace=tmp_path).results[0]
    assert result["val_deviation"] is None and result["test_deviation"] is None


def test_few_shot_without_val_rows_is_refused(photos: Path, tmp_path: Path, quick: dict[str, Any]) -> None:
    made = extract(photos, workspace=tmp_path, val_fraction=0, **quick)
    with pytest.raises(HeadError, match="no val rows to choose on: extract with val_fraction"):
        search(made.cache, shots=(1,), workspace=tmp_path)


def test_drawn_rows_are_different_rows_of_each_class() -> None:
    y = np.repeat([0, 1, 2], [2, 5, 9])
    rows = Rows(np.arange(16, dtype=np.float32)[:, None], y)
    few = drawn(rows, 3, seed=(0, 0))
    assert np.bincount(few.y).tolist() == [2, 3, 3]
    assert len(np.unique(few.X)) == 8
    np.testing.assert_array_equal(y[few.X[:, 0].astype(int)], few.y)
    assert not np.array_equal(drawn(rows, 3, seed=(0, 1)).X, few.X)


def test_of_thousands_of_classes_rows_are_drawn_as_of_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """As class by class, one after the other; the labels are compared with no class each by itself."""
    y = np.random.default_rng(0).integers(0, 1500, 4000)
    rng = np.random.default_rng((1, 3))
    expected = np.sort(np.concatenate([rng.permutation(np.flatnonzero(y == c))[:2] for c in np.unique(y)]))
    monkeypatch.setattr(np, "flatnonzero", lambda found, whole=np.flatnonzero: calls.append(1) or whole(found))
    calls: list[int] = []
    found = drawn(Rows(np.arange(4000, dtype=np.float32)[:, None], y), 2, seed=(1, 3))
    np.testing.assert_array_equal(found.X[:, 0], expected)
    assert len(calls) <= 1
