"""Which images are worth looking at."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.heads.scores.metrics import Answers, answers_of
from pipeline.stages.report.mistakes import confident, coverage, pairs, unsure


@pytest.fixture(scope="module")
def told() -> tuple[Answers, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 400)
    logits = rng.normal(size=(400, 5)).astype(np.float32)
    logits[np.arange(400), y] += 1.5
    return answers_of(logits, y), y


def test_pairs_are_all_wrong_answers_by_class_most_often_confused_first(told: tuple[Answers, np.ndarray]) -> None:
    answers, y = told
    found = pairs(answers, y)
    counted: dict[tuple[int, int], int] = {}
    for true, taken in zip(y.tolist(), answers.predicted.tolist(), strict=True):
        if true != taken:
            counted[true, taken] = counted.get((true, taken), 0) + 1
    assert {(p.true, p.taken): len(p.at) for p in found} == counted
    sizes = [len(p.at) for p in found]
    assert sizes == sorted(sizes, reverse=True)
    for pair in found:
        assert (y[pair.at] == pair.true).all() and (answers.predicted[pair.at] == pair.taken).all()
        assert (np.diff(answers.confidence[pair.at]) <= 0).all()
    assert [(p.true, p.taken) for p in pairs(answers, y, 3)] == [(p.true, p.taken) for p in found[:3]]


def test_without_a_mistake_there_is_no_pair() -> None:
    y = np.arange(4)
    logits = np.eye(4, dtype=np.float32)
    assert pairs(answers_of(logits, y), y) == [] and len(confident(answers_of(logits, y), y)) == 0


def test_the_most_confident_mistakes_and_the_least_sure_answers(told: tuple[Answers, np.ndarray]) -> None:
    answers, y = told
    wrong = [i for i in range(400) if answers.predicted[i] != y[i]]
    expected = sorted(wrong, key=lambda i: -answers.confidence[i])[:7]
    assert confident(answers, y, 7).tolist() == expected
    assert unsure(answers, 7).tolist() == sorted(range(400), key=lambda i: answers.confidence[i])[:7]


def test_coverage_ends_at_all_answers_and_their_accuracy(told: tuple[Answers, np.ndarray]) -> None:
    answers, y = told
    right = answers.predicted == y
    shares, accuracy = coverage(answers, right)
    assert shares[-1] == 1 and accuracy[-1] == right.mean() and len(shares) == 400
    surest = np.argsort(-answers.confidence, kind="stable")[:100]
    assert accuracy[99] == right[surest].mean()
