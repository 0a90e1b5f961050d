"""A picture of a path of penalties: a metric on train and val against C, and the point that was chosen.

Knows numbers and SVG. The file stands alone: no script, no font, nothing to load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from pipeline.base.words import percent, significant

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 76, 20, 44, 56
COLOURS = ("#4c78a8", "#d1495b", "#66a182", "#8d6a9f")
DASHES = ("6 4", "", "2 3", "8 3 2 3")
INK, FAINT = "#333333", "#dddddd"
ROWS = 5  # labelled lines across the picture


def path_picture(
    penalties: Sequence[float], curves: Mapping[str, Sequence[float]], *, chosen: float, metric: str
) -> str:
    """The picture as SVG text; ``curves`` give a value for each C, the last of them is what was chosen by."""
    write = percent if all(0 <= v <= 1 for c in curves.values() for v in c) and "loss" not in metric else significant
    values = [v for curve in curves.values() for v in curve if math.isfinite(v)]
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05
    low, high = low - margin, high + margin
    first, last = math.log10(min(penalties)), math.log10(max(penalties))
    span = (last - first) or 1.0

    def x(C: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(C) - first) / span

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    name = list(curves)[-1]
    best = curves[name][list(penalties).index(chosen)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="15">{escape(metric)} against C: '
        f"chosen C = {chosen:.3g}, {escape(name)} {write(best)}</text>",
    ]
    for i in range(ROWS):
        value = low + margin + (high - low - 2 * margin) * i / (ROWS - 1)
        parts.append(_line(LEFT, y(value), WIDTH - RIGHT, y(value), FAINT))
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{write(value)}</text>')
    step = max(1, math.ceil(span / 12))
    for power in range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1, step):
        at = x(10.0**power)
        parts.append(_line(at, HEIGHT - BOTTOM, at, HEIGHT - BOTTOM + 5, INK))
        parts.append(
            f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">10<tspan dy="-5" font-size="10">'
            f"{power}</tspan></text>"
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">'
        "C (weaker penalty to the right)</text>"
    )
    for number, (label, curve) in enumerate(curves.items()):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        points = " ".join(f"{x(C):.1f},{y(v):.1f}" for C, v in zip(penalties, curve, strict=True) if math.isfinite(v))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        )
        at = LEFT + 8 + 90 * number
        parts.append(
            f'<line x1="{at}" y1="36" x2="{at + 24}" y2="36" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{dash}"/><text x="{at + 30}" y="40">{escape(label)}</text>'
        )
    parts.append(_line(x(chosen), TOP, x(chosen), HEIGHT - BOTTOM, "#999999"))
    parts.append(f'<circle cx="{x(chosen):.1f}" cy="{y(best):.1f}" r="5" fill="{COLOURS[len(curves) - 1]}"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'
