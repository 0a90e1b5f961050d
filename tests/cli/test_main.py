"""The command line: one JSON object, one line for an error, quick help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.__main__ import main as main_of_the_program
from pipeline.cli.commands import COMMANDS
from pipeline.cli.main import main
from pipeline.cli.parser import parse, settings_of
from tests.conftest import SMALL


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(w) for w in words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def helps() -> dict[str, dict[str, Any]]:
    """What each command's --help writes and whether it imports torch: all of them in one process without torch."""
    code = (
        "import contextlib, io, json, sys\n"
        "from pipeline.cli.commands import COMMANDS\n"
        "from pipeline.cli.main import main\n"
        "for command in COMMANDS:\n"
        "    out, err = io.StringIO(), io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
        "        code = main([command, '--help'])\n"
        "    told = {'code': code, 'out': out.getvalue(), 'err': err.getvalue(), 'torch': 'torch' in sys.modules}\n"
        "    print(json.dumps([command, told]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_names_its_options_and_imports_no_torch(
    command: str, helps: dict[str, dict[str, Any]]
) -> None:
    told = helps[command]
    assert not told["torch"], "this command's help, or one's before it"
    assert "--json" in told["out"]
    assert "--workspace" in told["out"]
    assert told["code"] == 0 and not told["err"]


def test_top_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ((), ("--help",)):
        code, out, _ = run(capsys, *words)
        assert code == 0
        assert all(f"\n    {name} " in out for name in COMMANDS)


@pytest.mark.slow
def test_json_is_one_object_with_the_promised_keys(
    capsys: pytest.CaptureFixture[str], workshop: SimpleNamespace, tmp_path: Path
) -> None:
    promised = {
        (
            "extract",
            workshop.photos,
            "--trunk",
            SMALL,
            "--weights",
            "random:0",
            "--image-size",
            32,
            "--engine",
            "torch",
        ): ("cache key rows new reused failed seconds"),
        ("train", workshop.cache.cache): "run solver val train seconds",
        ("search", workshop.cache.cache, "--Cs", 0.001, 0.01): "run solver val train seconds",
        ("baseline", workshop.cache.cache, "--names", "majority", "knn10"): "results",
        ("evaluate", workshop.head.run): "test",
        ("finetune", workshop.head.run, "--epochs", 1): "run before after certificate_max_abs",
        ("trace", workshop.cache.cache): "steps",
        ("inspect", workshop.cache.cache): "caches",
    }
    for words, keys in promised.items():
        code, out, _ = run(capsys, *words, "--json", "--workspace", tmp_path)
        assert code == 0, words
        assert out.count("\n") == 1
        assert set(keys.split()) <= set(json.loads(out)), words
    image = next(workshop.photos.rglob("*.png"))
    code, out, _ = run(capsys, "predict", workshop.head.run, image, "--json", "--workspace", tmp_path)
    assert [set(p) for p in json.loads(out)] == [{"path", "class", "probability", "top"}]
    code, out, _ = run(capsys, "evaluate", workshop.head.run, "--json")
    assert {"accuracy", "macro_f1", "n"} <= set(json.loads(out)["test"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("extract",), "SOURCE"),
        (("extract", "nowhere"), "nowhere"),
        (("extract", "digits", "--dtype", "int8"), "float16, float32"),
        (("extract", "digits", "--image-size", "big"), "--image-size"),
        (("train", "missing.h5"), "pipeline extract"),
        (("train", "--lr"), "--lr"),
        (("evaluate", "missing"), "missing"),
        (("predict", "latest"), "IMAGE"),
        (("nonsense",), "nonsense"),
        (("train", "--nonsense"), "--nonsense"),
        (("trace", "nonsense"), "neither a feature cache nor a run"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *words)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert told in err
    assert "Traceback" not in err


def test_the_workspace_is_named_by_the_option_then_by_the_environment(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIPELINE_WORKSPACE", "elsewhere")
    assert "no feature cache in elsewhere/features yet" in run(capsys, "train")[2]
    assert "no feature cache in here/features yet" in run(capsys, "train", "--workspace", "here")[2]
    monkeypatch.delenv("PIPELINE_WORKSPACE")
    assert "no feature cache in cache/features yet" in run(capsys, "train")[2]


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "train", tmp_path / "missing.h5", "--debug")
    assert code == 2
    assert "Traceback" in err


def asked(words: list[str]) -> Any:
    return settings_of(parse(words, COMMANDS), COMMANDS)


def test_the_command_line_and_the_api_have_the_same_defaults() -> None:
    from pipeline.stages.extract.settings import ExtractSettings
    from pipeline.stages.learn.settings import SearchSettings, TrainSettings

    assert asked(["extract", "x"]) == ExtractSettings(source="x")
    assert asked(["train"]) == TrainSettings()
    assert asked(["search"]) == SearchSettings()


def test_many_valued_options_come_as_tuples() -> None:
    assert asked(["search", "--Cs", "0.1", "0.2"]).Cs == (0.1, 0.2)
    assert asked(["predict", "latest", "a.png", "b.png"]).images == ("a.png", "b.png")


@pytest.mark.parametrize(("own", "kept"), [(None, "1000"), ("7", "7")])
def test_threads_do_not_look_for_each_other_for_long_unless_the_user_says_so(
    own: str | None, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before PyTorch is loaded, which reads it once."""
    monkeypatch.setenv("GOMP_SPINCOUNT", own or "")  # so that it is afterwards what it was before
    if own is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setattr(sys, "argv", ["pipeline", "--help"])
    assert main_of_the_program() == 0
    assert os.environ["GOMP_SPINCOUNT"] == kept
    code = "import sys, pipeline.__main__; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
