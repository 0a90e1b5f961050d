"""`pipeline list`: what there is, noted, renamed, deleted."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import baseline, catalog, evaluate, extract, open_cache, predict, search, train
from pipeline.base.errors import CacheError, ConfigError, HeadError, PipelineError
from pipeline.base.watch import Watch
from pipeline.cli.main import main
from pipeline.stages.upkeep.catalog import _run_row
from pipeline.stages.upkeep.words import run_table
from pipeline.store import partial_path, writing_lock
from tests.conftest import QUICK, SMALL


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two caches and three runs: a train with a setting, a search, and one that has been scored."""
    root = tmp_path_factory.mktemp("made")
    extract(photos, **QUICK, name="one", workspace=root)
    extract(photos, **{**QUICK, "image_size": 40}, name="two", views=1, workspace=root)
    train("one", C=0.25, workspace=root)
    search("two", workspace=root)
    train("one", solver="adamw", epochs=2, workspace=root)
    evaluate(3, workspace=root)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    place = tmp_path / "ws"
    shutil.copytree(made, place)
    return place


class Yes(Watch):
    def __init__(self, answer: bool = True) -> None:
        self.answer, self.asked, self.warned = answer, [], []

    def confirm(self, question: str) -> bool:
        self.asked.append(question)
        return self.answer

    def warn(self, text: str) -> None:
        self.warned.append(text)


def names(root: Path, **options: Any) -> list[str]:
    return [row["run"].rsplit("/", 1)[1] for row in catalog(**options, workspace=root).to_json()["runs"]]


def tree(root: Path) -> set[str]:
    """All files but locks."""
    return {str(p.relative_to(root)) for p in root.rglob("*") if not p.name.endswith(".lock") and p.is_file()}


def test_runs_are_listed_with_what_their_own_records_say(made: Path) -> None:
    first, second, third = catalog(workspace=made).rows
    assert [(r.number, r.stage, r.data) for r in (first, second, third)] == [
        (1, "train", "one"), (2, "search", "two"), (3, "train", "one"),
    ]  # fmt: skip
    assert first.settings == {"C": 0.25}
    assert second.settings == {}
    assert third.settings == {"solver": "adamw", "epochs": 2}
    for row in (first, second, third):
        metrics = json.loads((row.run / "metrics.json").read_text())
        assert (row.val, row.seconds, row.val_chosen_from) == (
            metrics["val"], metrics["seconds"], metrics["chosen_from"],
        )  # fmt: skip
        assert row.when == json.loads((row.run / "config.json").read_text())["started"]
    assert first.test is None
    scored = json.loads((third.run / "evaluation.json").read_text())
    assert (third.test, third.test_rows, third.scored_before) == (scored["test"]["accuracy"], scored["test"]["n"], 1)


def test_caches_are_listed_without_their_views(made: Path, photos: Path) -> None:
    one, two = catalog(caches=True, workspace=made).rows
    cache = open_cache("two", workspace=made)
    assert (two.name, two.source, two.trunk, two.rows, two.classes) == ("two", str(photos), SMALL, 60, 3)
    assert two.splits == cache.counts()
    assert two.size >= cache.path.stat().st_size + cache.path.with_name("two.view1.h5").stat().st_size
    assert (one.runs, two.runs) == (("0001-train-one", "0003-train-one"), ("0002-search-two",))


def test_they_are_sorted_by_a_column_but_not_by_test(made: Path) -> None:
    by_val = [row.val for row in catalog(sort="val", workspace=made).rows]
    assert by_val == sorted(by_val, reverse=True)
    assert [row.number for row in catalog(sort="stage", workspace=made).rows] == [2, 1, 3]
    assert [row.name for row in catalog(caches=True, sort="size", workspace=made).rows] == ["one", "two"]
    with pytest.raises(ConfigError, match="sort='test': choose from number, stage, data, val, seconds, when, note"):
        catalog(sort="test", workspace=made)


