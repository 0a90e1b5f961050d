"""What is said of rows without a label and of random features, wherever they are learned from or scored."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import baseline, catalog, evaluate, extract, inspect, predict, train
from tests.conftest import Listener


@pytest.fixture(scope="module")
def partly(photos: Path, tmp_path_factory: pytest.TempPathFactory, quick: dict[str, Any]) -> tuple[Path, str]:
    """A workspace with a cache of photographs of which seven have no label; and what its extraction said."""
    root, listener = tmp_path_factory.mktemp("partly"), Listener()
    shutil.copytree(photos, root / "photos")
    names = sorted(path.relative_to(root / "photos").as_posix() for path in (root / "photos").rglob("*.png"))
    lines = [f"{name},{name[:3] if number >= 7 else ''}" for number, name in enumerate(names)]
    (root / "photos" / "list.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    extract(root / "photos" / "list.csv", name="partly", workspace=root, watch=listener, **quick)
    return root, listener.text


def test_rows_without_a_label_are_counted_wherever_they_are_left_out(partly: tuple[Path, str]) -> None:
    root, said = partly
    assert "7 images of 60 without a label: heads leave them out" in said
    run = str(train("partly", workspace=root, watch=(one := Listener())).run)
    assert "left out: 7 rows without a label" in one.text
    baseline("partly", names=("majority",), workspace=root, watch=(one := Listener()))
    assert "left out: 7 rows without a label" in one.text
    evaluate(run, split="all", workspace=root, watch=(one := Listener()))
    assert "left out: 7 rows without a label" in one.text
    evaluate(run, split="val", workspace=root, watch=(one := Listener()))
    assert "left out" not in one.text
    evaluate(run, images=str(root / "photos" / "list.csv"), workspace=root, watch=(one := Listener()))
    assert "left out: 7 images without a label" in one.text
    inspect("partly", workspace=root, watch=(one := Listener()))
    assert "unlabelled" in one.text and "7 rows" in one.text


def test_features_of_random_weights_are_called_so_in_every_result(partly: tuple[Path, str]) -> None:
    root, _ = partly
    run = str(train("partly", workspace=root, watch=(learned := Listener())).run)
    evaluate(run, workspace=root, watch=(scored := Listener()))
    predict(run, root / "photos" / "ant" / "19.png", workspace=root, watch=(asked := Listener()))
    for one in (learned, scored, asked):
        assert one.text.count("warning: the features are those of random weights (random:0): good for trying") == 1
    catalog(workspace=root, watch=(one := Listener()))
    assert "partly (random)" in one.text
