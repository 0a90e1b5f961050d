"""Curves and confusion matrices as pictures."""

from __future__ import annotations

import io
import itertools
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from pipeline.base.values import Curve, Matrix
from pipeline.show.pictures import COLOURS, confusion_picture, svg

SVG = "{http://www.w3.org/2000/svg}"
SERIES = {"train": [0.5, 0.75, 1.0], "val": [0.5, 0.8, 0.6]}
PENALTIES = [1e-3, 1e-2, 1e-1]
TITLE = "accuracy against C: chosen C = 0.01, val 80.0 %"


def path(penalties=PENALTIES, series=SERIES, chosen=1e-2, **more):
    options = {"title": TITLE, "shares": True, "log_x": True, **more}
    return Curve(series, penalties, "C (weaker penalty to the right)", "accuracy", chosen=chosen, **options)


def mix(values, chosen=0.5):
    shares = [i / 10 for i in range(11)]
    return Curve({"val": values}, shares, "share of the way", "val accuracy", chosen=chosen, shares=True)


def drawn(curve):
    return ElementTree.fromstring(svg(curve))


def texts(root):
    return ["".join(t.itertext()) for t in root.iter(f"{SVG}text")]


def points(root, name):
    """Places of a line, or of the mark, y downwards."""
    (group,) = [g for g in root.iter(f"{SVG}g") if g.get("id") == name]
    if name == "chosen":
        (mark,) = group.iter(f"{SVG}use")
        return [(float(mark.get("x")), float(mark.get("y")))]
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", group.find(f"{SVG}path").get("d"))]


def lines(root):
    return [points(root, g.get("id")) for g in root.iter(f"{SVG}g") if (g.get("id") or "").startswith("series-")]


def frame(root):
    """Left, top, right and bottom of what is drawn in."""
    (group,) = [g for g in root.iter(f"{SVG}g") if g.get("id") == "patch_2"]
    places = re.findall(r"[ML] (\S+) (\S+)", group.find(f"{SVG}path").get("d"))
    xs, ys = zip(*((float(x), float(y)) for x, y in places), strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def test_title_axes_and_series_are_named():
    said = texts(drawn(path()))
    assert {TITLE, "C (weaker penalty to the right)", "accuracy", "train", "val"} <= set(said)


def test_one_series_needs_no_legend():
    assert "val" not in texts(drawn(mix([0.9] * 11)))


def test_a_loss_is_no_percentage():
    assert any("%" in t for t in texts(drawn(path(title="")))) and not any(
        "%" in t for t in texts(drawn(path(title="", shares=False)))
    )


def test_penalties_are_evenly_spaced_by_logarithm():
    for line in lines(drawn(path())):
        first, second, third = (x for x, _ in line)
        assert second - first == pytest.approx(third - second, abs=0.01) and first < second


def test_shares_of_the_way_are_evenly_spaced():
    (line,) = lines(drawn(mix([0.9, 0.95] * 5 + [0.9])))
    xs = [x for x, _ in line]
    assert [b - a for a, b in itertools.pairwise(xs)] == pytest.approx([(xs[-1] - xs[0]) / 10] * 10, abs=0.01)


def test_a_higher_value_stands_higher_in_proportion_and_inside_the_frame():
    root = drawn(path())
    train, val = lines(root)
    (low, middle, high), (_, _, third) = ([y for _, y in line] for line in (train, val))
    assert low - middle == pytest.approx(middle - high, abs=0.2)
    assert (low - third) / (low - high) == pytest.approx(0.2, abs=0.01)
    left, top, right, bottom = frame(root)
    assert all(left <= x <= right and top <= y <= bottom for line in (train, val) for x, y in line)


@pytest.mark.parametrize("values", [[0.9] * 11, [i / 10 for i in range(11)]])
def test_every_point_lies_within_the_picture_and_higher_is_better(values):
    root = drawn(mix(values, chosen=1.0))
    ((left, top, right, bottom), (found,)) = frame(root), lines(root)
    assert len(found) >= 2  # places on one straight line are drawn as its ends
    assert all(left < x < right and top < y < bottom for x, y in found)
    assert [y for _, y in found] == sorted((y for _, y in found), reverse=True)


def test_the_mark_stands_on_the_curve_that_was_chosen_by():
    root = drawn(path())
    assert points(root, "chosen")[0] == pytest.approx(points(root, "series-1")[1])
    (group,) = [g for g in root.iter(f"{SVG}g") if g.get("id") == "chosen"]
    assert COLOURS[1] in ElementTree.tostring(group, encoding="unicode")


def test_each_power_of_ten_is_labelled_once():
    curve = path([10.0 ** (-6 + i / 4) for i in range(45)], {"val": [i / 45 for i in range(45)]}, 1.0)
    labels = [re.sub(r"\s", "", t).replace("−", "-") for t in texts(drawn(curve))]
    assert sorted(t for t in labels if re.fullmatch(r"10-?\d+", t)) == sorted(f"10{p}" for p in range(-6, 6))


def test_values_that_are_not_finite_are_left_out_of_the_lines():
    train, val = lines(drawn(path(series={"train": [0.5, math.nan, 1.0], "val": [math.inf, 0.8, 0.6]})))
    assert len(train) == len(val) == 2
    assert all(math.isfinite(number) for line in (train, val) for point in line for number in point)


@pytest.mark.parametrize("series", [{"val": [0.7]}, {"train": [1.0], "val": [1.0]}])
def test_one_penalty_is_drawn_as_well(series):
    root = drawn(path([0.3], series, 0.3))
    left, top, right, bottom = frame(root)
    ((x, y),) = points(root, "chosen")
    assert left < x < right and top < y < bottom


def test_names_are_escaped():
    root = drawn(path(series={"a < b & c": [0.1, 0.2, 0.3], "val": [0.1, 0.2, 0.3]}, title="<metric> against C"))
    assert "a < b & c" in texts(root) and "<metric> against C" in texts(root)


@pytest.mark.parametrize("curve", [path(), mix([0.9 + 0.01 * i * (1 - i / 10) for i in range(11)])])
def test_the_file_stands_alone(curve):
    """No script, no link, no font to load: it opens from a mail as from a page."""
    text, root = svg(curve), drawn(curve)
    links = [value for element in root.iter() for name, value in element.attrib.items() if name.endswith("href")]
    assert root.tag == f"{SVG}svg" and "<script" not in text and "@font-face" not in text and "@import" not in text
    assert all(link.startswith("#") for link in links)


@pytest.mark.slow
def test_the_same_values_give_the_same_bytes_in_another_process_whatever_the_users_settings(tmp_path):
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: black\nsvg.hashsalt: mine\n", encoding="utf-8")
    code = (
        "import sys; from pipeline.base.values import Curve; from pipeline.show.pictures import svg\n"
        f"sys.stdout.buffer.write(svg({path()!r}).encode())"
    )
    again = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True).stdout
    assert again.decode() == svg(path())
    assert "date" not in again.decode().lower()


