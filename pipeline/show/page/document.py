"""What a page is made of, as plain values: sections of tables, drawings, galleries and sentences.

Knows text and bytes; nothing of HTML. Any text may come from outside: whoever renders it makes it legible and harmless.
An ``anchor`` is a name of letters, digits and ``-`` that links of the page lead to, each there once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.base.values import Drawing, Matrix, Steps, Table


@dataclass(frozen=True)
class Prose:
    """A paragraph, or several, with what is to be typed between backticks; ``note``: of what is missing, or odd."""

    texts: Sequence[str]
    note: bool = False


@dataclass(frozen=True)
class Tile:
    """A figure that is seen first: what it is, itself, and a few words about it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    """Some of them, side by side."""

    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Chart:
    """A drawing with the words below it and, for who does not see it, what it shows in a sentence.

    ``name`` is its own on the page, and as a file.
    """

    name: str
    drawing: Drawing
    says: str
    caption: str = ""


@dataclass(frozen=True)
class Confusion:
    """A matrix whose cells (true class, predicted class) may be links to anchors; ``name`` as of a chart."""

    name: str
    matrix: Matrix
    title: str = ""
    caption: str = ""
    links: Mapping[tuple[int, int], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Thumb:
    """A small image: what it is called, what is said of it, and its JPEG file (None where it is not to be had)."""

    name: str
    note: str = ""
    jpeg: bytes | None = None


@dataclass(frozen=True)
class Gallery:
    """Small images side by side. One that is ``folded`` shows its title until a link leads to its anchor."""

    thumbs: Sequence[Thumb]
    title: str = ""
    anchor: str = ""
    caption: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Split:
    """Blocks that stand side by side where there is room."""

    blocks: Sequence[Block]


@dataclass(frozen=True)
class Shelf:
    """Galleries that are folded: their titles stand close together, and a link opens one."""

    title: str
    galleries: Sequence[Gallery]


Block = Prose | Tiles | Table | Steps | Chart | Confusion | Gallery | Shelf | Split


@dataclass(frozen=True)
class Section:
    """A part of a page under its title; ``label`` is what the contents call it."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    label: str = ""


@dataclass(frozen=True)
class Folded:
    """Sections under a title of their own, folded until they are asked for."""

    anchor: str
    title: str
    sections: Sequence[Section]


@dataclass(frozen=True)
class Page:
    """A page: its title, a line above and a sentence below it, its sections, and parts that are folded."""

    title: str
    above: str
    lead: str
    sections: Sequence[Section]
    parts: Sequence[Folded] = ()


def blocks_of(page: Page) -> Iterator[Block]:
    """All blocks of a page in their order, those that stand side by side one after the other."""
    for section in (*page.sections, *(s for part in page.parts for s in part.sections)):
        yield from _flat(section.blocks)


def _flat(blocks: Sequence[Block]) -> Iterator[Block]:
    for one in blocks:
        if isinstance(one, Split):
            yield from _flat(one.blocks)
        elif isinstance(one, Shelf):
            yield from one.galleries
        else:
            yield one
