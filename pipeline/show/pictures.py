"""Curves as pictures: SVG that stands alone, the same bytes for the same values.

Knows a curve's values and matplotlib, which is imported when something is drawn and nowhere else.
"""

from __future__ import annotations

import io
import math

from pipeline.base.values import Curve

SIZE = (7.2, 4.0)  # inches
COLOURS = ("#4c78a8", "#d1495b", "#66a182", "#8d6a9f")
DASHES = ("-", "--", ":", "-.")
LOOK = {
    "svg.hashsalt": "pipeline",  # names of what is drawn twice come from it: by default they are new each time
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "axes.edgecolor": "#333333",
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "legend.frameon": False,
}


def svg(curve: Curve) -> str:
    """The curve as the text of an SVG file; the last of several series is a solid line, where it was chosen a mark.

    Values that are not finite are left out of the lines.
    """
    from matplotlib import style
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, PercentFormatter

    # Whatever a user's own settings of matplotlib say, the same values give the same picture.
    with style.context(["default", LOOK]):
        figure = Figure(SIZE, layout="constrained")
        axes = figure.add_subplot()
        last = len(curve.series) - 1
        for number, (name, values) in enumerate(curve.series.items()):
            known = [(x, v) for x, v in zip(curve.x, values, strict=True) if math.isfinite(v)]
            dash, colour = DASHES[(last - number) % len(DASHES)], COLOURS[number % len(COLOURS)]
            axes.plot(*zip(*known, strict=True), dash, color=colour, label=name, gid=f"series-{number}")
            if number == last and curve.chosen in dict(known):
                assert curve.chosen is not None
                axes.axvline(curve.chosen, color="#999999", linewidth=1)
                axes.plot([curve.chosen], [dict(known)[curve.chosen]], "o", color=colour, gid="chosen")
        if curve.log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=13))
        if curve.shares:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.set(xlabel=curve.x_label, ylabel=curve.y_label, title=curve.title)
        if last:
            axes.legend()
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
