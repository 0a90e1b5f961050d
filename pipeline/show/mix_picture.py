"""A picture of the way from the weights before training to those after it: accuracy on val at each share.

Knows numbers and SVG. The file stands alone: no script, no font, nothing to load.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.base.words import percent

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 48, 56
INK, FAINT, COLOUR = "#333333", "#dddddd", "#4c78a8"
ROWS = 5  # labelled lines across the picture


def mix_picture(shares: Sequence[float], accuracies: Sequence[float], *, chosen: float) -> str:
    """The picture as SVG text; ``shares`` from 0 (before) to 1 (after) with an accuracy each, ``chosen`` marked."""
    low, high = min(accuracies), max(accuracies)
    margin = 0.05 * (high - low) or 0.005
    low, high = low - margin, high + margin

    def x(share: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    best = accuracies[list(shares).index(chosen)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="15">val accuracy between before and after: '
        f"chosen {chosen:.1f}, {percent(best)}</text>",
    ]
    for i in range(ROWS):
        value = low + margin + (high - low - 2 * margin) * i / (ROWS - 1)
        parts.append(
            f'<line x1="{LEFT}" y1="{y(value):.1f}" x2="{WIDTH - RIGHT}" y2="{y(value):.1f}" stroke="{FAINT}"/>'
            f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{percent(value)}</text>'
        )
    parts += [f'<text x="{x(s):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{s:.1f}</text>' for s in shares]
    points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(shares, accuracies, strict=True))
    parts += [
        f'<polyline points="{points}" fill="none" stroke="{COLOUR}" stroke-width="2"/>',
        f'<circle cx="{x(chosen):.1f}" cy="{y(best):.1f}" r="5" fill="{COLOUR}"/>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">'
        "share of the way from before (0) to after (1)</text>",
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"
