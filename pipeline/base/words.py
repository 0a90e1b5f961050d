"""How a number or a name is written for a person; every table, line and page uses these.

Knows plain values only. ``None`` is written as a dash: the figure does not exist. Not-a-number is written ``nan``: it
exists and is wrong.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Sequence

ABSENT = "–"
_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def percent(share: float | None) -> str:
    """A share in [0, 1] as ``95.3 %``."""
    if share is None:
        return ABSENT
    return f"{100 * share:.1f} %" if math.isfinite(share) else str(share)


def significant(value: float | None, digits: int = 4) -> str:
    """A number with ``digits`` significant digits, trailing zeros kept: ``0.6931``, ``2.300``, ``1.234e-05``."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return str(float(value))
    text = f"{value:#.{digits}g}" if value else f"{0:.{digits - 1}f}"
    return text.rstrip(".")


def setting(value: object) -> str:
    """A setting as short as it can be without losing digits a person would type: ``0.001``, ``1e-06``, ``yes``."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(setting(v) for v in value)
    return visible(value) if isinstance(value, bytes) else visible(str(value))


def seconds(value: float | None) -> str:
    """A duration: ``4 ms``, ``0.42 s``, ``4.2 s``, ``12 s``, ``3 min 05 s``, ``2 h 05 min``, ``3 d 04 h``."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return str(float(value))
    # Each limit is where the rounded figure would reach the next form: 59.6 s is "1 min 00 s", never "60 s".
    if value < 0.00995:
        return f"{1000 * value:.0f} ms"
    if value < 0.995:
        return f"{value:.2f} s"
    if value < 9.95:
        return f"{value:.1f} s"
    if value < 59.5:
        return f"{value:.0f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(value / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(value / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def count(value: int | None) -> str:
    """A count with its thousands grouped: ``23,508,032``."""
    return ABSENT if value is None else f"{value:,}"


def many(number: int, noun: str) -> str:
    """So many of something: ``1 image``, ``1,203 images``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def named(names: Sequence[str], most: int = 5) -> str:
    """Names in quotes, of many the first few and how many more: ``'ant', 'bee' and 3 more``."""
    return few([repr(visible(name)) for name in names[:most]], most, len(names))


def few(names: Sequence[str], most: int = 10, of: int | None = None) -> str:
    """Names as they are, of many the first few and how many more; ``of`` says how many, where not all are given."""
    total = len(names) if of is None else of
    shown = ", ".join(names[:most])
    return f"{shown} and {total - most:,} more" if total > most else shown


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as lines of CSV, cells quoted where they need it; each ends with a line feed."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def size(n_bytes: int | None) -> str:
    """A number of bytes in binary units: ``512 B``, ``7.0 MiB``."""
    if n_bytes is None:
        return ABSENT
    if n_bytes < 1024:
        return f"{n_bytes} B"
    value, unit = float(n_bytes), 0
    while value >= 1023.95 and unit < len(_BINARY_UNITS) - 1:  # 1023.95 would be rounded to 1024.0
        value, unit = value / 1024, unit + 1
    return f"{value:,.1f} {_BINARY_UNITS[unit]}"


def rate(per_second: float | None, unit: str = "images") -> str:
    """A speed: ``20.8 images/s``, ``1,530 images/s``; below one a second its inverse, ``3.2 s/epoch``."""
    if per_second is None:
        return ABSENT
    if 0 < per_second < 0.95:
        return f"{seconds(1 / per_second)}/{unit.removesuffix('s')}"
    return f"{per_second:.1f} {unit}/s" if per_second < 99.95 else f"{per_second:,.0f} {unit}/s"


def chosen_of(candidates: int) -> str:
    """What follows a figure that chose the best of so many: `` (best of 21: optimistic)``; nothing after another."""
    return f" (best of {candidates:,}: optimistic)" if candidates > 1 else ""


def points(difference: float | None) -> str:
    """A difference of two shares in percentage points: ``+1.4 points``, ``−0.3 points``, ``±0.0 points``."""
    if difference is None:
        return ABSENT
    tenths = round(1000 * difference)
    sign = "+" if tenths > 0 else "−" if tenths < 0 else "±"
    return f"{sign}{abs(tenths) / 10:.1f} points"


def points_between(low: float, high: float) -> str:
    """An interval of differences in percentage points: ``−0.2 to +3.1``."""
    return " to ".join(points(end).removesuffix(" points") for end in (low, high))


def shape(sizes: tuple[int, ...]) -> str:
    """An array's shape: ``3 × 224 × 224``; a single number stands alone."""
    return " × ".join(str(n) for n in sizes) if sizes else "scalar"


def visible(text: str | bytes) -> str:
    """Text from outside (a path, a class name, a library's message) on one line, every byte of it legible.

    Control characters, line breaks and bytes that are not UTF-8 become backslash escapes, so that a file's name can
    neither break a table nor send commands to the terminal.
    """
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    return "".join(map(_visible_character, text))


def _visible_character(c: str) -> str:
    if c.isprintable() or c == "\u200d":  # the joiner inside one emoji is not printable, but harmless
        return c
    if "\udc80" <= c <= "\udcff":  # os.fsdecode's stand-in for a byte that is not UTF-8
        return f"\\x{ord(c) - 0xDC00:02x}"
    return c.encode("unicode_escape").decode("ascii")
