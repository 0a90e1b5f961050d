"""A curve on a terminal, from numbers to lines of text.

Knows sequences of numbers and a size in characters. The first series is a thin line of braille dots, the others are
marks of their own, so that they can be told apart without colour; where the terminal cannot show braille, ASCII marks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from pipeline.base.values import Curve
from pipeline.base.words import many, visible

WIDTH, HEIGHT = 76, 10  # of a drawing where there is room, of its plot
MARKS = ("•", "●", "×", "+", "◇")  # the first series is a braille line; its mark serves where it is one point
ASCII_MARKS = ("*", "o", "x", "+", "#")
CHOSEN, ASCII_CHOSEN = "◆", "@"
STYLES = ("blue", "magenta", "green", "red", "cyan")
LOG_FROM = 50.0  # largest / smallest: beyond it a linear axis shows one corner only
# Unicode's braille patterns: bit of the dot at (column, row) of a cell, https://www.unicode.org/charts/PDF/U2800.pdf
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BLANK = 0x2800
_Line = list[tuple[str, str]]


@dataclass(frozen=True)
class _Axis:
    """Maps values to [0, 1], linearly or by logarithm."""

    low: float
    high: float
    log: bool

    def place(self, value: float) -> float:
        if self.high == self.low:
            return 0.5
        if self.log:
            value, low, high = math.log(value), math.log(self.low), math.log(self.high)
        else:
            low, high = self.low, self.high
        return (value - low) / (high - low)


@dataclass(frozen=True)
class DrawnCurve:
    """A curve as a renderable: as wide as there is room (at most ``WIDTH``), coloured, ASCII where needed."""

    curve: Curve

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the drawing line by line."""
        for line in draw(self.curve, min(WIDTH, options.max_width), HEIGHT, ascii_only=options.ascii_only):
            text = Text(no_wrap=True, overflow="crop")
            for part, style in line:
                text.append(part, style=style)
            text.rstrip()
            yield text


def draw(curve: Curve, width: int = WIDTH, height: int = HEIGHT, *, ascii_only: bool = False) -> list[_Line]:
    """The drawing, ``width`` characters wide, its plot ``height`` lines high, as lines of (text, style).

    Values that are not finite leave a gap and are counted below. A range of more than 50 : 1 is drawn on a logarithmic
    axis, which the label says.
    """
    finite = [float(v) for values in curve.series.values() for v in values if math.isfinite(v)]
    lost = sum(len(values) for values in curve.series.values()) - len(finite)
    if not finite:
        return [[(f"no finite {curve.y_label} to draw", "dim")]]
    axis = _axis(finite)
    ticks = dict(_ticks(axis, height, curve.shares))
    margin = max(len(label) for label in ticks.values()) + 2
    columns = max(width - margin, 10)
    canvas = _Canvas(columns, height, ascii_only)
    across = _Axis(min(curve.x), max(curve.x), curve.log_x)
    places: list[tuple[float, float] | None] = []
    for number, values in enumerate(curve.series.values()):
        places = _points(curve.x, values, across, axis)
        canvas.plot(number, places)
    if curve.chosen is not None and (chosen := places[list(curve.x).index(curve.chosen)]):
        canvas.choose(chosen)
    vertical, tick, corner, bar = ("|", "+", "+", "-") if ascii_only else ("│", "┤", "└", "─")
    lines: list[_Line] = [_legend(curve, curve.y_label + (" (log)" if axis.log else ""), margin, ascii_only)]
    for row in range(height):
        label = ticks.get(row, "")
        edge = label.rjust(margin - 2) + " " + (tick if label else vertical)
        lines.append([(edge, "dim"), *canvas.row(row)])
    lines.append([(" " * (margin - 1) + corner + bar * columns, "dim")])
    lines.append([(" " * margin + _x_labels(columns, across, curve.x_label), "dim")])
    if lost:
        lines.append([(" " * margin + f"{many(lost, 'value')} not finite, not drawn", "dim")])
    return lines


def _axis(finite: Sequence[float]) -> _Axis:
    low, high = min(finite), max(finite)
    if low > 0 and high / low > LOG_FROM:
        return _Axis(low, high, log=True)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value, or all the same: a line in the middle
        room = abs(low) / 2 or 0.5
        return _Axis(low - room, high + room, log=False)
    return _Axis(low, high, log=False)


