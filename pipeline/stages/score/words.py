"""What scoring says: a run's figures on a split, and two runs' side by side.

Knows figures under their names (``accuracy``, ``macro_f1``, ...) as a run's files hold them; computes none. A figure
that is not there (a file written before it existed) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.base.values import Column, Matrix, Table, figures
from pipeline.base.words import ABSENT, count, many, percent, points, points_between, significant
from pipeline.heads.scores.bootstrap import Difference, McNemar
from pipeline.show.tables import per_class_table

SIGNIFICANT = 0.05
SHARES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1", "top5": "top-5"}
COMPARED = (("Accuracy", "accuracy"), ("Macro-F1", "macro_f1"), ("Log-loss", "log_loss"), ("Calibration error", "ece"))


def classes_of(test: Mapping[str, Any], split: str, cache: str | None) -> tuple[Table, Matrix]:
    """A split's figures class by class, and which class was taken for which; ``cache``: another one than the run's."""
    rows = "all rows" if split == "all" else f"{split} split"
    title = rows.capitalize() if cache is None else f"{cache}, {rows}"
    # Another cache may hold a few of the head's classes: those that neither occur nor are predicted say nothing there.
    counts = test["confusion"]
    seen = [i for i, row in enumerate(counts) if any(row) or any(r[i] for r in counts)]
    per_class = [test["per_class"][i] for i in seen]
    matrix = Matrix([[counts[i][j] for j in seen] for i in seen], [c["name"] for c in per_class])
    return per_class_table(per_class, f"{title}, class by class"), matrix


def scored(before: int, rows: int) -> str:
    """Which run it is that is scored on these test rows, where ``before`` others have been; and what that means."""
    hint = "" if not before else ": choose among runs by val, since the best of several figures on test is optimistic"
    return f"{ordinal(before + 1)} run scored on these {many(rows, 'test row')}{hint}"


def as_which(before: int | None) -> str:
    """The same of figures on record, to go on a sentence with; nothing where it was not counted."""
    return "" if before is None else f", as the {ordinal(before + 1)} run on these rows"


def ordinal(number: int) -> str:
    """``1st``, ``2nd``, ``3rd``, ``4th``, ``11th``, ``21st``."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"


def figures_lines(test: Mapping[str, Any], what: str) -> list[str]:
    """One line of the figures of ``what`` with their 95 % intervals, and one of calibration."""
    intervals = test.get("intervals") or {}
    shares = [
        f"{label} {percent(test[name])}{_range(intervals.get(name))}"
        for name, label in SHARES.items()
        if test.get(name) is not None
    ]
    auroc = f"AUROC {significant(test['auroc'])}, " if test.get("auroc") is not None else ""
    loss = f"log-loss {significant(test['log_loss'])}, {count(test['n'])} images"
    lines = [f"{what}: {', '.join(shares)}, {auroc}{loss}"]
    if intervals:
        lines[0] += "; in brackets bootstrap 95 % intervals"
    if test.get("ece") is not None:
        lines.append(f"calibration error {percent(test['ece'])}{_calibrated(test.get('calibrated'))}")
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


def comparison(names: Sequence[str], scores: Sequence[Mapping[str, Any]], difference: Difference, n: int) -> Table:
    """Two runs' figures on the same ``n`` test rows and second minus first; the interval is of the accuracies'."""
    first, second = scores
    interval = points_between(difference.low, difference.high)
    rows = []
    for label, name in COMPARED:
        by = second[name] - first[name]
        if name == "log_loss":
            cells = [significant(first[name]), significant(second[name]), f"{by:+.4f}".replace("-", "−")]
        else:
            cells = [percent(first[name]), percent(second[name]), points(by)]
        rows.append([label, *cells, interval if name == "accuracy" else ABSENT])
    runs = [Column(name, right=True, fit="cut") for name in names]
    return Table([Column(fit="wrap"), *runs, *figures("Difference", "95 % interval")], rows, f"{count(n)} test images")


def chance(test: McNemar) -> str:
    """McNemar's test in a line."""
    return f"McNemar: {test.b:,} right in the first alone, {test.c:,} in the second alone, p = {test.p:.3g}"


def verdict(names: tuple[str, str], n: int, difference: Difference, test: McNemar) -> str:
    """What the comparison of two runs on n test rows means, in one sentence."""
    if test.p < SIGNIFICANT:
        second = test.c > test.b
        better, worse = names[::-1] if second else names
        low, high = (difference.low, difference.high) if second else (-difference.high, -difference.low)
        size = points(abs(difference.value)).removeprefix("+")
        return (
            f"{better} is better than {worse} by {size} of accuracy (95 % interval {100 * low:.1f} to "
            f"{100 * high:.1f}): chance alone gives so large a difference with p = {test.p:.2g}"
        )
    if not test.b + test.c:
        return f"no difference can be told: both are right on the same of {n:,} test images"
    return (
        f"no difference can be told: {test.b + test.c:,} of {n:,} test images are right in one of the two alone "
        f"({test.b:,} and {test.c:,}), and chance alone splits them so or more unevenly with p = {test.p:.2g}"
    )
