"""Which installed fonts have the letters of a text, and what is written where none has one.

Knows fonts through matplotlib, which is imported when one is asked for and nowhere else.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable

FONT = "DejaVu Sans"  # comes with matplotlib: what it has looks the same everywhere
_NO_LETTERS = "Last Resort"  # a font of boxes that stand for what is missing
_SAID_WITH_OTHERS = "\u200d\ufe0e\ufe0f"  # joins two emoji, or says how one is drawn: nothing by itself


def families(texts: Iterable[str]) -> list[str]:
    """The fonts to draw the texts with: FONT, and those that have letters that it lacks, as far as there are any."""
    from matplotlib.font_manager import findfont, fontManager

    wanted = {ord(c) for text in texts for c in text if not c.isascii()} - _letters(findfont(FONT))
    found = [FONT]
    upright = [f for f in fontManager.ttflist if (f.style, f.weight, f.stretch) == ("normal", 400, "normal")]
    for name in sorted({font.name for font in upright if not font.name.startswith(_NO_LETTERS)} - {FONT}):
        if had := wanted & _letters(findfont(name)) if wanted else frozenset():
            found.append(name)
            wanted -= had
    return found


def readable(text: str, fonts: Iterable[str]) -> str:
    """The text, but for letters that none of the fonts has: what they are called (``(ant)``), or else their escapes."""
    from matplotlib.font_manager import findfont

    if text.isascii():
        return text
    letters = frozenset().union(*(_letters(findfont(font)) for font in fonts))
    return "".join(c if ord(c) in letters else _spelled(c) for c in text if c not in _SAID_WITH_OTHERS)


@functools.cache
def _letters(path: str) -> frozenset[int]:
    """The characters that a font has shapes for; none of a font that matplotlib cannot draw with."""
    from matplotlib.font_manager import get_font

    try:
        font = get_font(path)
        font.set_size(10, 100)  # a font of pictures has no other size than its own
        return frozenset(font.get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


def _spelled(c: str) -> str:
    name = unicodedata.name(c, "")
    if name.startswith("EMOJI MODIFIER"):
        return ""
    if sound := re.search(r" (?:LETTER|SYLLABLE) (.+)", name):
        return sound[1].lower()
    if unicodedata.category(c) == "So":
        return f"({name.lower()})"
    return c.encode("unicode_escape").decode("ascii")
