"""What scoring says: a run's figures on a split, and two runs' side by side.

Knows figures under their names (``accuracy``, ``macro_f1``, ...) as a run's files hold them; computes none. A figure
that is not there (a file written before it existed) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.spelling import option
from pipeline.base.values import Column, Matrix, Table, figures
from pipeline.base.words import ABSENT, count, many, percent, points, points_between, significant
from pipeline.heads.scores.confusion import Confusion
from pipeline.heads.scores.intervals import FEWEST_OF_A_CLASS
from pipeline.heads.scores.paired import PairedDifference
from pipeline.runs.folder import is_run_name
from pipeline.show.tables import per_class_table
from pipeline.stages.score.figures import SHARES, InFloat32, WrongImage, confusion_of

WRONG_SHOWN = 10  # images in a table; a file has all
COMPARED = (("Accuracy", "accuracy"), ("Macro-F1", "macro_f1"), ("Log-loss", "log_loss"), ("Calibration error", "ece"))


def classes_of(test: Mapping[str, Any], split: str, elsewhere: str | None) -> tuple[Table, Matrix]:
    """A split's figures class by class, and which class was taken for which; ``elsewhere``: not of the run's cache."""
    rows = "all rows" if split == "all" else f"{split} split"
    title = rows.capitalize() if elsewhere is None else f"{elsewhere}, {rows}"
    per_class = [test["per_class"][i] for i in _seen(confusion_of(test)).tolist()]
    return per_class_table(per_class, f"{title}, class by class"), matrix_of(test)


def matrix_of(test: Mapping[str, Any]) -> Matrix:
    """Which class was taken for which, of the classes that occur."""
    found = confusion_of(test)
    seen = _seen(found)
    true, predicted = np.searchsorted(seen, found.true), np.searchsorted(seen, found.predicted)
    cells = list(zip(true.tolist(), predicted.tolist(), found.count.tolist(), strict=True))
    return Matrix(cells, [test["per_class"][i]["name"] for i in seen.tolist()])


def _seen(confusion: Confusion) -> NDArray[np.int64]:
    """Other rows may hold a few of the head's classes: those that neither occur nor are predicted say nothing there."""
    return np.union1d(confusion.true, confusion.predicted)


def rows_of(split: str, elsewhere: str | None) -> str:
    """Which rows figures are of, in a word or two."""
    return split if elsewhere is None else f"{elsewhere}, {split}"


def wrong(found: Sequence[WrongImage], rows: str) -> Table:
    """The first of the images that are given a wrong class, each with the probability of that."""
    shown = [[one.path, one.true, one.predicted, percent(one.probability)] for one in found[:WRONG_SHOWN]]
    more = f"the {WRONG_SHOWN} most confident of {count(len(found))}" if len(found) > WRONG_SHOWN else ""
    columns = [Column("Image", fit="fold"), Column("True", fit="name"), Column("Predicted", fit="name")]
    return Table([*columns, *figures("Probability")], shown, f"Wrong, most confident first: {rows}", more)


def left_out(run: str, splits: Sequence[str], folds: int) -> str:
    """Whose answers the figures are where the head itself has learned from the rows."""
    rows = " and ".join(splits)
    return f"{run} has learned from the {rows} rows: they are scored by {folds} heads of its settings that have not"


def learned(run: str, splits: Sequence[str], alone: bool) -> str:
    """A warning where a head is scored on rows that it has learned from; ``alone`` says that there are no others."""
    rows = f"these {' and '.join(splits)} rows" if alone else f"the {' and '.join(splits)} rows among these"
    return f"{run} has learned from {rows}: on new images it is wrong more often ({option('split', 'test')})"


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
    """The figures of ``what``, classes that are absent, what the intervals mean, and calibration: a line each."""
    intervals = test.get("intervals") or {}
    shares = [
        f"{label} {percent(test[name])}{_range(intervals.get(name))}"
        for name, label in SHARES.items()
        if test.get(name) is not None
    ]
    auroc = f"AUROC {significant(test['auroc'])}, " if test.get("auroc") is not None else ""
    loss = f"log-loss {significant(test['log_loss'])}, {many(test['n'], 'image')}"
    lines = [f"{what}: {', '.join(shares)}, {auroc}{loss}"]
    per_class = test.get("per_class") or []
    if absent := sum(not one["support"] for one in per_class):
        lines.append(
            f"{absent:,} of {many(len(per_class), 'class')} {'has' if absent == 1 else 'have'} no images here: "
            f"balanced accuracy, macro-F1 and AUROC are means over the other {len(per_class) - absent:,}"
        )
    if intervals:
        lines.append(_of_intervals(intervals))
    if test.get("ece") is not None:
        expected = ""
        if test.get("ece_expected") is not None:
            shown = percent(test["ece_expected"])
            expected = f" (a perfectly calibrated head would show {shown} on {many(test['n'], 'image')})"
        lines.append(f"calibration error {percent(test['ece'])}{expected}{_calibrated(test.get('calibrated'))}")
    return lines


