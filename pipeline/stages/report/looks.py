"""Which rows of a run a page shows as images, chosen before any of them is decoded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.scores.label_noise import LabelNoise, label_noise
from pipeline.heads.scores.metrics import Answers as Told
from pipeline.heads.scores.metrics import answers_of
from pipeline.stages.report.mistakes import OF_A_PAIR, SHOWN, Pair, confident, pairs, unsure
from pipeline.stages.report.story import Story

NOTHING = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Looks:
    """Places (m,) among a run's answers, and, ``of_test``, among the test rows that it was scored on."""

    pairs: list[Pair]
    confident: NDArray[np.int64]
    unsure: NDArray[np.int64]
    of_test: NDArray[np.int64]
    test_told: Told | None
    noise: LabelNoise | None  # what the answers say of the labels

    @property
    def suspects(self) -> NDArray[np.int64]:
        """Places (m,) among the answers of the labels that are shown as suspect."""
        return NOTHING if self.noise is None else self.noise.order[:SHOWN]

    def rows(self, story: Story) -> set[int]:
        """The cache rows of all of them."""
        found: set[int] = set()
        if story.answers is not None:
            places = [self.confident, self.unsure, self.suspects, *(pair.at[:OF_A_PAIR] for pair in self.pairs)]
            found |= set(story.answers.rows[np.concatenate(places)].tolist())
        if story.test_rows is not None:
            found |= set(story.test_rows.rows[self.of_test].tolist())
        return found


def looks_of(story: Story, seed: int) -> Looks:
    """What is worth looking at. Labels are judged by answers alone that have not learned from them."""
    answers, test, told = story.answers, story.test_rows, None
    of_test = NOTHING
    if test is not None:
        told = answers_of(test.logits, test.y, story.temperature)
        of_test = confident(told, test.y)
    if answers is None:
        return Looks([], NOTHING, NOTHING, of_test, told, None)
    noise = None
    if answers.unseen:
        noise = label_noise(answers.scored.logits, answers.y, answers.temperature, seed=seed)
    return Looks(
        pairs(answers.told, answers.y), confident(answers.told, answers.y), unsure(answers.told), of_test, told, noise
    )
