"""The adaptive search: one journal, any number of processes, goes on where it was stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import search
from pipeline.errors import ConfigError

pytest.importorskip("optuna", reason="the extra `optuna` is not installed")

SMALL = """
kind = ["linear", "mlp"]
width = { low = 4, high = 16 }
lr = { low = 0.001, high = 0.1, log = true }
"""


@pytest.fixture
def options(tmp_path: Path, workshop: SimpleNamespace) -> dict[str, Any]:
    (tmp_path / "space.toml").write_text(SMALL)
    return {"space": str(tmp_path / "space.toml"), "trials": 4, "epochs": 3, "evaluate": False}


def trials_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]


def test_a_search_alone_tries_the_same_again_and_goes_on_from_its_journal(
    workshop: SimpleNamespace, tmp_path: Path, options: dict[str, Any], listener: Any
) -> None:
    cache = workshop.cache.cache
    first = search(cache, optuna=tmp_path / "a.log", cache_root=tmp_path, **options)
    second = search(cache, optuna=tmp_path / "b.log", cache_root=tmp_path, **options)
    assert trials_of(first.run) == trials_of(second.run)
    assert len(trials_of(first.run)) == 4
    assert all(4 <= t["width"] <= 16 and 0.001 <= t["lr"] <= 0.1 for t in trials_of(first.run))
    third = search(cache, optuna=tmp_path / "a.log", cache_root=tmp_path, watch=listener, **options)
    assert "the journal holds 4 finished trials" in listener.text
    assert (third.run / "head.safetensors").read_bytes() == (first.run / "head.safetensors").read_bytes()


def test_two_processes_share_one_search(workshop: SimpleNamespace, tmp_path: Path, options: dict[str, Any]) -> None:
    words = [sys.executable, "-m", "pipeline", "search", str(workshop.cache.cache), "--space", options["space"]]
    words += ["--trials", "6", "--epochs", "2", "--no-evaluate", "--optuna", str(tmp_path / "j.log"), "--json"]
    running = [
        subprocess.Popen([*words, "--cache-root", str(tmp_path / f"root{i}")], stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    results = [json.loads(p.communicate(timeout=120)[0]) for p in running]
    assert all(p.returncode == 0 for p in running)
    # The last trials may be begun by both at once; none is lost and none is counted twice.
    assert all(6 <= r["trials"] <= 7 for r in results)


def test_what_cannot_be_is_one_line(workshop: SimpleNamespace, tmp_path: Path, options: dict[str, Any]) -> None:
    cache = workshop.cache.cache
    with pytest.raises(ConfigError, match="--optuna is for minibatch heads"):
        search(cache, optuna=tmp_path / "a.log", cache_root=tmp_path)
    with pytest.raises(ConfigError, match="cannot be written"):
        search(cache, optuna=tmp_path, cache_root=tmp_path, **options)


def test_without_optuna_the_extra_is_named(
    workshop: SimpleNamespace, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'pipeline\[optuna\]'"):
        search(workshop.cache.cache, optuna=tmp_path / "a.log", cache_root=tmp_path, **options)
