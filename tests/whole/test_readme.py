"""What the README shows is what the program has: commands, options, targets, files, code."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.cli.commands import COMMANDS
from pipeline.cli.parser import parse, settings_of
from pipeline.store.format import DATASETS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMAND_LINES = [
    line[2:].split("#")[0].strip()
    for kind, text in BLOCKS
    if kind == "console"
    for line in text.splitlines()
    if line[:2] == "$ "
]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]


@pytest.mark.parametrize("line", [c for c in COMMAND_LINES if c.startswith("pipeline ")])
def test_every_command_shown_is_a_command_with_those_options(line: str) -> None:
    settings_of(parse(shlex.split(line)[1:], COMMANDS), COMMANDS)


def test_every_command_is_shown_or_named() -> None:
    assert [c for c in COMMANDS if f"pipeline {c}" not in README and f"make {c}" not in README] == []


def test_every_make_target_shown_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|\$ )make ([a-z]+)", README):
        assert re.search(rf"^{target}: ", makefile, re.MULTILINE), target


def test_the_format_table_has_every_dataset() -> None:
    for name in DATASETS:
        assert f"`{name}`" in README, name


def test_the_python_example_is_short_and_runs(tmp_path: Path) -> None:
    """At most eight lines, and they run as they stand."""
    example = PYTHON[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 8
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "(1259, 2048) 7" in done.stdout


def test_the_cache_opens_as_shown(tmp_path: Path, workshop: SimpleNamespace) -> None:
    folder = tmp_path / "cache" / "features"
    folder.mkdir(parents=True)
    shutil.copy(workshop.cache.cache, folder / "NAME.h5")
    (example,) = [text for text in PYTHON if "open_cache(" in text and "NAME" in text]
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_head_loads_without_the_package_as_shown(tmp_path: Path) -> None:
    """The three lines of plain torch."""
    import numpy as np

    from pipeline.heads.artifact import Head, save_head

    folder = tmp_path / "cache" / "runs" / "0001-train-NAME"
    folder.mkdir(parents=True)
    tensors = {"weight": np.ones((10, 2048), np.float32), "bias": np.zeros(10, np.float32)}
    save_head(folder, Head("linear", tensors, tuple("0123456789"), "0" * 64, 2048))
    (example,) = [text for text in PYTHON if "torch.nn.Linear" in text]
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
