"""Values as what rich prints: tables, steps, and the rest of ``pipeline.base.values``.

Knows roles and how they look; nothing of what the figures mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from pipeline.base.values import Bar, Cell, Column, Curve, Heading, Matrix, Part, Role, Step, Steps, Table, Value
from pipeline.base.words import visible
from pipeline.show.terminal.curves import DrawnCurve
from pipeline.show.terminal.matrix import DrawnMatrix

NAME_WIDTH = 36  # of a column whose long names are cut
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
        return _titled(value.title, _table(value), value.caption)
    if isinstance(value, Steps):
        return Group(*_steps(value))
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


def _table(value: Table) -> RichTable:
    """A rule under the headings, no frame; without headings columns alone."""
    if any(column.heading for column in value.columns):
        table = RichTable(
            header_style="dim", border_style="dim", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1)
        )
    else:
        table = RichTable.grid(padding=(0, 2))
    for column in value.columns:
        _add_column(table, column)
    for row in _texts(value.rows):
        for cell, column in zip(row, value.columns, strict=True):
            cell.no_wrap = column.fit == "cut" or None
        table.add_row(*row)
    return table


def _add_column(table: RichTable, column: Column, width: int | None = None) -> None:
    table.add_column(
        Text(visible(column.heading), no_wrap=column.fit == "cut" or None),
        justify="right" if column.right else "left",
        no_wrap=column.fit == "whole" or (column.fit == "cut" and not column.right),  # a long heading may be cut more
        overflow="fold" if column.fit in ("fold", "wrap") else "ellipsis",
        max_width=NAME_WIDTH if column.fit == "cut" else None,
        style=STYLES[column.role],
        width=width,
    )


def _texts(rows: Sequence[Sequence[Cell]]) -> Iterator[list[Text]]:
    """The rows' cells; the bars of a column behind names of one width."""
    names = [
        max((cell_len(visible(cell.name)) for cell in column if isinstance(cell, Bar)), default=0)
        for column in zip(*rows, strict=True)
    ]
    for row in rows:
        yield [_text(cell, width) for cell, width in zip(row, names, strict=True)]


def _text(cell: Cell, name_width: int) -> Text:
    if isinstance(cell, Bar):
        name, eighths = visible(cell.name), round(8 * BAR_WIDTH * cell.share)
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        return Text.assemble(name, " " * (name_width - cell_len(name) + 2), (bar, "blue"))
    parts = cell if isinstance(cell, tuple) else (cell,)
    found = [part if isinstance(part, Part) else Part(part) for part in parts]
    if len(found) == 1:
        return Text(visible(found[0].text), STYLES[found[0].role])
    return Text.assemble(*((visible(part.text), STYLES[part.role]) for part in found))


def _steps(value: Steps) -> Iterator[RenderableType]:
    """Each step's title above its rows, the columns of all steps as wide as each other, but for the last."""
    heads = tuple(Part(column.heading, "dim") for column in value.columns)
    tables = [list(_texts([heads, *step.rows])) for step in value.steps]
    every = [row for table in tables for row in table]
    widths = [max(cell.cell_len for cell in column) for column in zip(*every, strict=True)]
    for number, (step, rows) in enumerate(zip(value.steps, tables, strict=True), start=1):
        if number > 1:
            yield Text("")
        yield _title(number, step)
        grid = RichTable.grid(padding=(0, 2))
        grid.add_column(width=1)
        for column, width in zip(value.columns, [*widths[:-1], None], strict=True):
            _add_column(grid, dataclasses.replace(column, heading=""), width)
        for row in rows:
            grid.add_row("", *row)
        yield grid


def _title(number: int, step: Step) -> Text:
    return Text.assemble((f"{number}  {visible(step.title)}", "bold"), f"   {visible(step.detail)}")
