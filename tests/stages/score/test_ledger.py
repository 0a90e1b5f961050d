"""Every look at test rows is counted by what the rows are, before it is taken, and stays counted."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import baseline, compare, evaluate, extract, finetune, open_cache, search, train
from pipeline.base import files
from pipeline.base.errors import HeadError
from pipeline.base.workspace import Workspace
from pipeline.stages.score import answers, ledger
from pipeline.stages.score import evaluate as scoring

Quick = dict[str, Any]


@pytest.fixture
def cache(workshop: SimpleNamespace) -> Path:
    found: Path = workshop.cache.cache
    return found


def head(cache: Path, root: Path, C: float = 0.01) -> Path:
    run: Path = train(cache, C=C, workspace=root).run
    return run


def lines(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "tested.jsonl").read_text().splitlines()]


def test_each_run_scored_on_the_same_rows_is_counted_and_told_which_it_is(
    cache: Path, tmp_path: Path, listener: Any
) -> None:
    runs = [head(cache, tmp_path, C) for C in (0.01, 0.1)]
    found = [evaluate(run, workspace=tmp_path, watch=listener) for run in runs]
    assert [r.scored_before for r in found] == [0, 1]
    assert [json.loads((run / "evaluation.json").read_text())["scored_before"] for run in runs] == [0, 1]
    first, second = (line for line in listener.text.splitlines() if "scored on these" in line)
    assert first == "1st run scored on these 9 test rows"
    assert second.startswith("2nd run scored on these 9 test rows: ") and "optimistic" in second
    assert [(line["run"], line["rows"]) for line in lines(tmp_path)] == [(run.name, 9) for run in runs]
    assert len({line["content"] for line in lines(tmp_path)}) == 1


def test_a_deleted_run_stays_counted_though_the_next_has_its_number_and_its_weights(
    cache: Path, tmp_path: Path
) -> None:
    run = head(cache, tmp_path)
    evaluate(run, workspace=tmp_path)
    shutil.rmtree(tmp_path / "runs")
    assert head(cache, tmp_path) == run
    assert evaluate(run, workspace=tmp_path).scored_before == 1


def test_a_run_that_is_asked_again_gives_its_count_and_is_not_counted_again(
    cache: Path, tmp_path: Path, listener: Any
) -> None:
    first, second = (head(cache, tmp_path, C) for C in (0.01, 0.1))
    for run in (first, second, second, first):
        evaluate(run, workspace=tmp_path, watch=listener)
    assert len(lines(tmp_path)) == 2
    assert evaluate(second, workspace=tmp_path).scored_before == 1
    assert f"{second.name} was scored on" in listener.text and "as the 2nd run on these rows" in listener.text


def test_the_look_is_on_record_before_a_row_is_read_and_after_a_kill_the_run_finds_its_line(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, load_rows = head(cache, tmp_path), answers.load_rows

    def killed(cache: Any, split: str) -> Any:
        assert split == "test" and len(lines(tmp_path)) == 1
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(answers, "load_rows", killed)
        evaluate(run, workspace=tmp_path)
    assert not (run / "evaluation.json").exists() and load_rows is answers.load_rows
    assert evaluate(run, workspace=tmp_path).scored_before == 0
    assert len(lines(tmp_path)) == 1
    assert evaluate(head(cache, tmp_path), workspace=tmp_path).scored_before == 1


@pytest.mark.parametrize("kept", [1, 40, -1], ids=["a brace", "half", "all but the line's end"])
def test_a_line_that_a_kill_has_cut_neither_counts_nor_takes_the_next_with_it(
    cache: Path, tmp_path: Path, kept: int
) -> None:
    evaluate(head(cache, tmp_path), workspace=tmp_path)
    path = tmp_path / "tested.jsonl"
    other = path.read_text().replace(lines(tmp_path)[0]["mark"], "another run's")
    path.write_text(path.read_text() + other[:kept])
    whole = 1 + (kept == -1)
    for before in (whole, whole + 1):
        assert evaluate(head(cache, tmp_path), workspace=tmp_path).scored_before == before


def test_lines_that_nobody_can_read_are_passed_over(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "tested.jsonl").write_bytes(b'\xff\xfe\n[1]\n"a"\n{"content": 3}\n\n{}\n')
    assert [evaluate(head(cache, tmp_path), workspace=tmp_path).scored_before for _ in range(2)] == [0, 1]


def test_the_same_images_are_the_same_rows_through_another_trunk_elsewhere_and_renamed(
    photos: Path, cache: Path, tmp_path: Path, quick: Quick
) -> None:
    evaluate(head(cache, tmp_path), workspace=tmp_path)
    moved = tmp_path / "moved"
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        target = moved / path.parent.name / f"{100 - number}.png"  # in the opposite order
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    other = extract(moved, workspace=tmp_path, **{**quick, "image_size": 48}).cache
    assert ledger.content_of(open_cache(other)) == ledger.content_of(open_cache(cache))
    assert open_cache(other).content != open_cache(cache).content
    assert evaluate(head(other, tmp_path), workspace=tmp_path).scored_before == 1


def test_the_content_is_the_images_with_their_class_names_and_nothing_else(cache: Path) -> None:
    found = open_cache(cache)
    pairs = [(found.digests[row].tobytes(), found.classes[found.labels[row]]) for row in found.rows("test")]

    def content(pairs: list[tuple[bytes, str]], order: tuple[str, ...] = ("ant", "bee", "cat", "wasp")) -> str:
        made: Any = SimpleNamespace(
            rows=lambda _: np.arange(len(pairs)),
            labels=np.array([order.index(name) for _, name in pairs]),
            digests=np.frombuffer(b"".join(digest for digest, _ in pairs), np.uint8).reshape(-1, 32),
            classes=order,
        )
        return ledger.content_of(made)

    assert content(pairs) == content(pairs[::-1], ("cat", "bee", "wasp", "ant")) == ledger.content_of(found)
    others = {
        "one less": pairs[1:],
        "one twice": [*pairs, pairs[0]],
        "another image": [(bytes(32), pairs[0][1]), *pairs[1:]],
        "another class": [(pairs[0][0], "cat"), *pairs[1:]],
        "another name": [(digest, name.replace("ant", "wasp")) for digest, name in pairs],
    }
    assert len({content(rows) for rows in [pairs, *others.values()]}) == 1 + len(others)


def _counted(cache: Path, root: Path, who: str) -> list[int]:
    """Twenty runs, counted beside others."""
    found = open_cache(cache)
    return [ledger.count(found, ledger.Scorer("run", f"{who} {i}"), Workspace(root)) for i in range(20)]


@pytest.mark.parametrize("kind", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_of_two_that_count_at_once_neither_loses_a_line(cache: Path, tmp_path: Path, kind: str) -> None:
    """Two threads have a lock each, as two processes have."""
    processes = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver"))
    with ThreadPoolExecutor(2) if kind == "threads" else processes as pool:
        counts = list(pool.map(_counted, [cache] * 2, [tmp_path] * 2, ["one", "other"]))
    assert sorted(counts[0] + counts[1]) == list(range(40))
    assert len({line["mark"] for line in lines(tmp_path)}) == len(lines(tmp_path)) == 40


def test_a_ledger_that_another_process_holds_is_one_line_and_nothing_is_scored(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = head(cache, tmp_path)
    monkeypatch.setattr(ledger, "PATIENCE", 0.05)
    with (
        files.locked(tmp_path / ".tested.jsonl.lock"),
        pytest.raises(HeadError, match="another process.*tested.jsonl") as e,
    ):
        evaluate(run, workspace=tmp_path)
    assert "\n" not in str(e.value) and "no test row has been read" in str(e.value)
    assert not list(run.glob("evaluation*")) and not (tmp_path / "tested.jsonl").exists()
    assert evaluate(run, workspace=tmp_path).scored_before == 0


def test_a_ledger_that_cannot_be_written_is_one_line_and_nothing_is_scored(cache: Path, tmp_path: Path) -> None:
    run = head(cache, tmp_path)
    (tmp_path / "tested.jsonl").mkdir()
    with pytest.raises(HeadError, match="tested.jsonl, where looks at test rows are counted, cannot be read"):
        evaluate(run, workspace=tmp_path)
    with pytest.raises(HeadError, match="tested.jsonl, where looks at test rows are counted, cannot be read"):
        baseline(cache, names=("majority",), test=True, workspace=tmp_path)
    assert not list(run.glob("evaluation*"))
    assert [p.name for p in (tmp_path / "runs").glob("*-*")] == [run.name]


def test_a_record_from_before_there_was_a_count_is_read_and_says_nothing_of_it(
    cache: Path, tmp_path: Path, listener: Any
) -> None:
    run = head(cache, tmp_path)
    evaluate(run, workspace=tmp_path)
    record = json.loads((run / "evaluation.json").read_text())
    del record["scored_before"]
    (run / "evaluation.json").write_text(json.dumps(record))
    found = evaluate(run, workspace=tmp_path, watch=listener)
    assert found.scored_before is None and found.test == record["test"]
    assert "these rows" not in listener.text


def test_of_another_cache_test_rows_are_counted_and_no_others(
    photos: Path, workshop: SimpleNamespace, tmp_path: Path, quick: Quick
) -> None:
    run = head(workshop.cache.cache, tmp_path)
    options = {**quick, "dtype": "float32", "workspace": tmp_path}
    other = str(extract(photos, split_seed=1, out=tmp_path / "other.h5", **options).cache)
    for split in ("val", "train"):
        assert evaluate(run, data=other, split=split, workspace=tmp_path).scored_before is None
    assert not (tmp_path / "tested.jsonl").exists()
    assert [evaluate(run, data=other, split=split, workspace=tmp_path).scored_before for split in ("all", None)] == [
        0,
        0,
    ]
    (line,) = lines(tmp_path)
    assert line["content"] == ledger.content_of(open_cache(other))
    assert evaluate(head(other, tmp_path), workspace=tmp_path).scored_before == 1


def test_the_test_rows_of_a_cache_that_holds_nothing_else_are_counted(
    photos: Path, workshop: SimpleNamespace, tmp_path: Path, quick: Quick
) -> None:
    shutil.copytree(photos, tmp_path / "set" / "test")
    other = str(extract(tmp_path / "set", workspace=tmp_path, **{**quick, "dtype": "float32"}).cache)
    found = evaluate(head(workshop.cache.cache, tmp_path), data=other, workspace=tmp_path)
    assert (found.split, found.test["n"], found.scored_before) == ("all", 60, 0)


def test_baselines_and_few_shot_heads_are_one_scoring_each(cache: Path, tmp_path: Path) -> None:
    few = search(cache, shots=(1, 2), draws=2, Cs=(0.01, 1.0), workspace=tmp_path)
    plain = baseline(cache, names=("majority", "knn10"), test=True, workspace=tmp_path)
    assert (few.scored_before, plain.scored_before) == (0, 1)
    assert [json.loads((r.run / "metrics.json").read_text())["scored_before"] for r in (few, plain)] == [0, 1]
    assert [line["run"] for line in lines(tmp_path)] == [few.run.name, plain.run.name]
    shutil.rmtree(few.run)
    shutil.rmtree(plain.run)
    again = baseline(cache, names=("majority",), test=True, workspace=tmp_path)
    assert again.run.name == few.run.name.replace("fewshot", "baseline")
    assert again.scored_before == 2


def test_the_two_sides_of_a_fine_tuning_and_of_a_comparison_are_counted_once_each(
    workshop: SimpleNamespace, tmp_path: Path
) -> None:
    for name in ("features", "weights"):
        shutil.copytree(workshop.root / name, tmp_path / name)
    run = head(tmp_path / "features" / workshop.cache.cache.name, tmp_path)
    tuned = finetune(run, epochs=1, train="head", workspace=tmp_path)
    compare(run, tuned.run, workspace=tmp_path)
    marks = [line["mark"] for line in lines(tmp_path)]
    assert len(set(marks)) == len(marks) == 2
    # As the run that it has become, the network is known by the same mark.
    for path in tuned.run.glob("evaluation*"):
        path.unlink()
    assert evaluate(tuned.run, workspace=tmp_path).scored_before == 1
    assert len(lines(tmp_path)) == 2


def test_a_network_that_is_no_run_yet_finds_its_line_after_a_kill_and_another_one_does_not(
    cache: Path, tmp_path: Path
) -> None:
    found, desk, folder = open_cache(cache), Workspace(tmp_path), tmp_path / "chosen"
    folder.mkdir()

    def killed(_: str) -> Any:
        raise KeyboardInterrupt

    for weights, counted in ((b"one", 1), (b"one", 1), (b"another", 2)):
        if not (folder / "model.safetensors").exists() or (folder / "model.safetensors").read_bytes() != weights:
            (folder / "model.safetensors").write_bytes(weights)
        with pytest.raises(KeyboardInterrupt):
            scoring.evaluated_network(folder, found, killed, 1.0, desk)
        assert len(lines(tmp_path)) == counted


def test_a_run_without_a_head_is_refused_and_not_counted(cache: Path, tmp_path: Path) -> None:
    few = search(cache, shots=(1,), draws=1, Cs=(0.01,), evaluate=False, workspace=tmp_path)
    plain = baseline(cache, names=("majority",), workspace=tmp_path)
    for run in (few.run, plain.run):
        with pytest.raises(HeadError, match="holds no head"):
            evaluate(run, workspace=tmp_path)
    assert not (tmp_path / "tested.jsonl").exists()
