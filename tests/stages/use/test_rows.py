"""`pipeline rows`: what stands in the table is what the cache holds or the run says, whatever the format."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from pipeline import extract, open_cache, rows
from pipeline.base.errors import CacheError, ConfigError
from pipeline.cli.main import main
from pipeline.heads.artifact import load_head

Quick = dict[str, Any]
Table = dict[str, Any]


def read_npz(path: Path) -> Table:
    with np.load(path, allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    assert found["id"].dtype.kind == found["class"].dtype.kind == found["split"].dtype.kind == "U"
    values = found["features"] if "features" in found else found["probabilities"]
    classes = [str(c) for c in found["class"]]
    return {"id": found["id"].tolist(), "label": found["label"].tolist(), "class": classes,
            "split": found["split"].tolist(), "values": values}  # fmt: skip


def read_csv(path: Path) -> Table:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as text:
        header, *lines = list(csv.reader(text))
    assert header[:4] == ["id", "label", "class", "split"]
    ids, labels, classes, splits = (list(c) for c in list(zip(*lines, strict=True))[:4])
    values = np.array([[float(v) for v in line[4:]] for line in lines])
    return {"id": ids, "label": [int(v or -1) for v in labels], "class": classes, "split": splits, "values": values}


def read_parquet(path: Path) -> Table:
    table = pytest.importorskip("pyarrow.parquet").read_table(path)
    names = [n for n in table.column_names if n not in ("id", "label", "class", "split")]
    columns = [table[n].to_pylist() for n in names]
    values = np.array(columns[0]) if names == ["features"] else np.array(columns).T
    labels = [-1 if v is None else v for v in table["label"].to_pylist()]
    classes = [v or "" for v in table["class"].to_pylist()]
    return {"id": table["id"].to_pylist(), "label": labels, "class": classes, "split": table["split"].to_pylist(),
            "values": values}  # fmt: skip


READERS: dict[str, Callable[[Path], Table]] = {"npz": read_npz, "csv": read_csv, "parquet": read_parquet}
FORMS = list(READERS)


def written(form: str, target: Any, tmp_path: Path, **options: Any) -> tuple[Any, Table]:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    made = rows(target, out=tmp_path / "new" / f"rows.{form}", workspace=tmp_path, **options)
    return made, READERS[form](made.file)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows at a time, and five names."""
    monkeypatch.setattr("pipeline.stages.use.rows.CHUNK_BYTES", 7 * 96 * 4)
    monkeypatch.setattr("pipeline.stages.use.tables.NAMES", 5)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("form", FORMS)
def test_a_caches_rows_are_its_features_to_the_last_bit(workshop: SimpleNamespace, tmp_path: Path, form: str) -> None:
    made, found = written(form, workshop.cache.cache, tmp_path)
    cache = open_cache(workshop.cache.cache)
    at = {item.decode(): row for row, item in enumerate(cache.ids)}
    assert sorted(found["id"]) == sorted(at) and made.rows == {"train": 42, "val": 9, "test": 9}
    places = [at[item] for item in found["id"]]
    np.testing.assert_array_equal(found["values"].astype(np.float32), np.asarray(cache.features)[places])
    assert found["label"] == cache.labels[places].tolist()
    assert found["class"] == [item.split("/")[0] for item in found["id"]]
    assert found["split"] == [("none", "train", "val", "test")[s] for s in cache.splits[places]]
    assert (made.kind, made.width, made.scored_before) == ("features", cache.features.shape[1], None)
    assert not (tmp_path / "tested.jsonl").exists()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("which", ["head", "tuned"])
def test_a_runs_rows_are_its_probabilities_by_name(
    workshop: SimpleNamespace, tmp_path: Path, form: str, which: str
) -> None:
    if which == "tuned" and form != "npz":
        pytest.skip("one format is enough")
    run = getattr(workshop, which).run
    _, found = written(form, run, tmp_path, split="val")
    cache = open_cache(workshop.cache.cache)
    val = cache.split("val")
    assert found["id"] == [item.decode() for item in val.ids] and set(found["split"]) == {"val"}
    assert found["values"].shape == (9, 3)
    np.testing.assert_allclose(found["values"].sum(axis=1), 1)
    if which == "head":
        layer = torch.nn.Linear(val.X.shape[1], 3)
        layer.load_state_dict(safetensors.torch.load_file(run / "head.safetensors"))
        with torch.inference_mode():
            logits = layer(torch.from_numpy(np.array(val.X))).double() / load_head(run).temperature
        np.testing.assert_allclose(found["values"], torch.softmax(logits, dim=1), atol=1e-5)
    else:
        assert (found["values"].argmax(axis=1) == val.y).mean() == workshop.tuned.after


