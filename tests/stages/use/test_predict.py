"""`pipeline predict`: folders, standard input, CSV and JSON lines, abstaining, and images that cannot be used."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.models import ResNet

from pipeline import predict
from pipeline.base.errors import ConfigError, DataError
from pipeline.cli.main import main
from pipeline.images import read_file
from pipeline.stages.use.results import class_columns


@pytest.fixture
def folder(workshop: SimpleNamespace, tmp_path: Path) -> Path:
    """Four images in two folders, one text that says it is an image, and a text that does not."""
    for name in ("ant/00", "ant/01", "bee/00", "cat/03"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(workshop.photos / f"{name}.png", tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "bee" / "broken.jpg").write_text("hello")
    (tmp_path / "in" / "notes.txt").write_text("hello")
    return tmp_path / "in"


def test_a_folder_gives_its_images_in_order_and_a_broken_one_is_a_row(workshop: SimpleNamespace, folder: Path) -> None:
    found = predict(workshop.head.run, folder, workspace=workshop.root)
    names = [os.path.relpath(p.path, folder) for p in found]
    assert names == ["ant/00.png", "ant/01.png", "bee/00.png", "bee/broken.jpg", "cat/03.png"]
    assert [p.error is None for p in found] == [True, True, True, False, True]
    assert found[3].class_name is None and found[3].probability is None and found[3].top == ()
    alone = predict(workshop.head.run, [p.path for p in found if p.error is None], workspace=workshop.root)
    for one, other in zip(alone, (p for p in found if p.error is None), strict=True):
        assert dict(one.top) == pytest.approx(dict(other.top), rel=1e-5)  # a batch of another size: other last bits


def test_one_image_is_a_batch_of_one_and_goes_through_the_trunk_twice(
    resnet_workshop: SimpleNamespace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the engine, and by the plain network that checks it; a shape is found without numbers."""
    forward, seen = ResNet.forward, []

    def counted(self: ResNet, x: torch.Tensor) -> torch.Tensor:
        seen.append((x.device.type, len(x)))
        return forward(self, x)

    monkeypatch.setattr(ResNet, "forward", counted)
    predict(resnet_workshop.head.run, folder / "ant" / "00.png", workspace=resnet_workshop.root)
    assert seen == [("meta", 1), ("cpu", 1), ("cpu", 1)]


def test_a_folder_of_anything_ends_and_says_what_it_left_out(
    workshop: SimpleNamespace, folder: Path, listener: Any
) -> None:
    """Pipes are not waited for, devices not read, no folder is entered twice."""
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "ant" / "up").symlink_to(folder)
    (folder / ".hidden.png").write_text("")
    found = predict(workshop.head.run, folder, workspace=workshop.root, watch=listener)
    assert len(found) == 5
    told = (
        "1 skipped as hidden, 1 as link to a folder that is listed already, 2 as not a regular file, 1 as not an image"
    )
    assert told in listener.text
    with pytest.raises(DataError, match="pipe.png' is neither a file nor a folder: give image files or folders"):
        predict(workshop.head.run, folder / "pipe.png", workspace=workshop.root)


def test_a_finetuned_run_predicts_folders_too(workshop: SimpleNamespace, folder: Path) -> None:
    assert sum(p.error is None for p in predict(workshop.tuned.run, folder, workspace=workshop.root)) == 4


def test_only_unusable_images_are_an_error(workshop: SimpleNamespace, folder: Path) -> None:
    with pytest.raises(DataError, match=r"broken.jpg' cannot be used"):
        predict(workshop.head.run, folder / "bee" / "broken.jpg", workspace=workshop.root)
    with pytest.raises(DataError, match="is not there: give image files or folders"):
        predict(workshop.head.run, folder / "missing.jpg", workspace=workshop.root)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        predict(workshop.head.run, folder / "empty", workspace=workshop.root)


