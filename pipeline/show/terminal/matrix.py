"""The confusion matrix for a terminal: the whole of it where it fits and can be read, else the pairs most confused.

Knows counts and class names.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from pipeline.base.values import Matrix
from pipeline.base.words import count, percent, visible

LARGEST_MATRIX = 20
PAIRS = 10
# (share of the row from which it applies, style on the diagonal, style off it); both colours are set, so that the
# figure can be read on light and dark backgrounds alike.
SHADES = (
    (0.75, "black on color(114)", "black on color(203)"),
    (0.50, "black on color(151)", "black on color(210)"),
    (0.25, "black on color(194)", "black on color(217)"),
    (0.05, "black on color(194)", "black on color(224)"),
)


@dataclass(frozen=True)
class DrawnMatrix:
    """A matrix as a renderable; beyond 20 classes, or where too narrow, the most confused pairs."""

    matrix: Matrix

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines of the matrix or of the pairs."""
        lines = None
        if len(self.matrix.classes) <= LARGEST_MATRIX:
            lines = _matrix(_rows(self.matrix), [visible(c) for c in self.matrix.classes], options.max_width)
        yield from lines if lines is not None else _pairs(self.matrix, options.max_width)


def _rows(matrix: Matrix) -> list[list[int]]:
    """The counts (C, C), true class by row."""
    rows = [[0] * len(matrix.classes) for _ in matrix.classes]
    for true, predicted, images in matrix.cells:
        rows[true][predicted] = images
    return rows


def _matrix(rows: list[list[int]], names: list[str], width: int) -> list[Text] | None:
    """The lines of the matrix; ``None`` where ``width`` does not hold it."""
    digits = max(len(str(n)) for row in rows for n in row)
    if max(map(cell_len, names)) <= max(digits, 5):  # short names can head the columns themselves
        heads, labels = names, names
    else:
        heads = [str(i) for i in range(len(names))]
        labels = [f"{i:>{len(heads[-1])}}  {name}" for i, name in enumerate(names)]
    cell = max(digits, *map(cell_len, heads)) + 2
    margin = max(*map(cell_len, labels), len("true")) + 1
    if margin + cell * len(rows) + len("   recall") > width:
        return None
    head = Text(set_cell_size("true", margin), "dim", no_wrap=True)
    for name in heads:
        head.append(" " * (cell - 1 - cell_len(name)) + name + " ")
    head.append("   recall")
    lines = [Text(" " * margin + "predicted".center(cell * len(rows)).rstrip(), "dim"), head]
    for i, (label, row) in enumerate(zip(labels, rows, strict=True)):
        total = sum(row)
        line = Text(set_cell_size(label, margin), no_wrap=True)
        for j, n in enumerate(row):
            line.append(f"{n:>{cell - 1}} " if n else "·".rjust(cell - 1) + " ", _shade(n, total, i == j))
        lines.append(line.append(percent(row[i] / total if total else None).rjust(9)))
    return lines


def _shade(n: int, total: int, diagonal: bool) -> str:
    if not n:
        return "dim"
    for share, on, off in SHADES:
        if n >= share * total:
            return on if diagonal else off
    return ""


def _pairs(matrix: Matrix, width: int) -> list[Text]:
    """The pairs most often confused, with the share of the true class that went astray."""
    wrong = [(n, i, j) for i, j, n in matrix.cells if i != j]
    if not wrong:
        return [Text("no image was given a wrong class")]
    top = heapq.nsmallest(PAIRS, wrong, key=lambda w: (-w[0], w[1], w[2]))
    names = {c: visible(matrix.classes[c]) for _, *pair in top for c in pair}
    totals: Counter[int] = Counter()
    for true, _, images in matrix.cells:
        totals[true] += images
    digits = max(len("images"), *(len(count(n)) for n, _, _ in top))
    margin = max(len("true class"), *(cell_len(names[i]) for _, i, _ in top))
    if len("images   share   → ") + margin + max(cell_len(names[j]) for _, _, j in top) > width:
        margin = 0  # long names: one after the other, where need be in the next line
    lines = [Text("images".rjust(digits) + "   share  " + "true class".ljust(margin) + "   predicted as", "dim")]
    for n, i, j in top:
        share = percent(n / totals[i])
        name = names[i] + " " * (margin - cell_len(names[i]))
        lines.append(Text(f"{count(n):>{digits}}  {share:>6}  {name} → {names[j]}"))
    if len(wrong) > PAIRS:
        lines.append(Text(f"the {PAIRS} pairs most often confused, of {count(len(wrong))}", "dim"))
    return lines
