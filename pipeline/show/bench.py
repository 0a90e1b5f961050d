"""The table of a benchmark run.

Knows medians, spreads and bounds; nothing of what was measured. A floor that was missed is said in words, so that it
is seen without colour too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.text import Text

from pipeline.base.words import ABSENT, visible
from pipeline.show.tables import plain_table, titled

_SIGNS = {"least": "≥ ", "most": "≤ ", "exactly": "= "}


@dataclass(frozen=True)
class BenchRow:
    """One line: the median of its repeats, the lowest and highest, and the bounds it is held against.

    ``sense`` says what the bounds are (``least``, ``most`` or ``exactly``); ``ways`` are the medians of what was
    compared, in ``ways_unit``.
    """

    entry: str
    name: str
    median: float
    lowest: float
    highest: float
    unit: str = ""
    floor: float | None = None
    aim: float | None = None
    sense: str = "least"
    floor_met: bool | None = None
    aim_met: bool | None = None
    ways: Sequence[float] = ()
    ways_unit: str = ""


def bench_table(rows: Sequence[BenchRow], title: str = "", caption: str = "") -> RenderableType:
    """Under its entry each figure: median, spread, floor, aim, whether they were met, and below its name its ways."""
    table = plain_table()
    table.add_column("Measured", overflow="fold")
    aims = any(r.aim is not None for r in rows)
    for heading in ("Median", "Spread", "Floor", *(("Aim",) if aims else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    shown = None
    for r in rows:
        if r.entry != shown:
            table.add_row(Text(visible(r.entry), "bold"))
            shown = r.entry
        name = Text(f"  {visible(r.name)}")
        if r.ways:
            name.append(f"\n  {' / '.join(map(figure, r.ways))} {r.ways_unit}", "dim")
        bounds = [r.floor, r.aim] if aims else [r.floor]
        table.add_row(
            name,
            Text(f"{figure(r.median)} {r.unit}".rstrip(), "bold"),
            ABSENT if r.lowest == r.highest else f"{figure(r.lowest)}…{figure(r.highest)}",
            *(ABSENT if bound is None else _SIGNS[r.sense] + figure(bound) for bound in bounds),
            _verdict(r),
        )
    return titled(table, title, caption)


def figure(value: float) -> str:
    """A measured number with three digits that mean something: ``0.934``, ``2.41``, ``20.8``, ``1,530``."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) or abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.3g}"


def _verdict(row: BenchRow) -> Text:
    if row.floor_met is None:
        return Text("aim met" if row.aim_met else "", "green")
    if not row.floor_met:
        return Text("MISSED", "bold red")
    return Text("aim met" if row.aim_met else "met", "green")
