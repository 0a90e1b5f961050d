"""A split's figures in words, and two heads' side by side.

Knows figures under their names (``accuracy``, ``macro_f1``, ...) as a run's files hold them. A figure that is not there
(a file written before it existed) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from pipeline.base.words import ABSENT, count, percent, points, significant, visible
from pipeline.show.tables import NAME_WIDTH, plain_table, titled

SHARES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1", "top5": "top-5"}
COMPARED = (("Accuracy", "accuracy"), ("Macro-F1", "macro_f1"), ("Log-loss", "log_loss"), ("Calibration error", "ece"))


def figures_lines(figures: Mapping[str, Any], what: str) -> list[str]:
    """One line of the figures of ``what`` with their 95 % intervals, and one of calibration."""
    intervals = figures.get("intervals") or {}
    shares = [
        f"{label} {percent(figures[name])}{_range(intervals.get(name))}"
        for name, label in SHARES.items()
        if figures.get(name) is not None
    ]
    auroc = f"AUROC {significant(figures['auroc'])}, " if figures.get("auroc") is not None else ""
    loss = f"log-loss {significant(figures['log_loss'])}, {count(figures['n'])} images"
    lines = [f"{what}: {', '.join(shares)}, {auroc}{loss}"]
    if intervals:
        lines[0] += "; in brackets bootstrap 95 % intervals"
    if figures.get("ece") is not None:
        lines.append(f"calibration error {percent(figures['ece'])}{_calibrated(figures.get('calibrated'))}")
    return lines


def _range(interval: Sequence[float] | None) -> str:
    return f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""


def _calibrated(scaled: Mapping[str, Any] | None) -> str:
    if not scaled:
        return "; no val rows were held back that could give a temperature to mend it"
    return (
        f"; with all logits divided by the temperature {significant(scaled['temperature'])}, fitted on val: "
        f"{percent(scaled['ece'])}, log-loss {significant(scaled['log_loss'])}"
    )


def comparison_table(
    names: Sequence[str], figures: Sequence[Mapping[str, Any]], interval: tuple[float, float], title: str = ""
) -> RenderableType:
    """Two heads' figures on the same rows and second minus first; ``interval`` (low, high) is of the accuracies'."""
    table = plain_table()
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(Text(visible(name)), justify="right", overflow="ellipsis", max_width=NAME_WIDTH)
    table.add_column("Difference", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    first, second = figures
    for label, name in COMPARED:
        difference = second[name] - first[name]
        if name == "log_loss":
            cells = [significant(first[name]), significant(second[name]), f"{difference:+.4f}".replace("-", "−")]
        else:
            cells = [percent(first[name]), percent(second[name]), points(difference)]
        low_high = " to ".join(points(end).removesuffix(" points") for end in interval)
        table.add_row(label, *cells, low_high if name == "accuracy" else ABSENT)
    return titled(table, title)
