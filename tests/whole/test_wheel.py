"""The package as others get it: a wheel, built without a network, and used from another folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.base.machine import DISTRIBUTION, own_version
from pipeline.trunk.families import FAMILIES

ROOT = Path(__file__).parents[2]
pytest.importorskip("hatchling", reason="the build backend, of the extra `dev`, is not installed")


def pip(*words: object) -> None:
    command = [sys.executable, "-m", "pip", *map(str, words), "--no-deps", "--no-index", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = {p.name for p in ROOT.iterdir()}
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    assert {p.name for p in ROOT.iterdir()} == before, "building left something behind"
    (built,) = folder.iterdir()
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    about = f"{DISTRIBUTION.replace('-', '_')}-{own_version()}.dist-info"
    package = {p.relative_to(ROOT).as_posix() for p in (ROOT / "pipeline").rglob("*") if p.is_file()}
    assert {n for n in held if not n.startswith(about)} == {n for n in package if "__pycache__" not in n}
    assert {"pipeline/py.typed", f"{about}/METADATA", f"{about}/licenses/LICENSE"} <= held


@pytest.mark.slow
def test_the_wheel_works_in_another_folder(wheel: Path, tmp_path: Path, workshop: SimpleNamespace) -> None:
    """Its own files are used, and a run made with it lies where it was made."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    pip("install", "--no-compile", "--target", site, wheel)
    (elsewhere / "cache" / "features").mkdir(parents=True)
    shutil.copy(workshop.cache.cache, elsewhere / "cache" / "features" / "photos.h5")

    def python(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(site)}
        done = subprocess.run([sys.executable, *words], cwd=elsewhere, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert Path(python("-c", "import pipeline; print(pipeline.__file__)")).is_relative_to(site)
    assert python(str(site / "bin" / "pipeline"), "--version") == f"pipeline {own_version()}"
    python("-m", "pipeline", "train")
    assert [p.name[:10] for p in (elsewhere / "cache" / "runs").glob("0*")] == ["0001-train"]


def test_what_pip_is_told_to_install_is_a_package_of_an_extra() -> None:
    """By the packages' own names, which also help where this project is a clone and no package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [one for extra in project["optional-dependencies"].values() for one in extra]
    known = {re.split(r"[<>=\[]", one)[0] for one in extras}
    found = {
        name
        for path in (ROOT / "pipeline").rglob("*.py")
        for hint in re.findall(
            r"pip install ([a-z][a-z-]*(?: [a-z-]+)*?)(?=[,\"'] ?|$)", path.read_text(encoding="utf-8")
        )
        for name in hint.split()
    }
    assert {"optuna", "pyarrow"} <= found <= known
    assert set(filter(None, FAMILIES.values())) - {"torchvision"} <= set(project["optional-dependencies"])