def _of_intervals(intervals: Mapping[str, Sequence[float] | None]) -> str:
    said = (
        "in brackets 95 % intervals: how much another draw of images would change a figure, not what other train "
        "images or another seed would"
    )
    missing = [SHARES[name] for name, interval in intervals.items() if interval is None]
    if missing:
        few = f"half of the classes or more have fewer than {FEWEST_OF_A_CLASS} images"
        said += f"; none for {' and '.join(missing)}: {few}"
    return said


def _range(interval: Sequence[float] | None) -> str:
    return f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""


def _calibrated(scaled: Mapping[str, Any] | None) -> str:
    if not scaled:
        return "; the run has no temperature that could mend it"
    if "ece_expected" not in scaled:  # figures from before a run kept its temperature
        expected, whose = "", f"a temperature, {significant(scaled['temperature'])}, fitted on val"
    else:
        expected = f" ({percent(scaled['ece_expected'])} if perfect)"
        whose = f"the run's temperature, {significant(scaled['temperature'])}, as predict does"
    return (
        f"; with all logits divided by {whose}: "
        f"{percent(scaled['ece'])}{expected}, log-loss {significant(scaled['log_loss'])}"
    )


def beside_float32(precision: str, found: InFloat32) -> tuple[str, str]:
    """The same head on the network in float32, and beside what it does on the features that it was trained on."""
    return (
        f"the network in float32, as predict and export run it: accuracy {percent(found.accuracy)}, log-loss "
        f"{significant(found.log_loss)}",
        chance((f"the features in {precision}", "the network in float32"), found.difference),
    )


def not_in_float32(why: str) -> str:
    """A warning where the network in float32 could not be scored."""
    return f"the network in float32, which predict and export run, was not scored: {why}"


def comparison(names: Sequence[str], scores: Sequence[Mapping[str, Any]], difference: PairedDifference) -> Table:
    """Two runs' figures on the same test rows and second minus first; the interval is of the accuracies'."""
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
    below = many(difference.n, "test image")
    runs = [Column(name, right=True, fit="name" if name in names else "whole") for name in brief(names)]
    return Table([Column(fit="wrap"), *runs, *figures("Difference", "95 % interval")], rows, below)


def brief(names: Sequence[str]) -> list[str]:
    """Runs by number and stage, as they are listed; by their names where that does not tell them apart."""
    parts = [name.split("-") if is_run_name(name) else None for name in names]
    brief = [name if p is None else f"{int(p[0])} {p[1]}" for name, p in zip(names, parts, strict=True)]
    return brief if len(set(brief)) == len(brief) else list(names)


def changed(mended: int, broken: int) -> str:
    """On how many images the second is right and the first was not, and the other way round."""
    return f"{count(mended) if mended else 'none'} mended, {count(broken) if broken else 'none'} broken"


def chance(names: tuple[str, str], d: PairedDifference) -> str:
    """McNemar's test in a line."""
    return (
        f"{names[1]} beside {names[0]}: {changed(d.c, d.b)} of {count(d.n)}; 95 % interval "
        f"{points_between(d.low, d.high)} points, McNemar's mid-p = {d.p:.2g}"
    )


def verdict(names: tuple[str, str], d: PairedDifference) -> str:
    """What the comparison of two runs on the same test rows means, in one sentence."""
    if d.word != "not told":
        better, worse, low, high = *names, -d.high, -d.low
        if d.word == "better":
            better, worse, low, high = worse, better, d.low, d.high
        size = points(abs(d.value)).removeprefix("+")
        return (
            f"{better} is better than {worse} by {size} of accuracy (95 % interval {100 * low:.1f} to "
            f"{100 * high:.1f}): chance alone gives so large a difference with p = {d.p:.2g}"
        )
    if not d.b + d.c:
        return f"no difference can be told: both are right on the same of {many(d.n, 'test image')}"
    return (
        f"no difference can be told: {d.b + d.c:,} of {d.n:,} test images are right in one of the two alone "
        f"({d.b:,} and {d.c:,}), and chance alone splits them so or more unevenly with p = {d.p:.2g}"
    )
