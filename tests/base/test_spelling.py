"""An option is named as the user would write it: a flag on the command line, a parameter in Python."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pipeline
from pipeline.base.errors import PipelineError
from pipeline.base.spelling import as_flags, option, place
from pipeline.cli.main import main

PACKAGE = Path(pipeline.__file__).parent


@pytest.mark.parametrize(
    ("given", "flag", "parameter"),
    [
        (("image_size",), "--image-size", "image_size"),
        (("image_size", 64), "--image-size 64", "image_size=64"),
        (("lr", 1e-3), "--lr 0.001", "lr=0.001"),
        (("solver", "sgd"), "--solver sgd", "solver='sgd'"),
        (("out", Path("my photos.h5")), "--out 'my photos.h5'", "out='my photos.h5'"),
        (("prefix", False), "--no-prefix", "prefix=False"),
        (("drop_leaks", True), "--drop-leaks", "drop_leaks=True"),
        (("mean", (0.5, 0.25)), "--mean 0.5 0.25", "mean=(0.5, 0.25)"),
    ],
)
def test_an_option_is_spelled_as_it_would_be_written(given: tuple[Any, ...], flag: str, parameter: str) -> None:
    assert option(*given) == parameter
    with as_flags():
        assert option(*given) == flag
    assert option(*given) == parameter


def test_an_argument_that_is_given_by_place_has_no_flag() -> None:
    assert place("source") == "source"
    with as_flags():
        assert place("source") == "SOURCE"


def test_no_message_holds_a_flag_of_its_own() -> None:
    """Every text in the package but docstrings and help texts; the command line and the bench write commands."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] in ("cli", "bench"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        said = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            help_text = called and ast.unparse(node.func) in ("st.option", "st.argument")
            if help_text or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).endswith("_HELP")):
                said |= {id(n) for n in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
                text = re.sub("`pip install [^`]*`", "", node.value)  # another program's
                found += [f"{path.name}: {node.value}"] if re.search(r"(^|[\s(`'])--([a-z]{2}|C)", text) else []
    assert found == []


MISTAKES: list[tuple[str, dict[str, Any], list[str], str, str]] = [
    ("train", {"C": -1}, ["--C", "-1"], "C is -1", "--C is -1"),
    ("train", {"lr": 0.1}, ["--lr", "0.1"], "lr says nothing to solver='exact'", "--lr says nothing to --solver exact"),
    ("search", {"cv": 1}, ["--cv", "1"], "cv is 1", "--cv is 1"),
    ("search", {"cv": 300}, ["--cv", "300"], "cv=300: the smallest class", "--cv 300: the smallest class"),
    ("train", {"solver": "sdg"}, ["--solver", "sdg"], "did you mean sgd?", "did you mean sgd?"),
]


@pytest.mark.parametrize(("door", "options", "words", "python", "command"), MISTAKES)
def test_a_mistake_is_told_in_the_words_of_where_it_was_made(
    workshop: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    door: str,
    options: dict[str, Any],
    words: list[str],
    python: str,
    command: str,
) -> None:
    cache = workshop.cache.cache
    with pytest.raises(PipelineError) as told:
        getattr(pipeline, door)(cache, workspace=workshop.root, **options)
    assert python in str(told.value) and " --" not in str(told.value)
    assert main([door, str(cache), "--workspace", str(workshop.root), *words]) == 2
    assert command in capsys.readouterr().err


def test_help_in_python_names_parameters() -> None:
    for name in pipeline.__all__:
        assert not re.search(r"--[a-z]", str(getattr(pipeline, name).__doc__)), name