@pytest.mark.parametrize("room", ["show.pictures", pytest.param("stages.learn.search", marks=pytest.mark.slow)])
def test_matplotlib_is_imported_when_something_is_drawn_and_not_before(room):
    code = f"import sys, pipeline.show.pictures, pipeline.{room}; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_series_has_the_area_that_it_lies_between_and_dots_where_it_is_known():
    values, nan = [0.7, math.nan, 0.9], math.nan
    band = ([0.6, nan, 0.8], [0.8, nan, 1.0])
    curve = path(series={"law": [0.7, 0.8, 0.9], "val": values}, chosen=None, bands={"val": band}, dots=("val",))
    root = drawn(curve)
    groups = {g.get("id"): g for g in root.iter(f"{SVG}g")}
    assert "band-1" in groups and "band-0" not in groups
    assert len(list(groups["series-1"].iter(f"{SVG}use"))) == 2 and not list(groups["series-0"].iter(f"{SVG}use"))
    (area,) = groups["band-1"].iter(f"{SVG}path")
    ys = [float(y) for _, y in re.findall(r"[ML] (\S+) (\S+)", area.get("d"))]
    law = {v: y for v, (_, y) in zip((0.7, 0.8, 0.9), points(root, "series-0"), strict=True)}
    a_tenth = law[0.7] - law[0.8]
    assert max(ys) - min(ys) == pytest.approx(4 * a_tenth, abs=0.1)


# -- confusion --------------------------------------------------------------------------------------------------------


def confusion(names, counts=None):
    table = np.full((len(names), len(names)), 7) if counts is None else np.array(counts)
    return Matrix([(i, j, int(table[i, j])) for i, j in zip(*np.nonzero(table), strict=True)], names)


def test_a_matrix_names_its_classes_as_they_are_and_counts_what_there_is():
    counts = [[12, 1, 0], [0, 30, 0], [2, 0, 1234]]
    names = ["$x^2$", "<b>&", ""]
    root = ElementTree.fromstring(confusion_picture(confusion(names, counts), "run, $val$", "svg"))
    found = texts(root)
    assert sorted(t for t in found if t.isdigit()) == sorted(["12", "1", "30", "2", "1234"])  # no zeros
    for name in ("$x^2$", "<b>&", "(no name)"):
        assert found.count(name) == 2
    assert "run, $val$" in found


@pytest.mark.parametrize("form", ["png", "svg"])
def test_names_of_any_kind_are_drawn_without_a_warning_and_the_same_twice(form):
    names = ["漢字", "\udcff", "line\nbreak", "x" * 300, "ärger", "$"]
    first = confusion_picture(confusion(names), "title 漢字", form)
    assert first == confusion_picture(confusion(names), "title 漢字", form)
    if form == "svg":
        assert "漢字".encode() in first and b"\\xff" in first and b"line\\nbreak" in first
        assert b"x" * 27 + "…".encode() in first and b"x" * 28 not in first


@pytest.mark.slow
def test_a_hundred_classes_have_room_for_their_counts():
    """The picture grows with the classes: each count is a few pixels high."""
    counts = np.diag(np.full(100, 7)).tolist()  # no count is drawn for 0
    picture = Image.open(io.BytesIO(confusion_picture(confusion([str(i) for i in range(100)], counts), "", "png")))
    assert min(picture.size) > 100 * 20


@pytest.mark.slow
def test_of_many_classes_the_most_confused_are_shown():
    counts = np.diag(np.full(120, 5))
    counts[7, 113] = 3
    root = ElementTree.fromstring(confusion_picture(confusion([f"c{i}" for i in range(120)], counts), "t", "svg"))
    found = texts(root)
    assert "t; the 100 classes most often confused, of 120" in found
    assert found.count("c7") == found.count("c113") == 2 and "3" in found
    assert len({t for t in found if t.startswith("c")}) == 100


@pytest.mark.parametrize("x", [1e-6, 1.0, 1e6])
def test_a_single_place_on_an_axis_by_logarithms_has_room_around_it(x: float) -> None:
    text = svg(Curve({"train": [0.9], "val": [0.8]}, [x], "C", "accuracy", chosen=x, log_x=True, shares=True))
    assert 'id="chosen"' in text
