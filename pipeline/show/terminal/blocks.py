"""Values as what rich prints: tables, steps, and the rest of ``pipeline.base.values``.

Knows roles and how they look; nothing of what the figures mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from pipeline.base.values import Bar, Cell, Column, Curve, Heading, Matrix, Part, Role, Steps, Table, Value
from pipeline.base.words import ABSENT, visible
from pipeline.show.terminal.curves import DrawnCurve
from pipeline.show.terminal.matrix import DrawnMatrix

LEAST = {"name": 10, "fold": 16, "wrap": 11}  # characters that a column of names or texts gets at least
GAP, GRID_GAP = 3, 2  # between two columns: of a table with headings, of one without
STEP_INDENT = 3
JOINTS = " -_./,:"  # where a name is broken, if there is one
BAR_WIDTH = 24
STYLES: dict[Role, str] = {
    "": "",
    "head": "bold",
    "best": "bold",
    "dim": "dim",
    "good": "green",
    "bad": "bold red",
    "frozen": "blue",
    "trained": "green",
}
_EIGHTHS = " ▏▎▍▌▋▊▉"


def block(value: Value) -> RenderableType:
    """A value as rich prints it, as wide as it needs to be and no wider than there is room."""
    if isinstance(value, Table):
        return _titled(value.title, DrawnTable(value), value.caption)
    if isinstance(value, Steps):
        return DrawnSteps(value)
    if isinstance(value, Curve):
        return _titled(value.title, DrawnCurve(value))
    if isinstance(value, Matrix):
        return DrawnMatrix(value)
    if isinstance(value, Heading):
        return Text(visible(value.text), "bold")
    raise TypeError(f"not a value that can be shown: {type(value).__name__}")


def _titled(title: str, body: RenderableType, caption: str = "") -> RenderableType:
    """The body under its title, with a caption below, neither broken at the body's width."""
    # A table of rich's would break its own title and caption at its width, narrow as that may be.
    above = [Text(visible(title), "bold")] if title else []
    return Group(*above, body, *(Text(visible(line), "dim") for line in caption.splitlines()))


@dataclass(frozen=True)
class DrawnTable:
    """A table as a renderable: no frame, a rule under the headings; where too narrow, its rows as a list.

    No figure and no name is ever cut: what gives way first are headings, which are broken between words, then names
    and texts, which go on in the next line.
    """

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, or the list."""
        columns = self.table.columns
        rows = list(_texts(self.table.rows, options.max_width))
        headed = any(column.heading for column in columns)
        widths = _widths(columns, rows, options.max_width - (GAP if headed else GRID_GAP) * (len(columns) - 1))
        if widths is None:
            yield from _listed(columns, rows)
        else:
            yield _laid_out(columns, rows, widths, headed)


def _laid_out(
    columns: Sequence[Column], rows: Sequence[Sequence[Text]], widths: Sequence[int], headed: bool
) -> RichTable:
    table = RichTable.grid(padding=(0, GRID_GAP))
    if headed:
        table = RichTable(
            header_style="dim", border_style="dim", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1)
        )
    for column, width in zip(columns, widths, strict=True):
        _add_column(table, column, width)
    for row in rows:
        cells = []
        for cell, column, width in zip(row, columns, widths, strict=True):
            shown = _broken(cell, width) if column.fit == "name" else cell
            shown.no_wrap = column.fit == "whole" or None
            cells.append(shown)
        table.add_row(*cells)
    return table


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[Text]], room: int) -> list[int] | None:
    """How wide each column is, that all of them have room; None where they would not."""
    cells = [max((row[i].cell_len for row in rows), default=0) for i in range(len(columns))]
    headings = [visible(column.heading) for column in columns]
    natural = [max(n, cell_len(h)) for h, n in zip(headings, cells, strict=True)]
    least = [min(_least(c, h, n), most) for c, h, n, most in zip(columns, headings, cells, natural, strict=True)]
    if sum(least) > room:
        return None
    found = least
    for _ in range(room - sum(least)):  # to whom most is missing, figures and their headings first
        missing = [(c.fit == "whole", n - w) for c, n, w in zip(columns, natural, found, strict=True)]
        wanting = max((m for m in missing if m[1] > 0), default=None)
        if wanting is None:
            break
        found[missing.index(wanting)] += 1
    return found


def _least(column: Column, heading: str, cells: int) -> int:
    """Characters that a column needs at least: a figure is whole, a heading broken between words, a name anywhere."""
    if column.fit == "name":
        return max(LEAST["name"], cells if column.right else 0)
    return max(cells if column.fit == "whole" else LEAST[column.fit], *(cell_len(w) for w in heading.split()), 1)


def _listed(columns: Sequence[Column], rows: Sequence[Sequence[Text]]) -> Iterator[RenderableType]:
    """Each row's name, and below it the other cells after their headings, none of which is broken where it fits."""
    named = next((i for i, c in enumerate(columns) if not c.right and c.heading), 0)
    for row in rows:
        yield row[named]
        pairs = []
        for i, (column, cell) in enumerate(zip(columns, row, strict=True)):
            if i != named and cell.plain not in ("", ABSENT):
                heading = f"{visible(column.heading)} " if column.heading else ""
                pairs.append(Text.assemble((heading, "dim"), cell))
        yield Padding(_Flow(pairs), (0, 0, 0, 2))


