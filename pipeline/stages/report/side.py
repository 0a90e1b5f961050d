"""Several runs side by side: their figures, and in pairs on the rows that they share.

A pair is compared on rows that neither has learned from, and on test rows where both were scored: by what is recorded,
with no new look. Chooses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.values import Cell, Column, Part, Role, Table, figures
from pipeline.base.words import count, percent, points, points_between
from pipeline.heads.scores.paired import PairedDifference, paired_difference
from pipeline.show.page.document import Block, Prose, Section
from pipeline.show.tables import results_table
from pipeline.stages.report import words
from pipeline.stages.report.answers import Answers
from pipeline.stages.report.story import Story
from pipeline.stages.score.compare import why_apart
from pipeline.stages.score.figures import ScoredRows
from pipeline.stages.score.words import brief

FEWEST = 2  # rows that two runs share
ROLES: dict[str, Role] = {"better": "good", "worse": "bad", "not told": "dim"}
EXPLAINED = (
    "Second less first, on the images that both have answered; the 95 % interval and McNemar's mid-p are of these "
    "pairs. 'Not told' means that chance alone may be the difference."
)


def side_by_side(stories: Sequence[Story]) -> list[Section]:
    """The sections about all runs together."""
    names = brief([story.name for story in stories])
    blocks: list[Block] = [results_table([_result(*one) for one in zip(stories, names, strict=True)])]
    chosen = [
        f"{name} is {how}." for s, name in zip(stories, names, strict=True) if (how := words.chosen(s)) is not None
    ]
    if chosen:
        blocks.append(Prose(chosen))
    rows: list[list[Cell]] = []
    apart: list[str] = []
    first = stories[0]
    for other, name in zip(stories[1:], names[1:], strict=True):
        if (why := why_apart(first.run, other.run)) is not None:
            apart.append(f"Not compared: {why}.")
            continue
        rows += [_row((names[0], name), on, *right) for on, right in _shared(first, other)]
    compared: list[Block] = [_table(rows), Prose([EXPLAINED])] if rows else []
    if apart:
        compared.append(Prose(apart, note=True))
    found = [Section("side", "Side by side", blocks)]
    return [*found, Section("paired", "In pairs, on the same images", compared, "In pairs")] if compared else found


def _result(story: Story, name: str) -> dict[str, Any]:
    test, answers = None if story.test is None else story.test.test, story.answers
    return {
        "name": name,
        "val": story.metrics.get("after", story.metrics.get("val")),
        "test": None if test is None else test["accuracy"],
        "macro_f1": None if test is None else test["macro_f1"],
        "seconds": story.metrics.get("seconds"),
        "chosen_from": words.candidates(story),
        "note": "" if answers is None else _note(answers),
    }


def _note(answers: Answers) -> str:
    learned = ", left out" if answers.unseen else ", learned from before fine-tuning"
    return f"{answers.of}{learned}: {percent(answers.figures['accuracy'])}"


def _shared(a: Story, b: Story) -> list[tuple[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]]:
    """Which of the rows that both have answered are right in each: of rows that neither learned from, and of test."""
    scored = [s.answers.scored if s.answers is not None and s.answers.unseen else None for s in (a, b)]
    found = []
    for on, (one, other) in (("left out", scored), ("test", [a.test_rows, b.test_rows])):
        if one is None or other is None:
            continue
        rows, i, j = np.intersect1d(one.rows, other.rows, return_indices=True)
        if len(rows) >= FEWEST:
            found.append((on, (_right(one)[i], _right(other)[j])))
    return found


def _right(scored: ScoredRows) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = scored.logits.argmax(axis=1) == scored.y
    return found


def _row(names: tuple[str, str], on: str, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> list[Cell]:
    d: PairedDifference = paired_difference(first, second)
    shares = [percent(float(right.mean())) for right in (first, second)]
    ends = points_between(d.low, d.high)
    verdict = Part(d.word if d.word == "not told" else f"second is {d.word}", ROLES[d.word])
    return [*names, on, count(d.n), *shares, points(d.value), ends, f"{d.p:.2g}", verdict]


def _table(rows: list[list[Cell]]) -> Table:
    names = [Column("First", fit="name"), Column("Second", fit="name"), Column("Rows")]
    return Table([*names, *figures("Images", "First", "Second", "Difference", "95 % interval", "p"), Column()], rows)
