"""The adaptive search: one journal, any number of processes, goes on where it was stopped."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import search
from pipeline.base.errors import ConfigError, HeadError
from pipeline.cli.main import main

optuna = pytest.importorskip("optuna", reason="the extra `optuna` is not installed")

SMALL = """
kind = ["linear", "mlp"]
width = { low = 4, high = 16 }
lr = { low = 0.001, high = 0.1, log = true }
"""


@pytest.fixture
def cache(workshop: SimpleNamespace) -> Path:
    found: Path = workshop.cache.cache
    return found


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "space.toml").write_text(SMALL)
    space = str(tmp_path / "space.toml")
    return {"space": space, "trials": 4, "epochs": 3, "evaluate": False, "workspace": tmp_path}


def trials_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]


def study_of(journal: Path) -> Any:
    """The only study of a journal, read by Optuna itself."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
        return optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(journal))))


def states_of(journal: Path) -> list[str]:
    return [t.state.name for t in study_of(journal).get_trials(deepcopy=False)]


def test_a_search_alone_tries_the_same_again(cache: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """Also past the ten trials that are drawn before the sampler has learned anything."""
    options = {**options, "trials": 12, "epochs": 1}
    first, second = (search(cache, optuna=tmp_path / name, **options).run for name in ("a.log", "b.log"))
    assert trials_of(first) == trials_of(second)
    assert len(trials_of(first)) == 12
    assert all(4 <= t["width"] <= 16 and 0.001 <= t["lr"] <= 0.1 for t in trials_of(first))
    assert len({t["lr"] for t in trials_of(first)}) == 12
    other = search(cache, optuna=tmp_path / "c.log", seed=1, **{**options, "trials": 2}).run
    assert {t["lr"] for t in trials_of(other)}.isdisjoint(t["lr"] for t in trials_of(first))


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
def test_the_best_trial_of_the_journal_is_the_first_of_the_ranking(
    cache: Path, tmp_path: Path, options: dict[str, Any], metric: str
) -> None:
    found = search(cache, optuna=tmp_path / "j.log", metric=metric, **options)
    assert study_of(tmp_path / "j.log").best_value == trials_of(found.run)[0]["val"][metric]


def test_poor_trials_are_given_up_early(cache: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    options = {**options, "trials": 8, "epochs": 9}
    found = search(cache, optuna=tmp_path / "j.log", metric="log_loss", **options)
    states, epochs = states_of(tmp_path / "j.log"), [t["epochs"] for t in trials_of(found.run)]
    assert states[:5] == ["COMPLETE"] * 5  # nothing to compare with yet
    assert states.count("PRUNED") == sum(n < 9 for n in epochs) > 0
    assert trials_of(found.run)[0]["epochs"] == 9


def test_a_stopped_search_goes_on_with_what_its_journal_holds(
    cache: Path, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, listener: Any
) -> None:
    import pipeline.stages.learn.adaptive as module

    fit, done = module._fit, []

    def stopped(*arguments: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return fit(*arguments)

    monkeypatch.setattr(module, "_fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        search(cache, optuna=tmp_path / "j.log", **options)
    monkeypatch.setattr(module, "_fit", fit)
    found = search(cache, optuna=tmp_path / "j.log", watch=listener, **options)
    assert "the journal holds 2 finished trials" in listener.text
    assert states_of(tmp_path / "j.log") == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert len(trials_of(found.run)) == 4


def test_more_trials_and_a_space_file_elsewhere_go_on_with_the_same_search(
    cache: Path, tmp_path: Path, options: dict[str, Any], listener: Any
) -> None:
    first = search(cache, optuna=tmp_path / "j.log", **options)
    (tmp_path / "copy.toml").write_text(SMALL)
    more = {**options, "space": str(tmp_path / "copy.toml"), "trials": 5, "refit": False}
    second = search(cache, optuna=tmp_path / "j.log", watch=listener, **more)
    assert "the journal holds 4 finished trials" in listener.text
    before = {json.dumps(t) for t in trials_of(first.run)}
    assert len(before) == 4 and before < {json.dumps(t) for t in trials_of(second.run)}


def test_another_metric_or_space_is_another_search_in_the_same_journal(
    cache: Path, tmp_path: Path, options: dict[str, Any], listener: Any
) -> None:
    options = {**options, "trials": 1}
    search(cache, optuna=tmp_path / "j.log", **options)
    search(cache, optuna=tmp_path / "j.log", metric="accuracy", watch=listener, **options)
    (tmp_path / "space.toml").write_text("lr = [0.01, 0.02]\n")
    search(cache, optuna=tmp_path / "j.log", watch=listener, **options)
    assert "the journal holds" not in listener.text


def test_a_trial_that_the_budget_cuts_short_counts_now_but_not_as_finished(
    cache: Path, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipeline.stages.learn.adaptive as module

    seconds = itertools.count()
    with monkeypatch.context() as patch:  # a second passes at each look: at the start, for each trial, for each epoch
        patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
        found = search(cache, optuna=tmp_path / "j.log", budget=3.0, **options)
    assert [t["epochs"] for t in trials_of(found.run)] == [1]
    assert states_of(tmp_path / "j.log") == ["FAIL"]
    again = search(cache, optuna=tmp_path / "j.log", **options)
    assert [t["epochs"] for t in trials_of(again.run)] == [3, 3, 3, 3]


def test_only_diverging_heads_are_an_error(cache: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "space.toml").write_text('lr = [1e30]\nsolver = ["sgd"]\nbatch_size = [4]\n')
    with pytest.raises(HeadError, match="every head diverged"):
        search(cache, optuna=tmp_path / "j.log", **{**options, "trials": 1})
    assert states_of(tmp_path / "j.log") == ["PRUNED"]


def searching(words: list[str]) -> None:
    """One search in a process of its own."""
    sys.exit(main(words))


@pytest.mark.slow
def test_two_processes_share_one_search(cache: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    words = ["search", str(cache), "--space", options["space"], "--trials", "6", "--epochs", "2", "--no-evaluate"]
    words += ["--optuna", str(tmp_path / "j.log"), "--quiet", "--workspace"]
    server = multiprocessing.get_context("forkserver")  # with torch in it (tests/conftest.py)
    roots = [tmp_path / f"root{i}" for i in range(2)]
    running = [server.Process(target=searching, args=([*words, str(root)],)) for root in roots]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout=120)
    assert [process.exitcode for process in running] == [0, 0]
    results = [json.loads((run / "metrics.json").read_text()) for root in roots for run in (root / "runs").glob("0*")]
    # The last trials may be begun by both at once; none is lost, none is counted twice, and none is tried twice.
    assert len(results) == 2
    assert all(6 <= r["trials"] <= 7 for r in results)
    tried = [t.params["lr"] for t in study_of(tmp_path / "j.log").get_trials(deepcopy=False)]
    assert len(set(tried)) == len(tried) == max(r["trials"] for r in results)


def test_a_journal_that_cannot_be_is_one_line(cache: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cannot be written.*give a file"):
        search(cache, optuna=tmp_path, **options)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="pipe' cannot be written .it is no file.: give a file"):
        search(cache, optuna=tmp_path / "pipe", **options)
    for text in ("[" * 100_000 + "\n", "notes\nof mine\n", '{"loss": 0.5}\n{"loss": 0.4}\n', "\xff\xfe\n\n"):
        (tmp_path / "notes.txt").write_text(text)
        with pytest.raises(ConfigError, match="notes.txt' is no journal of Optuna.*give a new file") as caught:
            search(cache, optuna=tmp_path / "notes.txt", **options)
        assert "\n" not in str(caught.value)
        assert (tmp_path / "notes.txt").read_text() == text


def test_without_optuna_the_extra_is_named(
    cache: Path, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install optuna"):
        search(cache, optuna=tmp_path / "a.log", **options)
