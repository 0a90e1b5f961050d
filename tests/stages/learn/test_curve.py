"""The learning curve: nested draws, val rows that no head was chosen on, test untouched, and what is written."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import extract, open_cache, search
from pipeline.base.errors import ConfigError, HeadError
from pipeline.heads.choice import order
from pipeline.heads.exact.path import fit_exact
from pipeline.heads.problem import Problem
from pipeline.heads.scores.power_law import PowerLaws
from pipeline.heads.scores.tally import linear_figures
from pipeline.stages.learn.curve import Scored, _prolonged, _scored
from pipeline.stages.learn.few_shot import drawn
from pipeline.stages.learn.settings import SearchSettings
from pipeline.store.rows import Rows, load_rows

FEW = (1e-4, 1e-2, 1.0)
SHOTS = (1, 2, 3, 5, "all")
Options = dict[str, Any]


@pytest.fixture
def cache(workshop: SimpleNamespace) -> Path:
    found: Path = workshop.cache.cache
    return found


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return {"shots": SHOTS, "draws": 2, "Cs": FEW, "workspace": tmp_path}


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "draws.jsonl").read_text().splitlines()]


def test_rows_of_fewer_shots_are_among_those_of_more_and_another_draw_has_others() -> None:
    y = np.repeat([0, 1, 2], [4, 9, 30])
    rows = Rows(np.arange(43, dtype=np.float32)[:, None], y)
    before: set[float] = set()
    for k in (1, 2, 5, 10, 50):
        now = set(drawn(rows, k, seed=(3, 0)).X[:, 0].tolist())
        assert before < now and len(now) == sum(min(k, n) for n in (4, 9, 30))
        before = now
    assert set(drawn(rows, 2, seed=(3, 0)).X[:, 0]) != set(drawn(rows, 2, seed=(3, 1)).X[:, 0])


def test_every_number_of_shots_has_its_draws_and_all_has_one(cache: Path, options: Options) -> None:
    found = search(cache, **options)
    lines, fitted = lines_of(found.run), load_rows(open_cache(cache), "train")
    assert [(d["shots"], d["draw"]) for d in lines] == [(k, i) for k in (1, 2, 3, 5) for i in (0, 1)] + [("all", 0)]
    assert [d["images"] for d in lines] == [3, 3, 6, 6, 9, 9, 15, 15, len(fitted)]
    assert found.run.name.split("-")[1] == "fewshot" and found.scored_before is None
    assert found.chosen_by == "the other half of val"
    for result in found.results:
        mine = [d for d in lines if d["shots"] == result["shots"]]
        assert result["val"] == pytest.approx(np.mean([d["val"] for d in mine]))
        assert result["low"] <= result["val"] <= result["high"]
        assert result["C"] == statistics.median(C for d in mine for C in d["C"])


class Handed:
    """A task of made rows: what :func:`_scored` asks of one."""

    def __init__(self, val: Rows, classes: int) -> None:
        self.settings = SearchSettings(Cs=FEW)
        self.cache = SimpleNamespace(classes=[str(c) for c in range(classes)])
        self.val = val

    def exact(self, rows: Rows, Cs: Any) -> Any:
        return fit_exact(Problem(rows.X, rows.y, len(self.cache.classes)), Cs)


def blobs(n: int, seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    return Rows((rng.normal(size=(n, 6)) + 0.8 * np.eye(3, 6)[y]).astype(np.float32), y)


def scored(train: Rows, val: Rows, half: Any) -> Scored:
    parts = [(half == h, Rows(val.X[half == h], val.y[half == h])) for h in (0, 1)]
    task: Any = Handed(val, 3)
    return _scored(task, train, parts, {})


def test_what_is_said_of_a_half_does_not_hang_on_its_own_labels() -> None:
    """Whatever labels the rows of one half have, they are taken for the same classes: the other half chose the head."""
    train, val, half = blobs(12, 0), blobs(60, 1), np.arange(60) // 3 % 2
    told = scored(train, val, half)
    changed = val.y.copy()
    changed[half == 0] = (changed[half == 0] + 1) % 3
    other = scored(train, Rows(val.X, changed), half)
    np.testing.assert_array_equal(told.predicted[half == 0], other.predicted[half == 0])
    assert told.line["C"][1] == other.line["C"][1]


def test_each_half_is_scored_by_the_head_that_is_best_on_the_other() -> None:
    train, val, half = blobs(12, 0), blobs(60, 1), np.arange(60) // 3 % 2
    told, fits = scored(train, val, half), fit_exact(Problem(train.X, train.y, 3), FEW)
    heads = [(fit.weight, fit.bias) for fit in fits]
    losses = []
    for h in (0, 1):
        figures = linear_figures(heads, val.X[half == h], val.y[half == h])
        best = min(range(3), key=lambda i, figures=figures: order(figures[i], "log_loss", FEW[i]))  # type: ignore[misc]
        assert told.line["C"][h] == FEW[best]
        X, y = val.X[half != h].astype(np.float64), val.y[half != h]
        logits = torch.from_numpy(X @ fits[best].weight.T + fits[best].bias)
        np.testing.assert_array_equal(told.predicted[half != h], logits.argmax(dim=1).numpy())
        losses += torch.nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="none").tolist()
    assert told.line["log_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert told.line["val"] == pytest.approx((told.predicted == val.y).mean())


def test_of_the_same_seed_all_is_the_same_but_the_time(cache: Path, options: Options) -> None:
    first, again = search(cache, **options), search(cache, **options)
    told = [{**r.to_json(), "run": "", "seconds": 0} for r in (first, again)]
    assert json.dumps(told[0]) == json.dumps(told[1])
    assert lines_of(first.run) != lines_of(search(cache, seed=1, **options).run)
    for name in ("draws.jsonl", "curve.csv", "curve.svg"):
        assert (first.run / name).read_bytes() == (again.run / name).read_bytes()


def test_the_files_say_what_the_result_says(cache: Path, options: Options) -> None:
    found = search(cache, **options)
    record = json.loads((found.run / "metrics.json").read_text())
    assert record == {k: v for k, v in found.to_json().items() if k != "run"}
    with (found.run / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["shots", "images", "draws", "val", "low", "high", "C"]
    assert [row["shots"] for row in rows] == [str(k) for k in SHOTS]
    for row, result in zip(rows, found.results, strict=True):
        assert {name: float(row[name]) for name in row if name != "shots"} == {
            name: pytest.approx(result[name]) for name in row if name != "shots"
        }
    assert (found.run / "curve.svg").read_text().count('id="series-') == 2


def test_the_law_runs_through_the_figures_and_looks_ahead(cache: Path, options: Options) -> None:
    found = search(cache, **options)
    assert found.law is not None and found.more is not None and found.ahead is not None
    assert set(found.law) == {"a", "b", "c"} and found.law["a"] >= 0
    n = found.results[-1]["images"]
    assert found.more["now"] == n and [at["images"] for at in found.ahead] == [2 * n, 5 * n, 10 * n]
    for at in found.ahead:
        assert at["val"] == pytest.approx(1 - found.law["a"] - found.law["b"] * at["images"] ** -found.law["c"])
        assert at["low"] <= at["val"] <= at["high"]
        assert at["high"] - at["low"] > 0.1  # of so few val images all right is not known to be all right


def test_the_metric_is_what_is_shown_but_for_the_log_loss(cache: Path, options: Options, listener: Any) -> None:
    search(cache, metric="macro_f1", watch=listener, **options)
    assert "Val macro f1" in listener.text and "of macro f1" in listener.text
    assert "chosen on one half of val and scored" in listener.text
    search(cache, watch=listener, **options)
    assert "Val accuracy" in listener.text and "chosen on one half of val by log-loss and scored" in listener.text


def test_few_numbers_of_images_have_no_law(cache: Path, options: Options, listener: Any) -> None:
    found = search(cache, watch=listener, **{**options, "shots": (1, 2, "all")})
    assert found.law is None and found.more is None and found.ahead is None
    assert "no law: 3 numbers of images, and 4 are needed" in listener.text
    assert (found.run / "curve.svg").read_text().count('id="series-') == 1
    assert [r["shots"] for r in search(cache, **{**options, "shots": "all"}).results] == ["all"]


def test_shots_that_no_class_has_are_all(cache: Path, options: Options, listener: Any) -> None:
    most = int(np.bincount(load_rows(open_cache(cache), "train").y).max())
    shots = (2, most, most + 100, "all")
    found = search(cache, watch=listener, **{**options, "shots": shots})
    assert [r["shots"] for r in found.results] == [2, "all"]
    assert f"shots {most}, {most + 100}: no class has more than {most} train images, so that is all" in listener.text


def test_classes_with_fewer_images_are_said(
    photos: Path, tmp_path: Path, quick: dict[str, Any], listener: Any, options: Options
) -> None:
    """Of unequal classes: 3 train images of one of them, a single val image of another."""
    for name, split, numbers in [
        *[("ant", "train", range(3)), ("bee", "train", range(12)), ("cat", "train", range(12))],
        *[("ant", "val", range(12, 18)), ("bee", "val", range(12, 18)), ("cat", "val", range(12, 13))],
    ]:
        (folder := tmp_path / "unequal" / split / name).mkdir(parents=True)
        for number in numbers:
            shutil.copy(photos / name / f"{number:02d}.png", folder)
    made = extract(tmp_path / "unequal", workspace=tmp_path, test_fraction=0, **quick)
    found = search(made.cache, watch=listener, **{**options, "shots": (1, 5, "all")})
    assert [r["images"] for r in found.results] == [3, 13, 27]
    assert "5 shots: 1 of 3 classes has fewer train images; all of them are taken" in listener.text
    assert "1 of 3 classes has fewer than 2 val images" in listener.text
    search(made.cache, watch=(again := type(listener)()), evaluate=False, **{**options, "shots": (5,)})
    assert "5 shots: 1 of 3 classes has fewer train images" in again.text


def test_without_val_rows_it_is_refused(photos: Path, tmp_path: Path, quick: dict[str, Any]) -> None:
    made = extract(photos, workspace=tmp_path, val_fraction=0, **quick)
    with pytest.raises(HeadError, match="no val rows to choose on: extract with val_fraction"):
        search(made.cache, shots=(1, "all"), workspace=tmp_path)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"shots": (0, "all")}, "^shots is 0: it must be at least 1 or 'all'$"),
        ({"shots": "most"}, "^shots is 'most': it must be a whole number or 'all'$"),
        ({"shots": "all", "cv": 3}, "^shots draws from the train images: leave out cv and views"),
        ({"shots": "all", "views": 1}, "^shots draws from the train images: leave out cv and views"),
        ({"shots": "all", "space": "mlp"}, "^shots is for the exact heads"),
    ],
)
def test_what_is_no_number_of_shots_is_refused(cache: Path, tmp_path: Path, given: Options, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        search(cache, workspace=tmp_path, **given)


def test_a_law_that_is_above_what_an_error_can_be_is_drawn_within_shares() -> None:
    """1-shot heads of many classes are near chance, and a law of the others may have begun above an error of 1."""
    laws = PowerLaws(np.zeros(3), np.array([5.0, 6.0, 4.0]), np.full(3, 0.5))
    places = list(_prolonged(laws, [4, 10, 1000], 50.0))
    assert places[0][:2] == (4, 0.0)
    assert all(0 <= low <= value <= high <= 1 for _, value, low, high in places)
