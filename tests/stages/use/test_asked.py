"""What a prediction can be asked for besides files and folders: patterns, manifests, images in memory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import predict
from pipeline.base.errors import DataError
from pipeline.base.workspace import Workspace
from pipeline.stages.use.asked import find_images


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files of no bytes, two levels deep, with what is no image, what is hidden, and a link that leads in a circle."""
    for name in ("a.jpg", "b.PNG", "notes.txt", "ant/c.jpg", "ant/deep/d.jpg", ".hidden/e.jpg", "bee/f.png", "[x].jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    (tmp_path / "photos" / "bee" / "up").symlink_to(tmp_path / "photos")
    return tmp_path / "photos"


def names(tree: Path, *asked: Any) -> list[str]:
    found = find_images([str(tree / one) for one in asked], Workspace(tree))
    return [os.path.relpath(one.name, tree) for one in found]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["[x].jpg", "a.jpg"]),
        ("*", ["[x].jpg", "a.jpg", "b.PNG"]),
        ("?.PNG", ["b.PNG"]),
        ("*/*.jpg", ["ant/c.jpg"]),
        ("**/*.jpg", ["[x].jpg", "a.jpg", "ant/c.jpg", "ant/deep/d.jpg"]),
        ("**", ["[x].jpg", "a.jpg", "ant/c.jpg", "ant/deep/d.jpg", "b.PNG", "bee/f.png"]),
        ("a*/**/*", ["ant/c.jpg", "ant/deep/d.jpg"]),
        ("**/deep/*.jpg", ["ant/deep/d.jpg"]),
        ("**/ant/**/d.*", ["ant/deep/d.jpg"]),
        ("[x].jpg", ["[x].jpg"]),  # there is a file of that name: it wins over the pattern x.jpg
        ("[ab].*", ["a.jpg", "b.PNG"]),
    ],
)
def test_a_pattern_is_the_images_that_fit_it(tree: Path, pattern: str, expected: list[str]) -> None:
    assert names(tree, pattern) == expected


def test_a_pattern_below_the_present_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    found = find_images(["**/d.jpg", "./a*.jpg"], Workspace(tree))
    assert [one.name for one in found] == ["ant/deep/d.jpg", "./a.jpg"]


def test_a_text_file_is_a_list_of_images(tree: Path) -> None:
    (tree / "some.txt").write_text("bee/f.png\nant/c.jpg\n")
    assert names(tree, "some.txt") == ["bee/f.png", "ant/c.jpg"]


@pytest.mark.parametrize(
    ("pattern", "told"), [("*.webp", "it fits nothing"), ("**/g.jpg", "it fits nothing"), ("n*", "files that are no")]
)
def test_a_pattern_that_fits_no_image_is_an_error_that_names_it(tree: Path, pattern: str, told: str) -> None:
    with pytest.raises(DataError) as error:
        names(tree, pattern)
    assert pattern in str(error.value) and told in str(error.value)


def test_a_manifest_is_its_images_in_its_order_and_a_missing_one_is_a_row(
    workshop: SimpleNamespace, tmp_path: Path
) -> None:
    for name in ("ant/00", "bee/00"):
        shutil.copy(workshop.photos / f"{name}.png", tmp_path / f"{name[:3]}.png")
    (tmp_path / "new.csv").write_text("filename;species\nbee.png;who knows\ngone.png;\nant.png;x\n")
    found = predict(workshop.head.run, tmp_path / "new.csv", workspace=workshop.root)
    assert [(os.path.basename(p.path), p.class_name) for p in found] == [
        ("bee.png", "bee"), ("gone.png", None), ("ant.png", "ant")
    ]  # fmt: skip
    assert found[1].error == "there is no such file"
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match=r"empty.csv"):
        predict(workshop.head.run, tmp_path / "empty.csv", workspace=workshop.root)


# -- in memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(50, 70, 3), (90, 41), (33, 80, 4)])
def test_an_array_is_what_the_same_pixels_are_as_a_png(
    workshop: SimpleNamespace, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "same.png")
    (file,) = predict(workshop.head.run, tmp_path / "same.png", all=True, workspace=workshop.root)
    for given in (pixels, Image.fromarray(pixels), [pixels], np.asfortranarray(pixels)):
        (found,) = predict(workshop.head.run, given, all=True, workspace=workshop.root)
        assert found.probabilities == file.probabilities and found.path == "image 0"


def test_an_opened_image_is_what_its_file_is_turned_by_its_camera_and_left_as_it_was(
    workshop: SimpleNamespace, tmp_path: Path
) -> None:
    sideways = Image.Exif()
    sideways[0x0112] = 6
    with Image.open(workshop.photos / "cat" / "03.png") as image:
        image.resize((60, 40)).save(tmp_path / "turned.jpg", exif=sideways)
    with Image.open(tmp_path / "turned.jpg") as opened:
        found = predict(workshop.head.run, [opened, tmp_path / "turned.jpg"], all=True, workspace=workshop.root)
        assert opened.size == (60, 40)
    assert found[0].probabilities == found[1].probabilities
    assert [p.path for p in found] == [str(tmp_path / "turned.jpg")] * 2


def test_images_in_memory_go_with_files_in_the_order_given(workshop: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes((workshop.photos / "bee" / "00.png").read_bytes()[:300])
    with Image.open(tmp_path / "cut.png") as cut, Image.open(workshop.photos / "bee" / "01.png") as image:
        bee = np.asarray(image.convert("RGB"))
        found = predict(workshop.head.run, [bee, workshop.photos / "ant/00.png", cut, bee], workspace=workshop.root)
    assert [p.class_name for p in found] == ["bee", "ant", None, "bee"]
    assert found[3].path == "image 3" and "its pixels cannot be had" in str(found[2].error)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            np.zeros((4, 4, 3), np.float32),
            r"image 0 is an array \(4, 4, 3\) float32: give \(H, W\) or \(H, W, 3\) uint8",
        ),
        (np.zeros((5, 4, 2), np.uint8), r"image 0 is an array \(5, 4, 2\) uint8: .*several as a list"),
        (np.zeros((0, 4, 3), np.uint8), r"image 0 is an array \(0, 4, 3\)"),
        ([np.zeros((4, 4), np.uint8), 7.5], "image 1 is a float: give a path, a PIL image or an array"),
    ],
)
def test_what_is_no_image_is_refused_with_its_shape(workshop: SimpleNamespace, given: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        predict(workshop.head.run, given, workspace=workshop.root)
