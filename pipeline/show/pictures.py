"""Drawings and confusion matrices as pictures that stand alone: the same bytes for the same values.

Knows their values and matplotlib, which is imported when something is drawn and nowhere else.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.base.values import Curve, Drawing, Matrix, Reliability, Scatter
from pipeline.base.words import count, visible
from pipeline.show.letters import families, readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (7.2, 4.0)  # inches
COLOURS = ("#4c78a8", "#d1495b", "#66a182", "#8d6a9f")
DASHES = ("-", "--", ":", "-.")
INK, FAINT, RULE = "#333333", "#999999", "#dddddd"
# Of groups of points: ten that are told apart by most people (Okabe and Ito's, darker, and two between them).
GROUPS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b"),
    *("#56b4e9", "#8c564b", "#7b4fa3", "#5f9e32", "#c2304f"),
)
LOOK = {
    "svg.hashsalt": "pipeline",  # names of what is drawn twice come from it: by default they are new each time
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "axes.edgecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "legend.frameon": False,
}


def svg(drawing: Drawing, size: tuple[float, float] = SIZE) -> str:
    """The drawing as the text of an SVG file, ``size`` inches large; what was chosen of a curve has a mark.

    The last of several series is a solid line. Values that are not finite are left out of the lines and of the areas
    that they lie between.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    # Whatever a user's own settings of matplotlib say, the same values give the same picture.
    with style.context(["default", LOOK]):
        figure = Figure(size, layout="constrained")
        axes = figure.add_subplot()
        if isinstance(drawing, Curve):
            _curve(axes, drawing)
        elif isinstance(drawing, Scatter):
            _scatter(axes, drawing)
        else:
            _reliability(axes, drawing)
        axes.set_title(visible(drawing.title), parse_math=False)
        out = io.StringIO()
        with _letters_may_lack():
            figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


