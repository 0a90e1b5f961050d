"""Letters that the usual font lacks."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.base.values import Matrix
from pipeline.show.letters import FONT, families, readable
from pipeline.show.pictures import confusion_picture

ABUGIDA = "\U00011103"  # CHAKMA LETTER AA: no font that comes with matplotlib has it


@pytest.fixture
def other_font(tmp_path: Path) -> Iterator[str]:
    """A font of one letter, a square, which is installed for the test."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from matplotlib.font_manager import fontManager

    pen = TTGlyphPen(None)
    for point, draw in (((0, 0), pen.moveTo), ((0, 800), pen.lineTo), ((800, 800), pen.lineTo), ((800, 0), pen.lineTo)):
        draw(point)
    pen.closePath()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "square"])
    font.setupCharacterMap({ord(ABUGIDA): "square"})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    font.setupHorizontalMetrics({".notdef": (500, 0), "square": (900, 0)})
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Aa Squares", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "squares.ttf")
    before = list(fontManager.ttflist)
    fontManager.addfont(tmp_path / "squares.ttf")
    yield "Aa Squares"
    fontManager.ttflist[:] = before


def picture(name: str) -> np.ndarray:
    return np.asarray(
        Image.open(io.BytesIO(confusion_picture(Matrix([(0, 0, 1), (1, 1, 1)], [name, "b"]), "t", "png")))
    )


def test_a_letter_is_drawn_where_a_font_that_is_installed_has_it(other_font: str) -> None:
    fonts = families([f"a{ABUGIDA}"])
    assert fonts == [FONT, other_font]
    assert readable(f"a{ABUGIDA}", fonts) == f"a{ABUGIDA}"
    assert not np.array_equal(picture(ABUGIDA), picture("\u200d"))  # a square, and nothing


def test_of_what_the_usual_font_has_no_other_is_asked() -> None:
    assert families(["Ärger", "ж", "☃"]) == [FONT]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("🐜", "(ant)"),
        ("🐜🐝 x", "(ant)(honeybee) x"),
        ("👩🏽‍🚀", "(woman)(rocket)"),
        ("🇩🇪", "de"),
        ("한", "han"),
        ("あ", "a"),
        ("漢 ä", "\\u6f22 ä"),
        ("ärger", "ärger"),
    ],
)
def test_a_letter_that_no_font_has_is_spelled_out(text: str, expected: str) -> None:
    assert readable(text, [FONT]) == expected