@dataclass(frozen=True)
class _Flow:
    """Pieces one after the other, as many in a line as there is room for; one that is longer than a line is folded."""

    pieces: Sequence[Text]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = Text()
        for piece in self.pieces:
            if line and line.cell_len + GAP + piece.cell_len > options.max_width:
                yield line
                line = Text()
            line = Text.assemble(line, " " * GAP, piece) if line else piece.copy()
        if line:
            yield line


def _broken(name: Text, width: int) -> Text:
    """A name in lines of at most ``width`` cells, each as long as it can be and broken after what joins its parts."""
    text, ends, start = name.plain, [], 0
    while cell_len(text[start:]) > width:
        end = start + 1
        while cell_len(text[start : end + 1]) <= width:
            end += 1
        joint = max(text.rfind(mark, start, end) for mark in JOINTS)
        start = joint + 1 if joint > start else end
        ends.append(start)
    return Text("\n").join(name.divide(ends))


def _add_column(table: RichTable, column: Column, width: int) -> None:
    heading = Text(visible(column.heading))
    table.add_column(
        _broken(heading, width) if column.fit == "name" else heading,
        justify="right" if column.right else "left",
        overflow="fold",
        style=STYLES[column.role],
        width=width,
    )


def _texts(rows: Sequence[Sequence[Cell]], width: int) -> Iterator[list[Text]]:
    """The rows' cells; the bars of a column behind names of one width, shorter where all of them have little room."""
    columns = list(zip(*rows, strict=True))
    names = [max((cell_len(visible(c.name)) for c in column if isinstance(c, Bar)), default=0) for column in columns]
    plain = [max((_text(c, 0, 0).cell_len for c in column if not isinstance(c, Bar)), default=0) for column in columns]
    for row in rows:
        texts = []
        for i, (cell, name) in enumerate(zip(row, names, strict=True)):
            others = sum(plain) - plain[i] + GRID_GAP * len(columns)
            texts.append(_text(cell, name, max(4, min(BAR_WIDTH, width - others - name - 2))))
        yield texts


def _text(cell: Cell, name_width: int, bar_width: int) -> Text:
    if isinstance(cell, Bar):
        name, eighths = visible(cell.name), round(8 * bar_width * cell.share)
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        return Text.assemble(name, " " * (name_width - cell_len(name) + 2), (bar, "blue"))
    parts = cell if isinstance(cell, tuple) else (cell,)
    found = [part if isinstance(part, Part) else Part(part) for part in parts]
    if len(found) == 1:
        return Text(visible(found[0].text), STYLES[found[0].role])
    return Text.assemble(*((visible(part.text), STYLES[part.role]) for part in found))


@dataclass(frozen=True)
class DrawnSteps:
    """Each step's title above its rows, the columns of all steps as wide as each other."""

    steps: Steps

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the steps."""
        columns = self.steps.columns
        heads = tuple(Part(column.heading, "dim") for column in columns)
        room = options.max_width - STEP_INDENT
        tables = [list(_texts([heads, *step.rows], room)) for step in self.steps.steps]
        plain = [dataclasses.replace(column, heading="") for column in columns]
        widths = _widths(plain, [row for table in tables for row in table], room - GRID_GAP * (len(columns) - 1))
        for number, (step, rows) in enumerate(zip(self.steps.steps, tables, strict=True), start=1):
            if number > 1:
                yield Text("")
            yield Text.assemble((f"{number}  {visible(step.title)}", "bold"), f"   {visible(step.detail)}")
            body = Group(*_listed(columns, rows[1:])) if widths is None else _laid_out(plain, rows, widths, False)
            yield Padding(body, (0, 0, 0, STEP_INDENT))