def _ticks(axis: _Axis, height: int, shares: bool) -> Iterator[tuple[int, str]]:
    """Rows of the plot that carry a number, with the number: round values, at most about one in two rows."""
    values = _log_ticks(axis) if axis.log else _round_ticks(axis.low, axis.high, max(height // 2, 2))
    step = min((b - a for a, b in itertools.pairwise(values)), default=1.0)
    decimals = max(0, -math.floor(math.log10(step))) if not axis.log and step < 1 else 0
    tiny = max(abs(axis.low), abs(axis.high)) < 1e-3
    taken = -1
    for value in sorted(values, reverse=True):
        row = int(_cell(1 - axis.place(value), height))
        if row > taken:
            taken = row
            if shares:
                yield row, f"{100 * value:g} %" if axis.log or tiny else f"{100 * value:.{max(decimals - 2, 0)}f} %"
            else:
                yield row, f"{value:g}" if axis.log or tiny else f"{value:.{decimals}f}"


def _cell(place: float, rows: int) -> float:
    """The line for a place in [0, 1]: the ends stand in the middle of the first and the last line."""
    return place * (rows - 1) + 0.5


def _round_ticks(low: float, high: float, about: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between ``low`` and ``high``, about ``about`` of them."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 5) if m * power >= rough), 10 * power)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(axis: _Axis) -> list[float]:
    """Powers of ten within the axis; with their doubles and fivefolds where there are fewer than three."""
    powers = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
    for multiples in ((1,), (1, 2, 5)):
        ticks = [m * 10.0**p for p in powers for m in multiples if axis.low <= m * 10.0**p <= axis.high]
        if len(ticks) >= 3:
            break
    return ticks


def _points(
    x: Sequence[float], values: Sequence[float], across: _Axis, axis: _Axis
) -> list[tuple[float, float] | None]:
    """Places in the unit square (y downwards); ``None`` where there is nothing to draw."""
    return [
        (across.place(at), 1 - axis.place(float(v))) if math.isfinite(v) else None
        for at, v in zip(x, values, strict=True)
    ]


def _legend(curve: Curve, y_label: str, margin: int, ascii_only: bool) -> _Line:
    line: _Line = [(" " * margin + y_label, "bold")]
    for number, name in enumerate(curve.series):
        mark = _mark(number, ascii_only) if number or ascii_only else "⠒⠒"
        line += [("   ", ""), (mark, _style(number)), (" " + visible(name), "")]
    return line


def _x_labels(columns: int, across: _Axis, x_label: str) -> str:
    """First and last number under the ends of the axis, the label between them."""
    first, last = f"{across.low:g}", f"{across.high:g}"
    if across.low == across.high:
        return f"{x_label} {first}".center(columns)
    return first + x_label.center(max(columns - len(first) - len(last), len(x_label) + 2)) + last


def _mark(number: int, ascii_only: bool) -> str:
    marks = ASCII_MARKS if ascii_only else MARKS
    return marks[number % len(marks)]


def _style(number: int) -> str:
    return STYLES[number % len(STYLES)]


class _Canvas:
    """A grid of characters; the first series is drawn in braille dots (2 × 4 in a character), the rest as marks."""

    def __init__(self, columns: int, rows: int, ascii_only: bool) -> None:
        self.columns, self.rows, self.ascii_only = columns, rows, ascii_only
        self.dots = [[0] * columns for _ in range(rows)]
        self.marks: dict[tuple[int, int], int] = {}
        self.chosen: tuple[int, int] | None = None

    def plot(self, number: int, places: Sequence[tuple[float, float] | None]) -> None:
        """Draw one series from its places in the unit square."""
        drawn = sum(place is not None for place in places)
        if number == 0 and not self.ascii_only and drawn > 1:
            self._line(places)
            return
        # Marks that touch would hide the line below them: beyond one in three columns, some are left out.
        stride = 1 if number == 0 else math.ceil(3 * len(places) / self.columns) if drawn > self.columns // 2 else 1
        for place in places[::stride]:
            if place is not None:
                self.marks[self._at(place)] = number

    def choose(self, place: tuple[float, float]) -> None:
        """Mark one place above all that is drawn there."""
        self.chosen = self._at(place)

    def _at(self, place: tuple[float, float]) -> tuple[int, int]:
        return round(place[0] * (self.columns - 1)), int(_cell(place[1], self.rows))

    def _line(self, places: Sequence[tuple[float, float] | None]) -> None:
        before: tuple[int, int] | None = None
        for place in places:
            if place is None:
                before = None
                continue
            here = (round(place[0] * (2 * self.columns - 1)), int(4 * _cell(place[1], self.rows)))
            x0, y0 = before or here
            steps = max(abs(here[0] - x0), abs(here[1] - y0), 1)
            for i in range(steps + 1):
                self._dot(x0 + round((here[0] - x0) * i / steps), y0 + round((here[1] - y0) * i / steps))
            before = here

    def _dot(self, x: int, y: int) -> None:
        self.dots[y // 4][x // 2] |= _DOTS[x % 2][y % 4]

    def row(self, row: int) -> _Line:
        """One line of the plot as (text, style)."""
        line: _Line = []
        for column in range(self.columns):
            number = self.marks.get((column, row))
            if (column, row) == self.chosen:
                line.append((ASCII_CHOSEN if self.ascii_only else CHOSEN, "bold"))
            elif number is not None:
                line.append((_mark(number, self.ascii_only), _style(number)))
            elif self.dots[row][column]:
                line.append((chr(_BLANK + self.dots[row][column]), _style(0)))
            else:
                line.append((" ", ""))
        return line
