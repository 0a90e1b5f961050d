"""What a benchmark says: its table, where it was measured, the floors that were missed.

Knows figures and their goals; nothing of what was measured. A floor that was missed is said in words, so that it is
seen without colour too.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.base.values import Cell, Column, Part, Table
from pipeline.base.values import figures as numbers
from pipeline.base.words import ABSENT
from pipeline.bench.measure import Figure

_SIGNS = {"least": "≥ ", "most": "≤ ", "exactly": "= "}


def measured(figures: Sequence[Figure], caption: str = "") -> Table:
    """Under its entry each figure: median, spread, floor, aim, whether they were met, and below its name its ways."""
    aims = any(f.goal is not None and f.goal.aim is not None for f in figures)
    rows: list[list[Cell]] = []
    wide = 6 if aims else 5
    shown = None
    for f in figures:
        if f.entry != shown:
            rows.append(_alone(Part(f.entry, "head"), wide))
            shown = f.entry
        lowest, highest = min(f.each), max(f.each)
        bounds = [f.goal.floor if f.goal else None, *([f.goal.aim if f.goal else None] if aims else [])]
        rows.append(
            [
                f"  {f.name}",
                Part(f"{figure(f.value)} {f.unit}".rstrip(), "best"),
                ABSENT if lowest == highest else f"{figure(lowest)}…{figure(highest)}",
                *(ABSENT if f.goal is None or b is None else _SIGNS[f.goal.sense] + figure(b) for b in bounds),
                _verdict(f),
            ]
        )
        if f.ways and not f.unit:  # the raw repeats that a ratio compares; a figure that is no ratio compares nothing
            ways = " / ".join(figure(statistics.median(values)) for values in f.ways.values())
            rows.append(_alone(Part(f"  {ways} {f.ways_unit}", "dim"), wide))
    headings = ("Median", "Spread", "Floor", *(("Aim",) if aims else ()))
    return Table([Column("Measured", fit="fold"), *numbers(*headings), Column()], rows, caption=caption)


def _alone(cell: Cell, wide: int) -> list[Cell]:
    return [cell, *[""] * (wide - 1)]


def figure(value: float) -> str:
    """A measured number with three digits that mean something: ``0.934``, ``2.41``, ``20.8``, ``1,530``."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) or abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.3g}"


def _verdict(f: Figure) -> Part:
    if f.floor_met is None:
        return Part("aim met" if f.aim_met else "", "good")
    if not f.floor_met:
        return Part("MISSED", "bad")
    return Part("aim met" if f.aim_met else "met", "good")


def caption(repeats: int, about: Mapping[str, Any]) -> str:
    """How and where the figures were measured."""
    machine, versions = about["hardware"], about["versions"]
    engine = f", onnxruntime {versions['onnxruntime']}" if "onnxruntime" in versions else ""
    where = ", ".join([machine["cpu"], *map(_card, machine["gpus"])])
    units = " ".join(machine["vector_units"])
    return (
        f"medians of {repeats} repeats in turns; {where} ({units}), {machine['cores']} cores, "
        f"{machine['torch_threads']} threads, torch {versions['torch']}{engine}, load before {about['load_before']:.2f}"
    )


def _card(told: Mapping[str, str]) -> str:
    """A GPU and what drives it: ``NVIDIA H100 (CUDA 12.8, cuDNN 91002, driver 570.86)``."""
    names = {"cuda": "CUDA", "rocm": "ROCm", "cudnn": "cuDNN", "driver": "driver"}
    versions = [f"{names[key]} {told[key]}" for key in names if key in told]
    return f"{told['name']} ({', '.join(versions)})"


def missed(figures: Sequence[Figure]) -> str:
    """Which floors were missed, of how many; "" where none was."""
    below = [f for f in figures if f.floor_met is False]
    names = "; ".join(f"{f.entry}: {f.name}" for f in below)
    return f"{len(below)} of {sum(f.floor_met is not None for f in figures)} floors missed: {names}" if below else ""
