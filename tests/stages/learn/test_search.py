"""The search: chosen on val alone, refitted on both, tested once; by cross-validation, and by halving."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

from pipeline import extract, open_cache, search, train
from pipeline.base.errors import ConfigError, HeadError
from pipeline.heads.artifact import load_head
from pipeline.heads.exact.path import fit_exact
from pipeline.heads.folds import fold_numbers as dealt
from pipeline.heads.problem import Problem, Split
from pipeline.stages.learn.held_out import fold_numbers
from pipeline.store import Writer, create_partial
from pipeline.store.rewrite import kept
from pipeline.store.rows import load_rows

Quick = dict[str, Any]
FEW = (1e-4, 1e-2, 1.0)


@pytest.fixture
def cache(workshop: SimpleNamespace) -> Path:
    found: Path = workshop.cache.cache
    return found


def trials_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1", "log_loss"])
def test_trials_are_ranked_by_the_metric_as_scikit_learn_computes_it(cache: Path, tmp_path: Path, metric: str) -> None:
    found = search(cache, Cs=FEW, metric=metric, evaluate=False, workspace=tmp_path)
    fitted, val = (load_rows(open_cache(cache), split) for split in ("train", "val"))
    fits = fit_exact(Problem(fitted.X, fitted.y, 3), FEW)
    expected = {}
    for fit in fits:
        logits = val.X.astype(np.float64) @ fit.weight.T.astype(np.float64) + fit.bias
        p = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
        guess = logits.argmax(axis=1)
        expected[fit.C] = {
            "accuracy": (guess == val.y).mean(),
            "balanced_accuracy": balanced_accuracy_score(val.y, guess),
            "macro_f1": f1_score(val.y, guess, average="macro"),
            "log_loss": log_loss(val.y, p),
        }[metric]
    trials = trials_of(found.run)
    assert {t["C"]: t["val"][metric] for t in trials} == pytest.approx(expected, rel=1e-4)
    values = [t["val"][metric] for t in trials]
    assert values == sorted(values, reverse=metric != "log_loss")


@pytest.mark.slow
def test_the_chosen_penalty_is_refitted_on_train_and_val_and_the_run_says_so(cache: Path, tmp_path: Path) -> None:
    found = search(cache, Cs=FEW, evaluate=False, workspace=tmp_path)
    fitted, val = (load_rows(open_cache(cache), split) for split in ("train", "val"))
    best = trials_of(found.run)[0]["C"]
    X, y = np.concatenate([fitted.X, val.X]), np.concatenate([fitted.y, val.y])
    expected = fit_exact(Problem(X, y, 3), [best])[0]
    np.testing.assert_array_equal(load_head(found.run).tensors["weight"], expected.weight)
    assert json.loads((found.run / "config.json").read_text())["learned_from"] == ["train", "val"]
    kept = search(cache, Cs=FEW, evaluate=False, refit=False, workspace=tmp_path)
    alone = next(f for f in fit_exact(Problem(fitted.X, fitted.y, 3), FEW) if best == f.C)
    np.testing.assert_array_equal(load_head(kept.run).tensors["weight"], alone.weight)
    assert json.loads((kept.run / "config.json").read_text())["learned_from"] == ["train"]


def test_the_code_that_selects_never_asks_for_test_rows(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.store.reader import Cache

    rows = Cache.rows

    def sealed(self: Cache, split: str) -> Any:
        assert split != "test", "selection asked for test rows"
        return rows(self, split)

    monkeypatch.setattr(Cache, "rows", sealed)
    train(cache, workspace=tmp_path)
    train(cache, solver="adamw", epochs=2, workspace=tmp_path)
    search(cache, Cs=FEW, evaluate=False, workspace=tmp_path)
    search(cache, Cs=FEW, cv=3, evaluate=False, workspace=tmp_path)
    search(cache, space="mlp", trials=2, epochs=2, evaluate=False, workspace=tmp_path)
    with pytest.raises(AssertionError, match="selection asked"):
        search(cache, Cs=FEW, workspace=tmp_path)  # the evaluation at the end does


@pytest.mark.parametrize("options", [{"Cs": FEW}, {"Cs": FEW, "cv": 3}, {"space": "mlp", "trials": 4, "epochs": 3}])
def test_other_test_rows_change_nothing_in_what_is_chosen(cache: Path, tmp_path: Path, options: Quick) -> None:
    """Features and labels of the test rows are others, everything else is the same."""
    whole = open_cache(cache)
    made, X = kept(whole, np.arange(len(whole)), "other test rows"), np.array(whole.features)
    test = whole.rows("test")
    X[test], made.labels[test] = 1e6, (made.labels[test] + 1) % 3
    create_partial(tmp_path / "other.h5", made)
    with Writer(tmp_path / "other.h5") as writer:
        for block in range(len(writer.done)):
            start, stop = writer.span(block)
            writer.write_block(block, X[start:stop], made.digests[start:stop], whole.states[start:stop])
        writer.publish()
    runs = [search(c, evaluate=False, workspace=tmp_path, **options).run for c in (cache, tmp_path / "other.h5")]
    assert trials_of(runs[0]) == trials_of(runs[1])
    assert (runs[0] / "head.safetensors").read_bytes() == (runs[1] / "head.safetensors").read_bytes()


def test_equal_figures_go_to_the_stronger_penalty(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    equal = {"accuracy": 0.5, "balanced_accuracy": 0.5, "macro_f1": 0.5, "log_loss": 0.7}
    learned = sys.modules["pipeline.stages.learn.trials"]
    monkeypatch.setattr(learned, "linear_figures", lambda heads, *rows: [equal] * len(heads))
    found = search(cache, Cs=(1.0, 1e-4, 1e-2), evaluate=False, workspace=tmp_path)
    assert [t["C"] for t in trials_of(found.run)] == [1e-4, 1e-2, 1.0]
    assert json.loads((found.run / "metrics.json").read_text())["config"]["C"] == 1e-4


def test_test_is_scored_once_when_the_head_is_fixed(cache: Path, tmp_path: Path) -> None:
    found = search(cache, Cs=FEW, workspace=tmp_path)
    test = load_rows(open_cache(cache), "test")
    accuracy = (load_head(found.run).logits(test.X).argmax(axis=1) == test.y).mean()
    figures = json.loads((found.run / "evaluation.json").read_text())["test"]
    assert figures["accuracy"] == pytest.approx(accuracy)
    assert figures["calibrated"]["temperature"] == found.temperature
    assert found.temperature_from == "5 folds of train and val"  # val itself was learned from
    assert (found.chosen_by, found.chosen_from) == ("val", 3)


def test_the_picture_is_whole_and_names_the_chosen_penalty(cache: Path, tmp_path: Path) -> None:
    found = search(cache, Cs=FEW, evaluate=False, workspace=tmp_path)
    root = xml.etree.ElementTree.parse(found.run / "path.svg").getroot()
    texts = [t.text or "" for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any(f"C = {trials_of(found.run)[0]['C']:.3g}" in t for t in texts)
    drawn = [g.get("id") or "" for g in root.iter("{http://www.w3.org/2000/svg}g")]
    assert sum(name.startswith("series-") for name in drawn) == 2
    assert "chosen" in drawn


def test_cross_validation_needs_no_val_rows_and_gives_sound_figures(photos: Path, tmp_path: Path, quick: Quick) -> None:
    made = extract(photos, workspace=tmp_path, val_fraction=0, **quick)
    found = search(made.cache, Cs=FEW, cv=4, seed=3, evaluate=False, workspace=tmp_path)
    rows = load_rows(open_cache(made.cache), "train")
    folds = dealt(rows.y, np.arange(len(rows)), 4, 3)
    right = dict.fromkeys(FEW, 0)
    for fit in fit_exact(Problem(rows.X, rows.y, 3, folds=folds), FEW):
        if fit.fold >= 0:
            out = folds == fit.fold
            right[fit.C] += int(((rows.X[out] @ fit.weight.T + fit.bias).argmax(axis=1) == rows.y[out]).sum())
    assert {t["C"]: t["val"]["accuracy"] for t in trials_of(found.run)} == pytest.approx(
        {C: n / len(rows) for C, n in right.items()}
    )


def test_folds_hold_each_row_out_once_and_are_stratified() -> None:
    y = np.repeat([0, 1, 2], [10, 20, 30])
    folds = dealt(y, np.arange(60), 5, 0)
    for number in range(5):
        assert np.bincount(y[folds == number]).tolist() == [2, 4, 6]
    task: Any = SimpleNamespace(both=SimpleNamespace(y=y), images=np.arange(60) // 2, settings=SimpleNamespace(seed=0))
    with pytest.raises(HeadError, match="smallest class has 5 different images; give at most 5"):
        fold_numbers(task, 6)
    lonely: Any = SimpleNamespace(both=task.both, images=np.where(y == 0, 0, np.arange(60)), settings=task.settings)
    with pytest.raises(HeadError, match="fewer than 2 images of its own, .* or leave out cv"):
        fold_numbers(lonely, 2)
    folds = fold_numbers(task, 5)
    assert (folds[::2] == folds[1::2]).all()  # copies of an image are left out together
    assert all((np.bincount(y[folds == number]) > 0).all() for number in range(5))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cv": 1}, "cv is 1"),
        ({"space": "mlp", "cv": 3}, "cv is for the exact heads"),
        ({"space": "mlp", "Cs": (1.0,)}, "Cs is for the exact heads"),
        ({"space": "mlp", "shots": (1,)}, "shots is for the exact heads"),
        ({"shots": (1,), "cv": 3}, "leave out cv"),
        ({"cv": 3, "views": 1}, "cv would learn from augmented copies of the images that it holds out"),
        ({"budget": 60.0}, "budget is for minibatch heads"),
        ({"trials": 9}, "trials is for minibatch heads"),
        ({"epochs": 9}, "epochs is for minibatch heads"),
        ({"optuna": "study.log"}, "optuna is for minibatch heads"),
        ({"space": "tree"}, "'tree' is not known: choose from exact, mlp, or give a .toml file"),
        ({"space": "missing.toml"}, "missing.toml' cannot be read"),
        ({"metric": "auc"}, "metric 'auc' is not known"),
    ],
)
def test_wrong_settings_name_the_legal_ones(cache: Path, tmp_path: Path, options: Quick, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        search(cache, workspace=tmp_path, **options)


def test_a_space_file_is_drawn_from_and_a_wrong_one_is_named(cache: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.toml"
    space.write_text('kind = ["cosine"]\nlr = { low = 0.01, high = 0.1, log = true }\n')
    found = search(cache, space=str(space), trials=3, epochs=3, evaluate=False, workspace=tmp_path)
    trials = trials_of(found.run)
    assert len(trials) == 3 and all(0.01 <= t["lr"] <= 0.1 for t in trials)
    assert load_head(found.run).kind == "cosine"
    space.write_text("lr = [0.1\n")
    with pytest.raises(ConfigError, match="is not TOML"):
        search(cache, space=str(space), workspace=tmp_path)
    space.write_text("speed = [0.1]\n")
    with pytest.raises(ConfigError, match="'speed', which is no setting"):
        search(cache, space=str(space), workspace=tmp_path)


def test_a_stopped_search_goes_on_and_ends_as_if_it_had_not_been_stopped(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: Any
) -> None:
    import pipeline.stages.learn.brackets as module

    monkeypatch.setattr(module, "BRACKET", 3)
    options: Quick = {"space": "mlp", "trials": 9, "epochs": 3, "evaluate": False}
    whole = search(cache, workspace=tmp_path / "whole", **options)
    bracket, done = module._bracket, []

    def stopped(*arguments: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return bracket(*arguments)

    monkeypatch.setattr(module, "_bracket", stopped)
    with pytest.raises(KeyboardInterrupt):
        search(cache, workspace=tmp_path / "cut", **options)
    monkeypatch.setattr(module, "_bracket", bracket)
    again = search(cache, workspace=tmp_path / "cut", watch=listener, **options)
    assert "resuming: 2 of 3 brackets are done" in listener.text
    assert trials_of(again.run) == trials_of(whole.run)
    assert (again.run / "head.safetensors").read_bytes() == (whole.run / "head.safetensors").read_bytes()
    assert not list((tmp_path / "cut" / "runs").glob(".search-*"))


def test_a_search_killed_between_keeping_and_tidying_gives_the_run_that_it_kept(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: Any
) -> None:
    from pipeline.stages.learn.state import SearchState

    def killed(_: SearchState) -> None:
        raise KeyboardInterrupt

    options: Quick = {"space": "mlp", "trials": 3, "epochs": 3, "evaluate": False, "workspace": tmp_path}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SearchState, "forget", killed)
        search(cache, **options)
    (kept,) = (p for p in (tmp_path / "runs").iterdir() if p.name[0] != ".")
    again = search(cache, watch=listener, **options)
    assert again.run == kept and "was kept before the search was stopped" in listener.text
    assert again.to_json() == {n: json.loads((kept / "metrics.json").read_text())[n] for n in again.to_json()}
    assert not list((tmp_path / "runs").glob(".search-*"))
    assert search(cache, **options).run != kept, "and then a search is a new one"


def test_more_trials_than_a_kept_search_had_are_another_search(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: Any
) -> None:
    """Its first brackets are the very same lines."""
    import pipeline.stages.learn.brackets as module

    monkeypatch.setattr(module, "BRACKET", 3)
    options: Quick = {"space": "mlp", "epochs": 3, "evaluate": False, "workspace": tmp_path}
    first = search(cache, trials=3, **options)
    bracket, done = module._bracket, []

    def stopped(*arguments: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return bracket(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_bracket", stopped)
        search(cache, trials=6, **options)
    second = search(cache, trials=6, watch=listener, **options)
    assert second.run != first.run and len(trials_of(second.run)) == 6
    assert "resuming: 1 of 2 brackets are done" in listener.text


def test_a_second_process_at_the_very_search_is_told(cache: Path, tmp_path: Path) -> None:
    from pipeline.base.workspace import Workspace
    from pipeline.stages.learn.brackets import state_of
    from pipeline.stages.learn.settings import SearchSettings
    from pipeline.stages.learn.task import task_of

    options: Quick = {"space": "mlp", "trials": 3, "epochs": 3, "evaluate": False}
    state = state_of(task_of(SearchSettings(cache=str(cache), **options), Workspace(tmp_path)))
    assert state is not None
    with state.held(), pytest.raises(HeadError, match="another process is at this very search"):
        search(cache, workspace=tmp_path, **options)
    search(cache, workspace=tmp_path, **options)
    assert not list((tmp_path / "runs").glob(".search-*"))


@pytest.mark.slow
def test_a_budget_ends_the_search_with_what_there_is(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipeline.stages.learn.brackets as module

    ticks = itertools.count()  # a second has passed whenever the clock is looked at
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    found = search(cache, space="mlp", trials=3000, epochs=30, budget=5.0, evaluate=False, workspace=tmp_path)
    assert 1 <= len(trials_of(found.run)) < 3000


def test_brackets_that_a_budget_left_time_for_are_not_done_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: Any
) -> None:
    import pipeline.stages.learn.brackets as module

    monkeypatch.setattr(module, "BRACKET", 3)
    options: Quick = {"space": "mlp", "trials": 9, "epochs": 3, "evaluate": False, "workspace": tmp_path}
    bracket, begun = module._bracket, []

    def counted(*arguments: Any) -> Any:
        begun.append(1)
        return bracket(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(module, "_bracket", counted)
        # Time is over as soon as the second bracket is at work.
        patched.setattr(module, "time", SimpleNamespace(monotonic=lambda: 100.0 if len(begun) > 1 else 0.0))
        first = search(cache, budget=50.0, watch=listener, **options)
    assert 3 <= len(trials_of(first.run)) < 9
    assert "heads were tried to the end: the same command goes on from there" in listener.text
    second = search(cache, watch=listener, **options)
    assert "resuming: 1 of 3 brackets are done" in listener.text
    assert len(trials_of(second.run)) == 9
    assert not list((tmp_path / "runs").glob(".search-*"))


def test_a_budget_over_before_the_first_epoch_is_named(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(HeadError, match="give a longer budget"):
        search(cache, space="mlp", trials=3, budget=1e-9, workspace=tmp_path)


@pytest.mark.parametrize("batch_size", [256, 4])  # one batch an epoch: diverged after the first one; many: within it
def test_only_diverging_heads_are_an_error(cache: Path, tmp_path: Path, batch_size: int) -> None:
    space = tmp_path / "space.toml"
    space.write_text(f'lr = [1e30]\nsolver = ["sgd"]\nbatch_size = [{batch_size}]\n')
    with pytest.raises(HeadError, match="every head diverged"):
        search(cache, space=str(space), trials=1, epochs=3, workspace=tmp_path)


def test_a_diverging_head_is_ranked_last_and_says_so(cache: Path, tmp_path: Path, listener: Any) -> None:
    space = tmp_path / "space.toml"
    space.write_text('lr = [1e30, 0.01]\nsolver = ["sgd"]\nbatch_size = [4]\n')
    found = search(cache, space=str(space), trials=2, epochs=3, evaluate=False, workspace=tmp_path, watch=listener)
    assert [(t["lr"], t["note"]) for t in trials_of(found.run)] == [(0.01, ""), (1e30, "diverged")]
    assert "diverged" in listener.text


def test_minibatch_trials_follow_from_the_seed(cache: Path, tmp_path: Path) -> None:
    options: Quick = {"space": "mlp", "trials": 4, "epochs": 2, "evaluate": False, "workspace": tmp_path}
    trials = [trials_of(search(cache, seed=seed, **options).run) for seed in (1, 1, 2)]
    assert trials[0] == trials[1]
    assert {t["lr"] for t in trials[0]}.isdisjoint(t["lr"] for t in trials[2])


def test_the_chosen_minibatch_head_is_the_solo_head_of_its_settings(cache: Path, tmp_path: Path) -> None:
    """Refitted, on train + val for all epochs; otherwise that of train, its best epoch on val."""
    from pipeline.heads.minibatch.config import MinibatchConfig
    from pipeline.heads.minibatch.fit import fit_minibatch

    fitted, val = (load_rows(open_cache(cache), split) for split in ("train", "val"))
    X, y = np.concatenate([fitted.X, val.X]), np.concatenate([fitted.y, val.y])
    for refit, learned, watched in (
        (True, (X, y), None),
        (False, (fitted.X, fitted.y), Split(val.X, val.y)),
    ):
        found = search(cache, space="mlp", trials=3, epochs=3, refit=refit, evaluate=False, workspace=tmp_path)
        config = MinibatchConfig(**trials_of(found.run)[0]["config"])
        solo = fit_minibatch(Problem(*learned, 3, val=watched), [config])[0]
        for name, tensor in load_head(found.run).tensors.items():
            np.testing.assert_array_equal(tensor, solo.tensors[name])
