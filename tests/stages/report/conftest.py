"""A run that was searched, and photographs whose names are as awkward as they can be."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import extract, search
from tests.conftest import draw

EVIL = "<script>alert(1)</script>"
CLASSES = (EVIL, 'b & "c"')


@pytest.fixture(scope="module")
def searched(workshop: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A search on the workshop's cache, in a workspace of its own, not scored; two penalties, so that val chose."""
    root = tmp_path_factory.mktemp("searched")
    found = search(workshop.cache.cache, Cs=(1e-5, 1e-4), evaluate=False, workspace=root)
    return SimpleNamespace(root=root, run=found.run, cache=workshop.cache.cache)


@pytest.fixture(scope="session")
def awkward(tmp_path_factory: pytest.TempPathFactory, quick: dict[str, Any]) -> SimpleNamespace:
    """A search on two classes of a manifest with a column of groups; names hold markup and line feeds."""
    root = tmp_path_factory.mktemp("awkward")
    photos = root / "photos"
    rows = []
    for number in range(40):
        name = f"{number:02d}\n<b>&.png" if number % 5 == 0 else f"{number:02d}.png"
        label = number % 2
        draw(photos / name, 0 if number % 7 == 0 else label, number)  # every seventh looks like the first class
        split = ("train", "train", "val", "test")[number // 2 % 4]
        rows.append((f"photos/{name}", CLASSES[label], split, f"farm {number % 3} <i>"))
    (photos / "02.png").write_bytes(b"no image")
    os.rename(os.fsencode(photos / "04.png"), os.fsencode(photos) + b"/\xff4.png")
    rows[4] = (os.fsdecode(b"photos/\xff4.png"), *rows[4][1:])
    with (root / "list.csv").open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "farm"), *rows])
    cache = extract(root / "list.csv", workspace=root, **quick).cache
    run = search(cache, Cs=(1e-5, 1e-4), evaluate=False, workspace=root).run
    return SimpleNamespace(root=root, run=run, cache=cache, photos=photos)


@pytest.fixture
def copied(searched: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """A workspace with a copy of the searched run, to be changed."""
    root = tmp_path / "copied"
    run = Path(shutil.copytree(searched.run, root / "runs" / searched.run.name))
    (root / "features").mkdir()
    cache = Path(shutil.copy(searched.cache, root / "features"))
    return SimpleNamespace(root=root, run=run, cache=cache)