def test_what_gives_no_image_among_others_is_one_that_fails(
    workshop: SimpleNamespace, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are predicted, and the exit status says it."""
    (folder / "empty").mkdir()
    wrong = {"empty": "holds no images", "*.webp": "fits nothing", "gone": "is not there"}
    good = str(next((folder / "ant").glob("*.png")))
    asked = [good, *(str(folder / name) for name in wrong)]
    words = ["predict", str(workshop.head.run), *asked, "--workspace", str(workshop.root)]
    assert main([*words, "--json"]) == 1
    first, *others = json.loads(capsys.readouterr().out)
    assert first.get("error") is None and [one["path"] for one in others] == asked[1:]
    assert all(told in one["error"] for told, one in zip(wrong.values(), others, strict=True))
    assert main(words[:3] + words[-2:]) == 0
    with pytest.raises(DataError, match="cannot be used"):
        predict(workshop.head.run, asked[1:3], workspace=workshop.root)


def test_below_the_threshold_no_class_is_named(workshop: SimpleNamespace, folder: Path) -> None:
    all_named = predict(workshop.head.run, folder / "ant", workspace=workshop.root)
    limit = max(p.probability for p in all_named if p.probability is not None)
    some = predict(workshop.head.run, folder / "ant", threshold=limit, workspace=workshop.root)
    assert [p.class_name for p in some] == [p.class_name if p.probability == limit else None for p in all_named]
    assert [p.top for p in some] == [p.top for p in all_named]


def test_csv_and_json_lines_hold_the_same_as_json(
    workshop: SimpleNamespace, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(workshop.head.run), str(folder), "--top", "2", "--workspace", str(workshop.root)]
    assert main([*words, "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert main([*words, "--format", "jsonl", "--quiet"]) == 0
    said = capsys.readouterr()
    assert [json.loads(line) for line in said.out.splitlines()] == expected  # the warning is not among them
    assert "images cannot be used" in said.err
    assert main([*words, "--format", "csv", "--quiet"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(rows[0]) == ["path", "class", "class1", "probability1", "class2", "probability2", "error"]
    assert [r["path"] for r in rows] == [e["path"] for e in expected]
    assert [r["class"] for r in rows] == [e["class"] or "" for e in expected]
    assert [bool(r["error"]) for r in rows] == ["error" in e for e in expected]
    assert float(rows[0]["probability2"]) == pytest.approx(expected[0]["top"][1]["probability"], abs=1e-6)


def test_what_is_printed_for_programs_is_nothing_else(
    workshop: SimpleNamespace, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not which run is the latest, nor what was left out of a folder."""
    assert main(["predict", "latest", str(folder), "--format", "csv", "--workspace", str(workshop.root)]) == 0
    assert capsys.readouterr().out.startswith("path,class,")


def test_all_classes_have_a_column_of_their_name(
    workshop: SimpleNamespace, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(workshop.head.run), str(folder), "--all", "--workspace", str(workshop.root)]
    found = predict(workshop.head.run, folder, all=True, workspace=workshop.root)
    assert main([*words, "--format", "csv", "--quiet"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(rows[0]) == ["path", "class", "probability", "ant", "bee", "cat", "error"]
    for row, p in zip(rows, found, strict=True):
        if p.probabilities is None:
            assert (row["ant"], row["probability"], row["error"]) == ("", "", p.error)
            continue
        assert {name: float(row[name]) for name in p.probabilities} == pytest.approx(p.probabilities, abs=1e-6)
        assert sum(p.probabilities.values()) == pytest.approx(1) and dict(p.top) == p.probabilities
        assert float(row["probability"]) == pytest.approx(max(p.probabilities.values()), abs=1e-6)
    assert main([*words, "--format", "jsonl", "--quiet"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("probabilities") for line in lines] == [p.probabilities for p in found]
    assert main(words) == 0
    heading = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["Image", "Class", "ant", "bee", "cat"] for line in heading)


def test_a_class_that_is_called_as_a_column_is_another_one() -> None:
    assert class_columns(["error", "path", "class error", "x"], ["path", "error"]) == [
        "class error", "class path", "class class error", "x"
    ]  # fmt: skip


def test_below_the_threshold_csv_still_names_the_likeliest(
    workshop: SimpleNamespace, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(workshop.head.run), f"{folder}/ant/00.png", "--workspace", str(workshop.root), "--quiet"]
    assert main([*words, "--format", "csv", "--threshold", "0.999999"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["class"] == "" and row["class1"] in ("ant", "bee", "cat") and float(row["probability1"]) < 0.999999
    assert "class4" not in row  # there are three


def test_a_path_on_standard_input_that_is_gone_is_a_row_with_its_reason(
    workshop: SimpleNamespace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = f"{folder}/ant/00.png\n{folder}/gone.png\n".encode()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    there, gone = predict(workshop.head.run, "-", workspace=workshop.root)
    assert there.class_name in ("ant", "bee", "cat") and there.error is None
    assert (gone.path, gone.class_name) == (f"{folder}/gone.png", None)
    assert gone.error == "there is no such file"


def test_paths_come_from_standard_input(
    workshop: SimpleNamespace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = f"{folder}/ant/00.png\n\n{folder}/cat\n".encode()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    found = predict(workshop.head.run, "-", workspace=workshop.root)
    assert [Path(p.path).name for p in found] == ["00.png", "03.png"]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    with pytest.raises(DataError, match="standard input named none"):
        predict(workshop.head.run, "-", workspace=workshop.root)


def test_a_trace_is_not_for_programs(workshop: SimpleNamespace, folder: Path) -> None:
    with pytest.raises(ConfigError, match="leave it out with format='csv'"):
        predict(workshop.head.run, folder, trace=True, format="csv", workspace=workshop.root)


def test_an_image_is_read_once_and_traced_as_it_was_decoded(
    workshop: SimpleNamespace, tmp_path: Path, listener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are gone as soon as they have been read; the one that lies on its side is told of as it is seen."""
    sideways = Image.Exif()
    sideways[0x0112] = 6
    grey = Image.open(workshop.photos / "ant" / "00.png").convert("L").resize((60, 40))
    grey.save(tmp_path / "1.jpg", exif=sideways)
    shutil.copy(workshop.photos / "bee" / "00.png", tmp_path / "2.png")

    def read_and_remove(path: bytes) -> bytes:
        blob = read_file(path)
        os.unlink(path)
        return blob

    monkeypatch.setattr("pipeline.images.sources.files.read_file", read_and_remove)
    found = predict(workshop.head.run, tmp_path, trace=True, workspace=workshop.root, watch=listener)
    assert [p.error for p in found] == [None, None] and not list(tmp_path.iterdir())
    assert "40 × 60" in listener.text and "L" in listener.text.split("1.jpg")[1].split()[0]
    assert "40 × 40" in listener.text and "RGB" in listener.text.split("2.png")[1].split()[0]