def test_test_rows_of_a_run_are_left_out_unless_asked_for_and_then_counted(
    workshop: SimpleNamespace, tmp_path: Path
) -> None:
    run = shutil.copytree(workshop.head.run, tmp_path / "runs" / "0001-train-copy")
    assert rows(run, out=tmp_path / "a.csv", workspace=tmp_path).rows == {"train": 42, "val": 9}
    assert not (tmp_path / "tested.jsonl").exists()
    for number, split in enumerate((["test"], ["val", "test"], ["all"])):
        made = rows(run, out=tmp_path / f"b{number}.csv", split=split, workspace=tmp_path)
        assert made.rows["test"] == 9 and made.scored_before == 0
    (line,) = (tmp_path / "tested.jsonl").read_text().splitlines()
    assert json.loads(line)["run"] == "0001-train-copy"


@pytest.mark.parametrize("form", FORMS)
def test_names_of_any_kind_and_images_without_labels(photos: Path, tmp_path: Path, quick: Quick, form: str) -> None:
    names = [b'a, "b".png', "ö漢.png".encode(), b"bad\xff.png"]
    (tmp_path / "in").mkdir()
    for i, name in enumerate(names):
        shutil.copy(photos / "ant" / f"{i:02d}.png", os.path.join(os.fsencode(tmp_path / "in"), name))
    cache = extract(tmp_path / "in", workspace=tmp_path, **quick).cache
    _, found = written(form, cache, tmp_path)
    told = [os.fsdecode(n) for n in sorted(names)]
    assert found["id"] == ([n.replace("\udcff", "\\xff") for n in told] if form == "parquet" else told)
    assert (found["label"], found["class"], found["split"]) == ([-1] * 3, [""] * 3, ["none"] * 3)
    np.testing.assert_array_equal(found["values"].astype(np.float16), open_cache(cache).features)


def test_a_damaged_block_leaves_no_file(workshop: SimpleNamespace, tmp_path: Path) -> None:
    damaged = Path(shutil.copy(workshop.cache.cache, tmp_path / "damaged.h5"))
    with damaged.open("r+b") as file:
        file.seek(open_cache(damaged)._structure.offset("/features") + 50)
        file.write(b"\x01\x02")
    for form in ("npz", "csv"):
        with pytest.raises(CacheError, match="is damaged"):
            rows(damaged, out=tmp_path / f"rows.{form}", workspace=tmp_path)
    assert not list(tmp_path.glob("*rows*")) and not list(tmp_path.glob(".*.draft"))


def test_without_pyarrow_parquet_is_refused_with_the_cure(
    workshop: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs pyarrow: pip install pyarrow, or give"):
        rows(workshop.cache.cache, out=tmp_path / "rows.parquet", workspace=tmp_path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "--out is missing: give a file that ends in .npz, .csv, .parquet"),
        (("--out", "{folder}/x.txt"), "x.txt has another ending: give a file"),
        (("--out", "{folder}/there.csv"), "is there already: remove it, or give another --out"),
        (("--out", "{folder}/there.csv/x.csv"), "cannot write in"),
        (("--out", "{folder}/x.csv", "--split", "none"), "has no good rows of none"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    workshop: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    (tmp_path / "there.csv").write_text("mine")
    filled = [w.format(folder=tmp_path) for w in words]
    assert main(["rows", str(workshop.cache.cache), *filled, "--workspace", str(workshop.root)]) == 2
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_what_is_neither_a_cache_nor_a_run_is_told(workshop: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'nothing' is neither a feature cache nor a run"):
        rows("nothing", out=tmp_path / "x.csv", workspace=tmp_path)
    (tmp_path / "no.h5").write_text("text")
    with pytest.raises(CacheError):
        rows(tmp_path / "no.h5", out=tmp_path / "x.csv", workspace=tmp_path)
