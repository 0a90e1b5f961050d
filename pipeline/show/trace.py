"""The training trace: one row per epoch or iteration, and the sentence that its numbers deserve.

Knows losses and accuracies only. :func:`observe` is a function of the numbers alone: same rows, same words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from pipeline.base.watch import TraceRow
from pipeline.base.words import percent, significant

LONGEST_OBSERVATION = 38  # a row of the table is then 80 characters wide
FLAT_POINTS = 0.002  # val accuracies this close are the same to a reader
FLAT_EPOCHS = 3
CLEAR_DROP = 0.01  # one percentage point of val accuracy
SATURATED = 0.9995  # shown as 100.0 %
RISE = 1.05  # a loss this many times the one before it is rising, not jittering
JITTER = 0.01  # near zero, a rise smaller than this means nothing
STEADY = 0.99  # a loss below this share of the one before it is still falling
EXPLODED = 3.0  # times the first loss
ROWS = {"Epoch": 12, "Iteration": 8}  # at most so many are shown; a run's folder has all of them
COLUMN_WIDTHS = (5, 9, 8, 12)  # step, loss, accuracy, val accuracy; the observation takes the rest
GAP = "  "


def header(step: str = "Epoch", width: int = 80) -> str:
    """The trace table's head; ``step`` names the first column. The last has none where its texts stand below."""
    titles = (step, "Loss", "Accuracy", "Val accuracy")
    head = GAP.join((*_columns(titles, step), "Observation"))
    return head if len(head) <= width else GAP.join(_columns(titles, step))


def cells(row: TraceRow, step: str = "Epoch") -> tuple[str, ...]:
    """The row's figures as text, padded to the columns of :func:`header`; the observation comes last, unpadded."""
    texts = (str(row.epoch), significant(row.loss), percent(row.accuracy), percent(row.val_accuracy))
    return (*_columns(texts, step), row.observation)


def places(total: int, limit: int) -> list[int]:
    """Which of ``total`` rows, counted from 0, to show: the first, the last, and between them ever fewer; ascending.

    Training moves most at its beginning: the steps between two that are shown grow by about the same factor.
    """
    if total <= limit:
        return list(range(total))
    found = [0]
    for left in range(limit - 1, 0, -1):  # so many are still to come, the last of them the last row
        step = ((total / (found[-1] + 1)) ** (1 / left)) * (found[-1] + 1)
        found.append(min(max(found[-1] + 1, round(step) - 1), total - left))
    return found


