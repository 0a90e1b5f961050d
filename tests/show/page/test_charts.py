"""Drawings as parts of a page: their colours are the page's, their names their own."""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ElementTree

import pytest

from pipeline.base.values import Bin, Curve, Drawing, Reliability, Scatter
from pipeline.show.page.charts import THEME, chart
from pipeline.show.pictures import GROUPS, svg

DRAWINGS: list[Drawing] = [
    Curve({"train": [1.0, 0.5, 0.2], "val": [0.9, 0.6, 0.4]}, [1, 2, 3], "epoch", "loss", "a title", chosen=2.0),
    Scatter([0.0, 1.0, 2.0], [1.0, 0.0, 2.0], [0, 1, 0], ["ant", "bee"], [True, False, False], "a title"),
    Reliability([Bin(0.5, 0.4, 0.2, 0.6, 10)], "a title"),
]


@pytest.mark.parametrize("drawing", DRAWINGS, ids=lambda d: type(d).__name__)
def test_a_chart_has_no_colour_of_its_own_and_no_size(drawing: Drawing) -> None:
    text = chart(drawing, "c")
    assert not re.search(r"#[0-9a-f]{6}\b", text.replace("&#", ""))
    assert set(re.findall(r"var\(--([a-z0-9-]+)\)", text)) <= set(THEME.values())
    root = ElementTree.fromstring(text)
    assert "width" not in root.attrib and "viewBox" in root.attrib and root.attrib["aria-hidden"] == "true"
    assert "<style" not in text and "<metadata" not in text and "a title" not in text


@pytest.mark.parametrize("drawing", DRAWINGS, ids=lambda d: type(d).__name__)
def test_two_charts_of_a_page_share_no_name(drawing: Drawing) -> None:
    names = [set(re.findall(r'\bid="([^"]+)"', chart(drawing, name))) for name in ("a", "b")]
    assert names[0] and not names[0] & names[1] and len(names[0]) == len(names[1])
    text = chart(drawing, "a")
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', text)) <= names[0]


def test_a_file_has_colours_and_its_title() -> None:
    for drawing in DRAWINGS:
        text = svg(drawing)
        assert "a title" in text and "var(" not in text and "#ffffff" in text


def test_of_many_groups_the_largest_have_a_colour() -> None:
    groups = [*range(14), *range(4, 14)]  # four of them have one point each
    drawing = Scatter(groups, groups, groups, [f"class {i}" for i in range(14)], [False] * len(groups))
    text = chart(drawing, "c")
    assert [i for i in range(14) if f">class {i}<" in text] == list(range(4, 14))


def test_a_share_is_never_above_one_on_the_axis() -> None:
    text = svg(Curve({"accuracy": [1.0, 1.0]}, [1, 2], "x", "y", shares=True))
    assert "100.0 %" in text and "102.0 %" not in text and "101.0 %" not in text


def test_what_a_class_is_called_stays_as_it_is_and_its_letters_need_no_font() -> None:
    names = (f"日本 {GROUPS[1]}", 'a id="label-0" b')
    text = chart(Scatter([0.0, 1.0], [0.0, 1.0], [0, 1], names, [False, True], "map"), "map")
    told = html.unescape(text)
    assert all(name in told for name in names)