def test_csv_and_json_say_the_same(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--csv", "--workspace", str(made)]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert main(["list", "--json", "--workspace", str(made)]) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [line["run"] for line in lines] == [row["run"] for row in rows]
    assert [json.loads(line["settings"]) for line in lines] == [row["settings"] for row in rows]
    assert [float(line["val"]) for line in lines] == [row["val"] for row in rows]


@pytest.mark.parametrize("width", ["60", "100"])
def test_the_table_has_no_line_longer_than_the_terminal_and_no_cut_number(
    made: Path, width: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    for caches in ([], ["--caches"]):
        assert main(["list", *caches, "--workspace", str(made)]) == 0
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= int(width)
    row = catalog(workspace=made).rows[2]
    main(["list", "--workspace", str(made)])
    assert f"{100 * row.test:.1f} %" in capsys.readouterr().out


def test_a_note_is_kept_shown_and_removed(root: Path) -> None:
    before = tree(root)
    catalog("1", note="the good one\nbut slow", workspace=root)
    catalog("one", caches=True, note="mine", workspace=root)
    assert [row.note for row in catalog(workspace=root).rows] == ["the good one\nbut slow", "", ""]
    assert [row.note for row in catalog(caches=True, workspace=root).rows] == ["mine", ""]
    assert catalog(sort="note", workspace=root).rows[0].number == 1
    catalog("1", note="", workspace=root)
    catalog("one", caches=True, note="", workspace=root)
    assert tree(root) == before


def test_a_renamed_run_is_the_same_run(root: Path, photos: Path) -> None:
    before = evaluate(3, workspace=root)
    assert catalog("3", rename="better", workspace=root).rows[0].run == root / "runs" / "0003-train-better"
    after = evaluate("0003-train-better", workspace=root)
    assert after.test == before.test
    ledger = (root / "tested.jsonl").read_bytes()
    assert evaluate(3, workspace=root).scored == before.scored
    assert (root / "tested.jsonl").read_bytes() == ledger
    assert len(predict(3, photos / "ant" / "00.png", workspace=root)) == 1
    catalog("1", rename="same", workspace=root)
    with pytest.raises(ConfigError, match="give letters"):
        catalog("1", rename="a/b", workspace=root)
    with pytest.raises(HeadError, match=r"rename it by hand"):
        shutil.copytree(root / "runs" / "0001-train-same", root / "odd")
        catalog(root / "odd", rename="x", workspace=root)


def test_a_renamed_cache_keeps_its_views_and_its_runs(root: Path) -> None:
    features = open_cache("two", workspace=root).features.tobytes()
    catalog("two", caches=True, note="words", workspace=root)
    (listed,) = catalog("two", caches=True, rename="new", workspace=root).rows
    assert (listed.name, listed.note, listed.runs) == ("new", "words", ("0002-search-two",))
    assert {p.name for p in (root / "features").glob("[!.]*")} >= {"new.h5", "new.view1.h5", "new.note.txt"}
    assert not list((root / "features").glob("two*"))
    assert open_cache("new", workspace=root).features.tobytes() == features
    assert evaluate(2, workspace=root).test["n"] > 0
    train("new", views=1, C=1, workspace=root)


def test_a_cache_is_not_renamed_over_another_or_while_it_is_written(root: Path) -> None:
    before = tree(root)
    with pytest.raises(CacheError, match="one.h5 is there"):
        catalog("two", caches=True, rename="one", workspace=root)
    path = root / "features" / "two.h5"
    with writing_lock(path), pytest.raises(CacheError, match="is being written"):
        catalog("two", caches=True, delete=True, yes=True, workspace=root)
    partial_path(path).write_bytes(b"begun")
    with pytest.raises(CacheError, match="finish or remove it"):
        catalog("two", caches=True, rename="new", workspace=root)
    partial_path(path).unlink()
    assert tree(root) == before


def test_nothing_is_deleted_without_a_yes(root: Path) -> None:
    before, no = tree(root), Yes(False)
    with pytest.raises(HeadError, match=r"nothing was deleted \(0001-train-one, 0002-search-two\).*yes=True"):
        catalog(["1", "2"], delete=True, workspace=root, watch=no)
    where = re.escape(str(root / "runs"))
    assert re.fullmatch(rf"delete 0001-train-one, 0002-search-two in {where} \([\d.]+ [KM]iB\)\?", no.asked[0])
    with pytest.raises(CacheError, match="nothing was deleted"):
        catalog("one", caches=True, delete=True, workspace=root)
    assert tree(root) == before


def test_what_is_deleted_is_gone_and_its_scores_stay_counted(root: Path) -> None:
    ledger, yes = (root / "tested.jsonl").read_bytes(), Yes()
    catalog("3", delete=True, workspace=root, watch=yes)
    assert names(root) == ["0001-train-one", "0002-search-two"]
    assert (root / "tested.jsonl").read_bytes() == ledger
    catalog("two", caches=True, delete=True, workspace=root, watch=yes)
    assert "1 run learned from two.h5 (0002-search-two)" in yes.warned[0]
    assert not [p for p in tree(root / "features") if p.startswith("two")]
    catalog(["1", "2"], delete=True, yes=True, workspace=root)
    assert names(root) == []
    assert not list((root / "runs").glob("*.draft")) + list((root / "runs").glob(".*.draft"))


def test_nothing_but_caches_and_runs_is_renamed_noted_or_deleted(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders of photographs, other files, folders with somebody else's config.json, and the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("two", "precious"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo.jpg").write_bytes(b"mine")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["ResNet"]}')
    (tmp_path / "table.csv").write_text("path,label\n")
    (tmp_path / "other.h5").write_bytes(b"no cache")
    before = {str(p): p.is_file() and p.read_bytes() for p in tmp_path.rglob("*") if root not in p.parents}
    for change in ({"delete": True, "yes": True}, {"rename": "foo"}, {"note": "x"}):
        for name in ("precious", str(tmp_path / "precious"), "./two", "table.csv", "./other.h5", ".", "two/photo.jpg"):
            with pytest.raises(CacheError):
                catalog(name, caches=True, workspace=root, **change)
        for name in ("precious", "model", str(tmp_path / "model"), "."):
            with pytest.raises(HeadError):
                catalog(name, workspace=root, **change)
    after = {str(p): p.is_file() and p.read_bytes() for p in tmp_path.rglob("*") if root not in p.parents}
    assert after == before
    assert open_cache("two", workspace=root).path == root / "features" / "two.h5"  # not the folder of that name
    catalog("two", caches=True, delete=True, yes=True, workspace=root)
    assert (tmp_path / "two" / "photo.jpg").exists() and not (root / "features" / "two.h5").exists()


def test_a_deleted_runs_number_is_not_given_again(root: Path) -> None:
    catalog("3", delete=True, yes=True, workspace=root)
    catalog("2", delete=True, yes=True, workspace=root)
    assert train("one", C=1, workspace=root).run.name == "0004-train-one"


def test_a_renamed_run_is_found_by_its_new_name(root: Path) -> None:
    catalog("1", rename="baseline-of-may", workspace=root)
    assert evaluate("baseline-of-may", workspace=root).run == root / "runs" / "0001-train-baseline-of-may"
    with pytest.raises(HeadError, match="no run 'one'|no run 'ones'"):
        evaluate("ones", workspace=root)


def test_a_damaged_run_or_cache_is_a_row_and_can_be_deleted(root: Path) -> None:
    (root / "runs" / "0001-train-one" / "config.json").write_text("{")
    (root / "features" / "one.h5").write_bytes(b"nothing")
    assert catalog(workspace=root).rows[0].damaged
    assert catalog(caches=True, workspace=root).rows[0].damaged
    catalog("1", delete=True, yes=True, workspace=root)
    catalog("one", caches=True, delete=True, yes=True, workspace=root)
    assert names(root) == ["0002-search-two", "0003-train-one"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delete": True}, "delete without a name: say which run"),
        ({"note": "x", "caches": True}, "note without a name: say which cache"),
        ({"names": ["1", "2"], "rename": "x"}, "give one"),
        ({"names": ["1"], "rename": "x", "delete": True}, "has neither"),
        ({"yes": True}, "nothing else asks"),
        ({"names": ["9"]}, "no run '9'"),
        ({"caches": True, "names": ["nine"]}, "'nine' is no cache"),
    ],
)
def test_what_cannot_be_meant_is_one_line(made: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(PipelineError, match=words):
        catalog(**options, workspace=made)


def test_an_empty_workspace_says_what_makes_something(tmp_path: Path, listener: Any) -> None:
    assert catalog(workspace=tmp_path, watch=listener).to_json() == {"runs": []}
    assert "make one with `pipeline train`" in listener.text


def test_a_kill_between_two_files_of_a_cache_is_mended_by_the_same_command(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.store import companions

    move: Callable[[Path, Path], None] = companions.move

    def killed(source: Path, target: Path) -> None:
        if source.name == "two.h5":
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(companions, "move", killed)
    with pytest.raises(KeyboardInterrupt):
        catalog("two", caches=True, rename="new", workspace=root)
    monkeypatch.undo()
    assert (root / "features" / "new.view1.h5").exists()
    catalog("two", caches=True, rename="new", workspace=root)
    assert not list((root / "features").glob("two*"))


@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("yes\nmore\n", True), ("n\n", False), ("", False)])
def test_the_answer_may_come_from_a_pipe(
    root: Path,
    answer: str,
    gone: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert main(["list", "3", "--delete", "--workspace", str(root)]) == (0 if gone else 2)
    said = capsys.readouterr().err
    assert "0003-train-one in" in said and "[y/N]" in said
    assert ("nothing was deleted (0003-train-one): answer y when asked" in said) is not gone
    assert [run[:4] for run in names(root)] == ["0001", "0002", *([] if gone else ["0003"])]


def test_a_look_of_several_methods_at_the_test_rows_is_seen(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baseline("one", names=("majority", "ridge"), workspace=root)
    baseline("one", names=("majority", "ridge"), test=True, workspace=root)
    *_, without, looked = catalog(workspace=root).rows
    assert (without.scored_before, looked.test) == (None, None)
    assert looked.scored_before is not None
    assert main(["list", "--workspace", str(root)]) == 0
    assert "several: several methods were scored on the test rows" in capsys.readouterr().out


def test_a_fine_tunings_val_has_chosen_and_is_starred(workshop: SimpleNamespace) -> None:
    row = _run_row(workshop.tuned.run)
    assert row.val is not None and row.val_chosen_from > 1
    table = run_table([row])
    assert "optimistic" in table.caption and any(f"{100 * row.val:.1f} %*" in str(cell) for cell in table.rows[0])


def test_caches_that_differ_by_how_they_were_made_are_told_apart(photos: Path, tmp_path: Path) -> None:
    options = {**QUICK, "workspace": tmp_path}
    extract(photos, **options)
    extract(photos, decode="exact", precision="bfloat16", force_precision=True, **options)
    made = {row.made for row in catalog(caches=True, workspace=tmp_path).rows}
    assert made == {"", "bfloat16, decoded exactly"}