class Remarks:
    """The observations of one trace as a reader is to see them: what was said once is not said again."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def new(self, observation: str) -> str:
        """What of the observation is new; numbers apart, ``val flat for 3 epochs`` says what ``... 4 epochs`` says."""
        kinds = {part: re.sub(r"[0-9][0-9.,]*", "0", part) for part in observation.split(", ")}
        fresh = [part for part, kind in kinds.items() if kind not in self._said]
        self._said |= set(kinds.values())
        return ", ".join(fresh)


def _columns(texts: Sequence[str], step: str) -> list[str]:
    widths = (max(COLUMN_WIDTHS[0], len(step)), *COLUMN_WIDTHS[1:])
    return [t.rjust(w) for t, w in zip(texts, widths, strict=True)]


def observe(rows: Sequence[TraceRow], n_classes: int | None = None, step: str = "epoch") -> str:
    """What the last row's numbers say, in at most 38 characters; ``""`` when there are no rows.

    ``n_classes`` lets the first row be compared with guessing, ``step`` is what a row is of. Up to two remarks, the
    more important one first.
    """
    if not rows:
        return ""
    last = rows[-1]
    if not math.isfinite(last.loss):
        return "diverged: loss is not a number"
    if len(rows) == 1:
        return "before training" if last.epoch == 0 else _first(last, n_classes)
    text = ""
    for remark in (*_val_remarks(rows, step), *_loss_remarks(rows, step)):
        joined = f"{text}, {remark}" if text else remark
        if len(joined) > LONGEST_OBSERVATION:
            break
        if text:
            return joined
        text = joined
    return text


def _first(row: TraceRow, n_classes: int | None) -> str:
    accuracy = row.accuracy if row.val_accuracy is None else row.val_accuracy
    if not n_classes or n_classes < 2 or not math.isfinite(accuracy):
        return "first pass"
    chance = 1 / n_classes
    gained = (accuracy - chance) / (1 - chance)  # 0 for guessing, 1 for perfect: means the same for any n_classes
    if gained > 0.5:
        where = "far above chance"
    elif gained > 0.1:
        where = "above chance"
    elif accuracy < 0.8 * chance:
        where = "below chance"
    else:
        where = "near chance"
    return f"first pass: {where} ({100 * chance:.3g} %)"


def _val_remarks(rows: Sequence[TraceRow], step: str) -> list[str]:
    """Remarks on val accuracy, the most important first; none where the last row has no val figure."""
    vals = [(r.epoch, r.val_accuracy) for r in rows if r.val_accuracy is not None and math.isfinite(r.val_accuracy)]
    last = rows[-1]
    if len(vals) < 2 or vals[-1][0] != last.epoch:
        return []
    scores = [v for _, v in vals]
    best = max(scores[:-1])
    if scores[-1] > best:
        return ["best val so far"]
    falling = len(scores) >= 3 and scores[-1] < scores[-2] < scores[-3] and best - scores[-1] >= CLEAR_DROP
    if falling and last.accuracy >= SATURATED:
        return ["train 100 %, val falling: overfitting"]
    if falling and last.loss < rows[-2].loss:
        return ["train better, val falling: overfitting"]
    flat = _flat_run(scores)
    if flat >= FLAT_EPOCHS:
        return [f"val flat for {flat} {step}s"]
    if best - scores[-1] >= CLEAR_DROP:
        epoch = next(e for e, v in vals if v == best)
        return [f"val {100 * (best - scores[-1]):.1f} points below {step} {epoch}"]
    return []


def _flat_run(scores: Sequence[float]) -> int:
    """How many of the last steps stayed within ``FLAT_POINTS`` of each other."""
    low = high = scores[-1]
    for steps, score in enumerate(reversed(scores[:-1])):
        low, high = min(low, score), max(high, score)
        if high - low > FLAT_POINTS:
            return steps
    return len(scores) - 1


def _loss_remarks(rows: Sequence[TraceRow], step: str) -> list[str]:
    """Remarks on the training loss and accuracy; always at least one.

    The row before training is of weights that stand still and images as they are, the others of weights that move: only
    an explosion is told by comparing with it.
    """
    if rows[-1].loss > max(EXPLODED * next(r.loss for r in rows if math.isfinite(r.loss)), 1.0):
        return ["loss exploded: lower the learning rate"]
    rows = rows[1:] if rows[0].epoch == 0 else rows
    if len(rows) == 1:
        return ["train 100 %"] if rows[0].accuracy >= SATURATED else [f"first {step}"]
    finite = [r for r in rows if math.isfinite(r.loss)]
    last, before, first = rows[-1], rows[-2], finite[0]
    losses = [r.loss for r in finite]
    twice_up = len(losses) >= 3 and losses[-1] > losses[-2] > losses[-3] and _risen(losses[-3], losses[-1])
    if twice_up or _risen(before.loss, last.loss):
        return ["loss rising: learning rate too high?"]
    remarks = []
    if last.accuracy >= SATURATED > before.accuracy:
        remarks.append("train 100 %")
    halvings = _halvings(first.loss, last.loss)
    if 0 < last.loss <= before.loss / 2 < math.inf:
        remarks.append("loss halved")
    elif halvings > _halvings(first.loss, min(losses[:-1], default=math.inf)):
        remarks.append(f"loss 1/{2**halvings} of {step} {first.epoch}")
    elif last.loss < STEADY * before.loss:
        remarks.append("loss still falling")
    else:
        remarks.append("loss flat")
    return remarks


def _risen(before: float, loss: float) -> bool:
    return loss > RISE * before and loss - before > JITTER


def _halvings(first: float, loss: float) -> int:
    """How many times ``first`` was halved on the way down to ``loss``."""
    return int(math.log2(first / loss)) if 0 < loss < first else 0
