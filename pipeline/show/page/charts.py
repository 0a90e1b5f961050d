"""Drawings as parts of a page: SVG that takes its colours from the page, light or dark.

Knows the text that ``pipeline.show.pictures`` gives, which colours it was drawn with, and the page's names for them.
"""

from __future__ import annotations

import dataclasses
import re

from pipeline.base.values import Curve, Drawing, Scatter
from pipeline.show.pictures import COLOURS, FAINT, GROUPS, INK, RULE, svg

SIZES = {Curve: (5.0, 3.1), Scatter: (5.4, 4.4)}  # inches; letters are then as large as the page's, also on a telephone
OTHERS = (4.4, 4.0)
THEME = {
    **{"#000000": "ink", INK: "ink", FAINT: "faint", RULE: "rule"},
    **{colour: f"series-{i}" for i, colour in enumerate(COLOURS)},
    **{colour: f"group-{i}" for i, colour in enumerate(GROUPS)},
}
_PAPER = "fill: #ffffff"
_HEAD = re.compile(r"\A.*?(?=<svg)", re.DOTALL)
_APART = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL)  # that style would be all of the page's
_SIDES = re.compile(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"')
_COLOUR = re.compile("|".join(map(re.escape, THEME)))
_OWN = re.compile(r'(\bid="|url\(#|href="#)')
_TAG = re.compile(r"<[^>]*>")  # what a class is called stands between them, its < and > escaped
_BLANK = re.compile(r"\s*\n\s*")


def chart(drawing: Drawing, name: str) -> str:
    """The drawing, without its title, as an element of a page; ``name`` comes before each of its own names.

    Elements that are repeated are named in it, and two drawings of one page must not name the same.
    """
    text = svg(dataclasses.replace(drawing, title=""), SIZES.get(type(drawing), OTHERS))
    text = _APART.sub("", _HEAD.sub("", text))
    text = _SIDES.sub(r"\1", text, count=1).replace("xlink:href", "href")
    text = _TAG.sub(lambda tag: _COLOUR.sub(_theme, tag[0].replace(_PAPER, "fill: none")), text)
    return _BLANK.sub(" ", _named(text, name)).replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def _theme(colour: re.Match[str]) -> str:
    return f"var(--{THEME[colour[0]]})"


def _named(text: str, name: str) -> str:
    """With the names that nothing refers to left out, and the others behind ``name``; what is not in a tag stays."""
    kept = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    told = re.compile("label-|series-|chosen|marked")  # the page's look speaks of these
    ids = re.compile(r' id="([^"]*)"')

    def renamed(tag: re.Match[str]) -> str:
        left = ids.sub(lambda found: found[0] if found[1] in kept or told.match(found[1]) else "", tag[0])
        return _OWN.sub(lambda found: f"{found[1]}{name}-", left)

    return _TAG.sub(renamed, text)