@contextmanager
def _letters_may_lack() -> Iterator[None]:
    """Of an SVG's text it is no loss that a font here lacks a letter: who shows it has other fonts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def _curve(axes: Axes, curve: Curve) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter

    last = len(curve.series) - 1
    for number, (name, values) in enumerate(curve.series.items()):
        known = [(x, v) for x, v in zip(curve.x, values, strict=True) if math.isfinite(v)]
        dash, colour = DASHES[(last - number) % len(DASHES)], COLOURS[number % len(COLOURS)]
        mark, gid = "o" if name in curve.dots else "", f"series-{number}"
        axes.plot(*zip(*known, strict=True), dash, marker=mark, color=colour, label=visible(name), gid=gid)
        if name in curve.bands:
            ends = zip(curve.x, *curve.bands[name], strict=True)
            x, low, high = zip(*(place for place in ends if all(map(math.isfinite, place))), strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0, gid=f"band-{number}")
        if number == last and curve.chosen in dict(known):
            assert curve.chosen is not None
            axes.axvline(curve.chosen, color=FAINT, linewidth=1)
            axes.plot([curve.chosen], [dict(known)[curve.chosen]], "o", color=colour, gid="chosen")
    if all(float(x).is_integer() for x in curve.x) and not curve.log_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no half an epoch
    if curve.log_x:
        if len(set(curve.x)) == 1:  # matplotlib makes no room around a single place that is far below 1
            axes.set_xlim(curve.x[0] / 10, curve.x[0] * 10)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=13))
    if curve.shares:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        bottom, top = axes.get_ylim()
        room = 0.03 * (min(top, 1.0) - max(bottom, 0.0))  # what is no share has no place on the axis
        axes.set_ylim(max(bottom, -room), min(top, 1 + room))
    axes.set_xlabel(visible(curve.x_label), parse_math=False)
    axes.set_ylabel(visible(curve.y_label), parse_math=False)
    if last:
        for text in axes.legend().get_texts():
            text.set_parse_math(False)


def _scatter(axes: Axes, points: Scatter) -> None:
    """Of many groups those with most points have a colour of their own; the name stands in the middle of each."""
    x, y, group = np.array(points.x), np.array(points.y), np.array(points.group)
    sizes = np.bincount(group, minlength=len(points.groups))
    largest = np.argsort(-sizes, kind="stable")[: len(GROUPS)]
    coloured = sorted(largest[sizes[largest] > 0].tolist())
    others = ~np.isin(group, coloured)
    axes.plot(x[others], y[others], "o", color=FAINT, markersize=2.6, markeredgewidth=0, gid="others")
    for place, number in enumerate(coloured):
        at = group == number
        axes.plot(x[at], y[at], "o", color=GROUPS[place], markersize=3.4, markeredgewidth=0, gid=f"group-{place}")
    marked = np.array(points.marked, bool)
    axes.plot(x[marked], y[marked], "x", color=INK, markersize=4.8, markeredgewidth=0.8, alpha=0.8, gid="marked")
    for place, number in enumerate(coloured):
        middle = (float(np.median(x[group == number])), float(np.median(y[group == number])))
        name = visible(points.groups[number])
        text = name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"
        axes.text(*middle, text, ha="center", va="center", weight="bold", gid=f"label-{place}", parse_math=False)
    axes.set(xticks=[], yticks=[])
    axes.margins(0.03)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _reliability(axes: Axes, found: Reliability) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.plot([0, 1], [0, 1], "--", color=FAINT, linewidth=1, gid="diagonal")
    x = [b.claimed for b in found.bins]
    axes.vlines(x, [b.low for b in found.bins], [b.high for b in found.bins], colors=COLOURS[0], alpha=0.45)
    most = max(b.rows for b in found.bins)
    for b in found.bins:  # the area of a mark says how many answers it stands for
        axes.plot([b.claimed], [b.right], "o", color=COLOURS[0], markersize=3 + 7 * math.sqrt(b.rows / most))
    axes.set(xlabel="probability claimed", ylabel="share right", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


LARGEST = 100  # classes of a matrix that can be read
NAME_LENGTH = 28
RIGHT, WRONG = (0.12, 0.45, 0.70), (0.80, 0.20, 0.25)  # of a whole row; less of it is paler


def confusion_picture(matrix: Matrix, title: str, form: str) -> bytes:
    """The matrix as a ``png`` or ``svg`` file: counts on shades of their share of the row, true class by row.

    Of more than 100 classes those that are confused most. PNG has the letters of the fonts that are installed;
    others are spelled out.
    """
    from matplotlib import style
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    shown = _most_confused(matrix)
    if len(shown) < len(matrix.classes):
        title += f"; the {len(shown)} classes most often confused, of {count(len(matrix.classes))}"
    counts, totals = _counts(matrix, shown)
    # An SVG keeps its text, and who shows it has other fonts.
    fonts = families([title, *matrix.classes]) if form == "png" else None
    names = [_label(matrix.classes[i], fonts) for i in shown]
    n, digits = len(shown), len(str(counts.max(initial=0)))
    side = max(0.22, 0.55 - 0.008 * n, 0.055 * digits)  # inches of a cell
    size = min(10.0, 72 * side / (0.62 * digits + 0.9))  # points of a count
    look = {"axes.grid": False, "svg.image_inline": True, **({"font.family": fonts} if fonts else {})}
    with style.context(["default", LOOK, look]):
        figure = Figure((side * n, side * n))
        axes = figure.add_axes((0, 0, 1, 1))
        cells = [(i, j) for i in range(n) for j in range(n) if counts[i, j]]
        shares = [counts[i, j] / totals[i] for i, j in cells]
        squares = [[(j, i), (j + 1, i), (j + 1, i + 1), (j, i + 1)] for i, j in cells]
        colours = [_shade(share, RIGHT if i == j else WRONG) for (i, j), share in zip(cells, shares, strict=True)]
        axes.add_collection(PolyCollection(squares, facecolors=colours, edgecolors="none"))
        for (i, j), share in zip(cells, shares, strict=True):
            ink = "white" if share > 0.55 else "black"
            axes.text(j + 0.5, i + 0.5, str(counts[i, j]), size=size, color=ink, ha="center", va="center")
        axes.set(xlim=(0, n), ylim=(n, 0))
        places, font = [i + 0.5 for i in range(n)], min(10.0, 72 * side * 0.62)
        short = max(map(len, names)) <= 3
        axes.set_xticks(places, names, rotation=0 if short else 90, size=font, parse_math=False)
        axes.set_yticks(places, names, size=font, parse_math=False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set(visible=True, color="#bbbbbb")
        lines = [float(i) for i in range(1, n)]
        axes.hlines(lines, 0, n, colors="#e4e4e4", linewidths=0.5)
        axes.vlines(lines, 0, n, colors="#e4e4e4", linewidths=0.5)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.set_title(_legible(title, fonts), parse_math=False)
        out = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
        with _letters_may_lack():
            figure.savefig(out, format=form, dpi=120, metadata=metadata, bbox_inches="tight", pad_inches=0.15)
    return out.getvalue()


def _most_confused(matrix: Matrix) -> list[int]:
    """The classes that are shown, in their order."""
    classes = len(matrix.classes)
    if classes <= LARGEST:
        return list(range(classes))
    true, predicted, images = np.array([cell for cell in matrix.cells if cell[0] != cell[1]], np.int64).reshape(-1, 3).T
    astray = np.zeros(classes, np.int64)
    np.add.at(astray, true, images)
    np.add.at(astray, predicted, images)
    return sorted(np.argsort(-astray, kind="stable")[:LARGEST].tolist())


def _counts(matrix: Matrix, shown: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The counts (n, n) among the classes shown, and all images (n,) of each of them."""
    place = {c: i for i, c in enumerate(shown)}
    counts, totals = np.zeros((len(shown), len(shown)), np.int64), np.zeros(len(shown), np.int64)
    for true, predicted, images in matrix.cells:
        if true in place:
            totals[place[true]] += images
            if predicted in place:
                counts[place[true], place[predicted]] = images
    return counts, totals


def _shade(share: float, colour: Sequence[float]) -> tuple[float, ...]:
    depth = 0.15 + 0.85 * share  # one image of many is seen, too
    return tuple(1 - depth * (1 - part) for part in colour)


def _label(name: str, fonts: Sequence[str] | None) -> str:
    text = _legible(name, fonts) or "(no name)"
    return text if len(text) <= NAME_LENGTH else text[: NAME_LENGTH - 1] + "…"


def _legible(text: str, fonts: Sequence[str] | None) -> str:
    return visible(text) if fonts is None else readable(visible(text), fonts)
