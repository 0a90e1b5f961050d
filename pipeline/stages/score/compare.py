"""Two runs on identical test rows: is one better, or is it chance?

Knows the logits that evaluation keeps, and chooses nothing. Two runs may be compared when they were tested on the same
images with the same labels, whatever trunk or head they have.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.errors import HeadError
from pipeline.base.words import named
from pipeline.base.workspace import Workspace
from pipeline.heads.scores.metrics import classification_report
from pipeline.heads.scores.paired import PairedDifference, paired_difference
from pipeline.runs import folder as runs
from pipeline.stages.score import words
from pipeline.stages.score.answers import require_head
from pipeline.stages.score.evaluate import scored_rows
from pipeline.stages.score.figures import ScoredRows
from pipeline.stages.score.settings import CompareSettings


@dataclass(frozen=True)
class CompareResult:
    """Two runs' figures on ``n`` test rows; ``difference`` of the accuracies (second - first) with its 95 % interval.

    ``figures`` are accuracy, macro_f1, log_loss and ece of each.
    """

    runs: tuple[Path, Path]
    n: int
    figures: tuple[dict[str, float], dict[str, float]]
    difference: PairedDifference
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; McNemar's test apart from the difference."""
        d = self.difference
        return {
            **dataclasses.asdict(self),
            "runs": [str(folder) for folder in self.runs],
            "difference": {"value": d.value, "low": d.low, "high": d.high},
            "mcnemar": {"b": d.b, "c": d.c, "p": d.p},
        }


def compare(settings: CompareSettings, desk: Workspace) -> CompareResult:
    """Compare with settings made."""
    first, second = (runs.find_run(s, desk) for s in (settings.first, settings.second))
    for run in (first, second):  # before either is scored
        require_head(run)
    if (why := why_apart(first, second)) is not None:  # before anything is scored
        raise HeadError(why)
    scored = [scored_rows(run, desk, device=settings.device) for run in (first, second)]
    _require_same_rows(first, second, *scored)
    right = [s.logits.argmax(axis=1) == s.y for s in scored]
    difference = paired_difference(*right)
    names = (first.folder.name, second.folder.name)
    result = CompareResult(
        runs=(first.folder, second.folder),
        n=len(right[0]),
        figures=(_figures(first, scored[0]), _figures(second, scored[1])),
        difference=difference,
        verdict=words.verdict(names, difference),
    )
    desk.watch.result(words.comparison(names, result.figures, difference))
    desk.watch.result(words.chance(names, difference))
    desk.watch.result(result.verdict)
    return result


def _figures(run: runs.Run, scored: ScoredRows) -> dict[str, float]:
    scores = classification_report(scored.y, scored.logits, run.config["classes"], areas=False)
    return {name: getattr(scores, name) for name in ("accuracy", "macro_f1", "log_loss", "ece")}


def why_apart(first: runs.Run, second: runs.Run) -> str | None:
    """Why two runs cannot be compared: they learned from caches of other images or labels. None: they can."""
    a, b = first.config["cache"], second.config["cache"]
    if a["content"] == b["content"]:
        return None
    if first.config["classes"] != second.config["classes"]:
        what = f"other classes ({_apart(first, second)})"
    elif a["rows"] != b["rows"]:
        what = f"other rows ({a['rows']} and {b['rows']})"
    else:
        what = "other images, labels or splits"
    return (
        f"{first.folder.name} and {second.folder.name} learned from caches of {what}, {Path(a['path']).name} and "
        f"{Path(b['path']).name}: only runs tested on the same rows can be compared"
    )


def _apart(first: runs.Run, second: runs.Run) -> str:
    """The classes that one of two runs has alone, by name; or that they are the same in another order."""
    pairs = ((first, second), (second, first))
    known = {run.folder: set(run.config["classes"]) for run in (first, second)}
    alone = [[c for c in one.config["classes"] if c not in known[other.folder]] for one, other in pairs]
    told = [f"{named(found)} in {run.folder.name} alone" for found, (run, _) in zip(alone, pairs, strict=True) if found]
    return "; ".join(told) or "the same in another order"


def _require_same_rows(first: runs.Run, second: runs.Run, a: ScoredRows, b: ScoredRows) -> None:
    """Raises HeadError when the two caches, of the same images, lack different ones (some failed in one of them)."""
    if not np.array_equal(a.rows, b.rows) or not np.array_equal(a.y, b.y):
        apart = len(np.setxor1d(a.rows, b.rows))
        raise HeadError(
            f"{first.folder.name} and {second.folder.name} were tested on {len(a.rows):,} and {len(b.rows):,} rows, "
            f"{apart:,} of them in one alone: extract again so that no image fails, and train again"
        )
