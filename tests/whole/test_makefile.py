"""Make's targets hand a value over as it is: spaces, quotes and dollars in paths, also in the checkout's own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AWKWARD = ["my photos", "l'été", 'a "b" c', "a;b & c", "$$HOME", "(x) # y, z"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose Python writes down its arguments, one a line; its own path has spaces and a quote."""
    root = tmp_path / "our pipeline's checkout"
    bin_folder = root / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", root)
    for name in ("pyproject.toml", "constraints.txt"):
        (root / name).touch()
    python = bin_folder / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > arguments.txt\n')
    python.chmod(0o755)
    (root / ".venv" / ".ready").touch()
    return root


def made(checkout: Path, *words: str) -> list[str]:
    # These tests are themselves run by make, which hands its own variables on: only the way to the tools is kept.
    environment = {"PATH": os.environ["PATH"]}
    subprocess.run(["make", *words], cwd=checkout, check=True, capture_output=True, text=True, env=environment)
    return (checkout / "arguments.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("value", AWKWARD)
def test_a_value_is_one_argument_whatever_is_in_it(checkout: Path, value: str) -> None:
    plain = value.replace("$$", "$")  # make's own spelling of a dollar
    assert made(checkout, "features", f"DATA={value}") == [
        *("-m", "pipeline", "extract", plain, "--weights", "DEFAULT"),
    ]
    assert made(checkout, "predict", f"IMAGE={value}", f"RUN={value}") == ["-m", "pipeline", "predict", plain, plain]


@pytest.mark.parametrize(
    ("target", "variable", "command"),
    [
        ("head", "CACHE", "train"),
        ("search", "CACHE", "search"),
        ("baselines", "CACHE", "baseline"),
        ("inspect", "CACHE", "inspect"),
        ("evaluate", "RUN", "evaluate"),
        ("finetune", "RUN", "finetune"),
        ("export", "RUN", "export"),
        ("report", "RUN", "report"),
    ],
)
def test_every_target_quotes_its_variable(checkout: Path, target: str, variable: str, command: str) -> None:
    assert made(checkout, target, f"{variable}=a b", "ARGS=--seed 1") == [
        *("-m", "pipeline", command, "a b", "--seed", "1"),
    ]


def test_no_image_is_told_in_a_line(checkout: Path) -> None:
    done = subprocess.run(["make", "predict"], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 2 and "error: no image given: make predict IMAGE=photo.jpg" in done.stderr


def test_help_shows_the_variables_as_they_are(checkout: Path) -> None:
    done = subprocess.run(["make", "DATA=l'été"], cwd=checkout, capture_output=True, text=True, check=True)
    assert "  make features" in done.stdout and "DATA=l'été" in done.stdout
