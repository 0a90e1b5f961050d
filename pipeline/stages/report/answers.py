"""What a run says of rows that it has not learned from: all that a page tells of its mistakes comes from here.

Of a search what it kept of rows that were left out, of a trained head its answers on val, of a fine-tuned network the
same, computed once and kept. No test row is asked for.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import HeadError
from pipeline.base.words import many
from pipeline.base.workspace import Workspace
from pipeline.heads.scores.metrics import Answers as Told
from pipeline.heads.scores.metrics import answers_of
from pipeline.runs.folder import Run
from pipeline.runs.held_out import read_held_out
from pipeline.runs.network import temperature_of
from pipeline.stages.report.kept import kept
from pipeline.stages.score.answers import by_run, figures_of, score_rows
from pipeline.stages.score.figures import Figures, ScoredRows
from pipeline.store import Cache


@dataclass(frozen=True, eq=False)
class Answers:
    """Logits (n, C) float32 of cache ``rows`` (n,) int64 with labels ``y`` (n,), of what learned from none of them.

    ``of`` names the splits, ``whose`` says in a sentence whose answers they are. Logits are divided by ``temperature``
    where a probability is meant.
    """

    scored: ScoredRows
    classes: tuple[str, ...]
    temperature: float
    of: str
    whose: str
    unseen: bool = True  # whether nothing that they come from has learned from these rows

    @property
    def rows(self) -> NDArray[np.int64]:
        """Their places (n,) in the cache."""
        return self.scored.rows

    @property
    def y(self) -> NDArray[np.int64]:
        """Their labels (n,)."""
        return self.scored.y

    def __len__(self) -> int:
        return len(self.scored.y)

    @functools.cached_property
    def told(self) -> Told:
        """What the logits say of each row, with the temperature."""
        return answers_of(self.scored.logits, self.y, self.temperature)

    @functools.cached_property
    def right(self) -> NDArray[np.bool_]:
        """(n,): whether each is right."""
        found: NDArray[np.bool_] = self.told.predicted == self.y
        return found

    @functools.cached_property
    def figures(self) -> Figures:
        """Every figure with its interval."""
        return figures_of(self.scored, self.classes, self.temperature)


def answers_for(run: Run, cache: Cache | None, desk: Workspace, device: str) -> Answers:
    """The answers of a run on rows that it has not learned from.

    Raises:
        HeadError: there are no such rows, or what is kept of them is damaged.
        CacheError, DataError, WeightsError: rows, images or weights that they would be computed from.
    """
    classes, temperature = tuple(run.config["classes"]), temperature_of(run)
    held = read_held_out(run.folder)
    if held is not None:
        scored, folds = ScoredRows(held.logits, held.rows, held.y), held.folds
        if folds > 1:
            whose = (
                f"Each of these {many(len(held.rows), 'image')} of train and val was scored by one of {folds} heads of "
                "the run's settings that had not learned from it"
            )
            return Answers(scored, classes, temperature, "train and val", whose)
        return Answers(scored, classes, temperature, "val", _by_the_head(len(held.rows)))
    learned = run.config.get("learned_from", ["train"])
    if cache is None:
        raise HeadError("the cache that it learned from is not to be had")
    if "val" in learned and run.stage != "finetune":
        raise HeadError("the head has learned from val, too, and kept no answers of heads that had not")
    unseen = True
    if run.stage == "finetune":
        scored = _of_network(run, cache, desk, device)
        whose = _by_the_head(len(scored.y), "network")
        if "val" in learned:
            unseen = False
            whose += "; but the head that it began with had, so that figures on val are better than on new images"
    else:
        scored = score_rows(cache, ("val",), by_run(run, cache, desk, device))
        whose = _by_the_head(len(scored.y))
    return Answers(scored, classes, temperature, "val", whose, unseen)


def _by_the_head(rows: int, what: str = "head") -> str:
    were = "was" if rows == 1 else "were"
    return f"Of val {many(rows, 'image')} {were} scored by the {what} itself, which has not learned from val"


def _of_network(run: Run, cache: Cache, desk: Workspace, device: str) -> ScoredRows:
    """A fine-tuned network's answers on val: its images go through it once, and what it says is kept."""
    known = f"{run.metrics.get('model_sha256')} {cache.key} {cache.content} val"
    path = desk.reports / f"answers-{hashlib.sha256(known.encode()).hexdigest()[:32]}.safetensors"

    def computed() -> ScoredRows:
        return score_rows(cache, ("val",), by_run(run, cache, desk, device))

    return kept(path, ScoredRows, computed, desk)
