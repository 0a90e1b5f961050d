"""A page's values to one HTML file that asks for nothing outside it: no address, no font, no script but its own.

Jinja2 escapes each text, and before that every byte of it is made legible: a class may be called ``<script>``, a path
may hold line breaks. The browser is told to load nothing either (Content-Security-Policy).
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.base.values import Column
from pipeline.base.words import visible
from pipeline.show.page.charts import chart
from pipeline.show.page.document import Chart, Confusion, Gallery, Page, Thumb, blocks_of

Sources = Mapping[int, Markup | None]
TEMPLATES = "templates"


@dataclass(frozen=True)
class Rendered:
    """A page's file, how many of its images are in it, and how many had no room."""

    html: bytes
    images: int
    left_out: int


class NoRoom(Exception):
    """The page takes ``needed`` bytes without any image; no PipelineError, since who set the limit knows what to do."""

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        self.needed = needed


def render(page: Page, limit: int) -> Rendered:
    """The page in at most ``limit`` bytes, with as many of its images as there is room for.

    Raises:
        NoRoom: there is none for the page without images.
    """
    drawn = {id(c): Markup(chart(c.drawing, c.name)) for c in blocks_of(page) if isinstance(c, Chart)}
    told = {id(t): _address(t) for g in _galleries(page) for t in g.thumbs}
    bare = _html(page, drawn, dict.fromkeys(told))
    if len(bare) > limit:
        raise NoRoom(len(bare))
    chosen = _with_room(page, told, limit - len(bare))
    html = _html(page, drawn, chosen)
    there = sum(address is not None for address in chosen.values())
    return Rendered(html, there, sum(address is not None for address in told.values()) - there)


def _with_room(page: Page, told: Sources, room: int) -> Sources:
    """Of each gallery the first image, then of each the second, ..., those that are open first, while there is room."""
    chosen: dict[int, Markup | None] = dict.fromkeys(told)
    image = _environment().from_string(_IMAGE)
    galleries = sorted(_galleries(page), key=lambda g: g.folded)
    queue = ((place, thumb) for g in galleries for place, thumb in enumerate(g.thumbs))
    for _, thumb in sorted(queue, key=lambda one: one[0]):
        address = told[id(thumb)]
        if address is None:
            continue
        room -= len(image.render(source=address, thumb=thumb).encode())
        if room < 0:
            break
        chosen[id(thumb)] = address
    return chosen


_IMAGE = """<img src="{{ source }}" alt="{{ thumb.note or 'image' }}: {{ thumb.name }}">"""  # as in blocks.html


def _address(thumb: Thumb) -> Markup | None:
    """The image itself as an address: letters, digits, and no more, so that nothing of it is to be escaped."""
    return None if thumb.jpeg is None else Markup("data:image/jpeg;base64," + base64.b64encode(thumb.jpeg).decode())


def _html(page: Page, drawn: Mapping[int, Markup], sources: Sources) -> bytes:
    style, script = (Markup(_text(name)) for name in ("style.css", "script.js"))
    # What stands between the tags to the last byte: a browser runs no other script.
    digest = base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode("ascii")
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    template = _environment().get_template("page.html")
    told = {"page": page, "drawn": drawn, "sources": sources, "style": style, "script": script, "policy": policy}
    return template.render(told).lstrip().encode("utf-8")


def _text(name: str) -> str:
    return (importlib.resources.files(__package__) / TEMPLATES / name).read_text(encoding="utf-8").strip()


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader(str(__package__), TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_legible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "kind": lambda value: type(value).__name__,
        "identity": id,
        "lines": str.splitlines,
        "look": _look,
        "counts": _counts,
    }
    return made


def _legible(value: Any) -> Any:
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return visible(value).replace(" %", "\u00a0%")  # a line does not end between a number and its sign


def _look(column: Column) -> str:
    return " ".join(filter(None, ("number" if column.right else "", column.fit, column.role)))


def _counts(found: Confusion) -> dict[tuple[int, int], tuple[int, float]]:
    """(true, predicted) -> images, and their share of the true class."""
    totals: dict[int, int] = {}
    for true, _, images in found.matrix.cells:
        totals[true] = totals.get(true, 0) + images
    return {(true, taken): (n, n / totals[true]) for true, taken, n in found.matrix.cells}


def _galleries(page: Page) -> list[Gallery]:
    return [one for one in blocks_of(page) if isinstance(one, Gallery)]
