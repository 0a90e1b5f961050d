"""The picture of a path of penalties."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest

from pipeline.show.path_picture import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, path_picture

SVG = "{http://www.w3.org/2000/svg}"
CURVES = {"train": [0.5, 0.75, 1.0], "val": [0.5, 0.8, 0.6]}
PENALTIES = [1e-3, 1e-2, 1e-1]


def drawn(penalties=PENALTIES, curves=CURVES, chosen=1e-2, metric="accuracy"):
    return ElementTree.fromstring(path_picture(penalties, curves, chosen=chosen, metric=metric))


def texts(root):
    return ["".join(t.itertext()) for t in root.iter(f"{SVG}text")]


def points(root):
    return [
        [tuple(map(float, p.split(","))) for p in line.get("points").split()] for line in root.iter(f"{SVG}polyline")
    ]


def test_the_title_names_the_metric_the_chosen_penalty_and_its_figure():
    assert texts(drawn())[0] == "accuracy against C: chosen C = 0.01, val 80.0 %"


def test_a_loss_is_no_percentage():
    assert texts(drawn(metric="log loss"))[0].endswith("val 0.8000")


def test_penalties_are_evenly_spaced_by_logarithm_over_the_whole_width():
    for line in points(drawn()):
        assert [x for x, _ in line] == [LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT]


def test_a_higher_value_stands_higher_in_proportion_and_inside_the_frame():
    train, val = points(drawn())
    (low, middle, high), (_, _, third) = ([y for _, y in line] for line in (train, val))
    assert low - middle == pytest.approx(middle - high, abs=0.2)
    assert (low - third) / (low - high) == pytest.approx(0.2, abs=0.01)
    assert all(TOP <= y <= HEIGHT - BOTTOM for line in (train, val) for _, y in line)


def test_the_mark_stands_on_the_curve_that_was_chosen_by():
    root = drawn()
    circle = root.find(f"{SVG}circle")
    assert (float(circle.get("cx")), float(circle.get("cy"))) == points(root)[1][1]
    assert circle.get("fill") == list(root.iter(f"{SVG}polyline"))[1].get("stroke")


def test_each_power_of_ten_is_labelled_once():
    labels = texts(drawn([10.0 ** (-6 + i / 4) for i in range(45)], {"val": [i / 45 for i in range(45)]}, 1.0))
    assert [t for t in labels if t.startswith("10") and "%" not in t] == [f"10{p}" for p in range(-6, 6)]


def test_values_that_are_not_finite_are_left_out_of_the_lines():
    train, val = points(drawn(curves={"train": [0.5, math.nan, 1.0], "val": [math.inf, 0.8, 0.6]}))
    assert len(train) == len(val) == 2
    assert all(math.isfinite(number) for line in (train, val) for point in line for number in point)


@pytest.mark.parametrize("curves", [{"val": [0.7]}, {"train": [1.0], "val": [1.0]}])
def test_one_penalty_is_drawn_as_well(curves):
    root = drawn([0.3], curves, 0.3)
    assert len(points(root)) == len(curves)
    assert float(root.find(f"{SVG}circle").get("cx")) == LEFT


def test_names_are_escaped():
    root = drawn(curves={"a < b & c": [0.1, 0.2, 0.3]}, metric="<metric>")
    assert "a < b & c" in texts(root) and texts(root)[0].startswith("<metric> against C")


def test_the_file_stands_alone():
    """No script, no link, no font to load: it opens from a mail as from a page."""
    tags = {element.tag.removeprefix(SVG) for element in drawn().iter()}
    assert tags <= {"svg", "rect", "text", "tspan", "line", "polyline", "circle"}
    assert not any("href" in name for element in drawn().iter() for name in element.attrib)
