"""Help in groups, at any width; what was meant where a word is mistyped; options from a file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.numpy

from pipeline import search, train
from pipeline.base.errors import ConfigError
from pipeline.cli.commands import COMMANDS
from pipeline.cli.main import main
from pipeline.cli.parser import parse, settings_of


def asked(*words: object) -> Any:
    return settings_of(parse([str(w) for w in words], COMMANDS), COMMANDS)


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([command, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 100])
def test_no_line_of_a_help_is_wider_than_the_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for command in COMMANDS:
        wide = [line for line in help_of(command, capsys).splitlines() if len(line) > width]
        assert wide == [], command


@pytest.mark.parametrize(
    ("command", "groups"),
    [
        (
            "train",
            ["options", "the exact head", "minibatch heads (--solver adamw or sgd)", "hidden layers (--kind mlp)"],
        ),
        ("finetune", ["what learns", "steps and learning rates", "the train images", "what is kept and scored"]),
        ("extract", ["options", "the trunk", "the transform", "splits"]),
        ("inspect", ["positional arguments", "every command"]),
    ],
)
def test_options_stand_under_the_headings_of_their_groups(
    command: str, groups: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(command, capsys)
    places = [text.index(f"\n{group}:\n") for group in groups]
    assert places == sorted(places)


def test_an_option_stands_under_its_own_heading(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("train", capsys)
    parts = dict(part.split(":\n", 1) for part in text.split("\n\n") if ":\n" in part)
    assert "--C " in parts["the exact head"] and "--lr " not in parts["the exact head"]
    assert "--lr " in parts["minibatch heads (--solver adamw or sgd)"]
    assert "--dropout " in parts["hidden layers (--kind mlp)"]
    assert "--quiet " in parts["every command"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("trian",), "no command 'trian': .*; did you mean train\\?$"),
        (
            ("extract", "x", "--weigths", "3"),
            "--weigths is no option of `pipeline extract.; did you mean --weights\\?$",
        ),
        (("predict", "--tpo=3"), "--tpo is no option of `pipeline predict`; did you mean --top\\?$"),
        (("train", "--zzz"), "--zzz is no option of `pipeline train`; see `pipeline train --help`$"),
        (("train", "--solver", "adamv"), "did you mean adamw\\?$"),
        (("train", "--C", "much"), "^--C: 'much' is not a number; see"),
        (("train", "--epochs", "1.5"), "^--epochs: '1.5' is not a whole number; see"),
        (("search", "--shots", "1", "foo"), "^--shots: 'foo' is not a whole number or 'all'; see"),
        (("train", "--lr"), "^--lr needs a value; see"),
        (("predict",), "^RUN, IMAGE must be given; see"),
        (("predict", "photo.jpg"), "^IMAGE must be given, after a RUN, which may be `latest`; see"),
        (("relabel", "labels.csv"), "^SOURCE must be given, after a CACHE, which may be `latest`; see"),
        (("train", "a", "b"), "^'b' is too many; see"),
    ],
)
def test_a_mistyped_word_is_told_with_what_was_meant(words: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        asked(*words)


def test_a_word_may_stand_among_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked("search", "--shots", 1, 5, "all").shots == (1, 5, "all")
    path = written(tmp_path, 'shots = [1, 5, "all"]\n')
    assert asked("search", "--config", path).shots == (1, 5, "all")
    with pytest.raises(ConfigError, match="shots is 'most': it must be a whole number or 'all'$"):
        asked("search", "--config", written(tmp_path, 'shots = [1, "most"]\n'))
    assert "--shots N|all [N|all ...]" in help_of("search", capsys)


def test_the_beginning_of_an_option_is_enough() -> None:
    assert asked("train", "--class", "balanced").class_weight == "balanced"


# -- options from a file ----------------------------------------------------------------------------------------------


def written(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_options_come_from_a_file_and_the_command_line_goes_first(tmp_path: Path) -> None:
    toml = written(tmp_path, 'solver = "adamw"\nweight-decay = 0\nbatch_size = 64\n')
    same = written(tmp_path, '{"solver": "adamw", "weight-decay": 0, "batch_size": 64}', "mine.json")
    for path in (toml, same):
        found = asked("train", "--config", path, "--batch-size", 32)
        assert (found.solver, found.weight_decay, found.batch_size) == ("adamw", 0.0, 32)
    assert asked("train", f"--config={toml}").batch_size == 64


def test_what_is_given_by_place_may_come_from_a_file(tmp_path: Path) -> None:
    path = written(tmp_path, 'run = "3"\nimages = ["a.png", "b.png"]\ntop = 2\n')
    found = asked("predict", "--config", path)
    assert (found.run, found.images, found.top) == ("3", ("a.png", "b.png"), 2)
    assert asked("predict", "4", "c.png", "--config", path).images == ("c.png",)


def test_a_switch_from_a_file_can_be_switched_back(tmp_path: Path) -> None:
    path = written(tmp_path, "floors = true\n")
    assert asked("baseline", "--config", path).floors
    assert not asked("baseline", "--config", path, "--no-floors").floors
    path = written(tmp_path, "refit = false\n")
    assert not asked("search", "--config", path).refit
    assert asked("search", "--config", path, "--refit").refit


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("solvr = 'sgd'", "'solvr' is no option of `pipeline train`; did you mean solver\\?"),
        ("epochs = 'many'", "epochs is 'many': it must be a whole number"),
        ("epochs = 1.5", "epochs is 1.5: it must be a whole number"),
        ("epochs = true", "epochs is True: it must be a whole number"),
        ("lr = 'fast'", "lr is 'fast': it must be a number"),
        ("solver = 3", "solver is 3: it must be a text"),
        ("epochs = 0", "--epochs is 0: it must be at least 1"),
        ("batch-size = 1\nbatch_size = 2", "batch_size is there twice"),
        ("epochs", "is not TOML"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str) -> None:
    import re

    path = written(tmp_path, text)
    assert main(["train", "--config", str(path)]) == 2
    err = capsys.readouterr().err
    assert re.search(told, err) and err.count("\n") == 1, err


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file.*give a run's folder, or a TOML or JSON file"):
        asked("train", "--config", tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="not JSON"):
        asked("train", "--config", written(tmp_path, "[1,", "x.json"))
    with pytest.raises(ConfigError, match="object"):
        asked("train", "--config", written(tmp_path, "[1]", "x.json"))


def tensors(run: Path) -> dict[str, bytes]:
    return {n: t.tobytes() for n, t in safetensors.numpy.load_file(run / "head.safetensors").items()}


@pytest.mark.parametrize("options", [{"C": 0.3, "class_weight": "balanced"}, {"solver": "sgd", "epochs": 3, "seed": 7}])
def test_a_run_is_repeated_by_its_record_to_the_same_bits(
    workshop: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    first = train(workshop.cache.cache, workspace=tmp_path, **options)
    assert main(["train", "--config", str(first.run), "--workspace", str(tmp_path), "--json"]) == 0
    second = Path(json.loads(capsys.readouterr().out)["run"])
    assert second != first.run
    assert tensors(second) == tensors(first.run)
    one, two = (json.loads((run / "config.json").read_text()) for run in (first.run, second))
    assert one["settings"] == two["settings"] and one["cache"] == two["cache"]
    words = ["train", "--config", str(first.run / "config.json"), "--seed", "8", "--workspace", str(tmp_path), "--json"]
    assert main(words) == 0
    third = Path(json.loads(capsys.readouterr().out)["run"])
    told = json.loads((third / "config.json").read_text())["settings"]
    assert told == {**one["settings"], "seed": 8}


def test_a_fine_tunings_record_names_the_run_that_lies_beside_it(workshop: SimpleNamespace, tmp_path: Path) -> None:
    shutil.copytree(workshop.root / "runs", tmp_path / "runs")
    found = asked("finetune", "--config", tmp_path / "runs" / workshop.tuned.run.name)
    assert found.run == str(tmp_path / "runs" / workshop.head.run.name)
    shutil.rmtree(tmp_path / "runs" / workshop.head.run.name)
    found = asked("finetune", "--config", tmp_path / "runs" / workshop.tuned.run.name)
    assert found.run == str(workshop.head.run.resolve())


def test_a_record_names_the_cache_and_the_run_that_latest_meant(workshop: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    shutil.copy(workshop.cache.cache, tmp_path / "features" / "photos.h5")
    head = train(workspace=tmp_path)
    settings = json.loads((head.run / "config.json").read_text())["settings"]
    assert settings["cache"] == str((tmp_path / "features" / "photos.h5").resolve())
    tuned = json.loads((workshop.tuned.run / "config.json").read_text())["settings"]
    assert tuned["run"] == str(workshop.head.run.resolve())


def test_the_record_of_another_command_is_refused_by_name(workshop: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match="is the record of a run of `pipeline finetune`, not of `pipeline train`"):
        asked("train", "--config", workshop.tuned.run)


def test_a_run_is_not_repeated_on_a_cache_that_has_changed(
    workshop: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from pipeline import relabel

    cache = tmp_path / "features" / "photos.h5"
    cache.parent.mkdir()
    shutil.copy(workshop.cache.cache, cache)
    head = train(cache, workspace=tmp_path)
    relabel(cache, workshop.photos, split_seed=1, workspace=tmp_path)
    assert main(["train", "--config", str(head.run), "--workspace", str(tmp_path)]) == 2
    assert "have changed since 0001-train-photos" in capsys.readouterr().err
    assert main(["train", str(cache), "--config", str(head.run), "--workspace", str(tmp_path), "--quiet"]) == 0


def test_a_run_is_repeated_by_its_number_and_test_is_not_looked_at_again_unless_asked(
    workshop: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = search(workshop.cache.cache, Cs=(0.01, 0.1), workspace=tmp_path)
    ledger = (tmp_path / "tested.jsonl").read_text()
    for spec in ("1", "latest", first.run.name):
        assert asked("search", "--config", spec, "--workspace", tmp_path).Cs == (0.01, 0.1)
    assert main(["search", "--config", "1", "--workspace", str(tmp_path)]) == 0
    assert "test rows are left alone (--evaluate scores them)" in capsys.readouterr().out
    assert (tmp_path / "tested.jsonl").read_text() == ledger
    assert main(["search", "--config", "1", "--evaluate", "--workspace", str(tmp_path)]) == 0
    assert (tmp_path / "tested.jsonl").read_text() != ledger
    with pytest.raises(ConfigError, match="--config 9: neither a TOML or JSON file nor a run: no run '9'"):
        asked("search", "--config", "9", "--workspace", tmp_path)
