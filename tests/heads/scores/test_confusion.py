"""Cells of a confusion against scikit-learn's matrix; what a record of it may be."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics

from pipeline.heads.scores.confusion import DENSE, Confusion, confusion_from


def answers(n=2000, c=7, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, c, n), rng.integers(0, c, n)


@pytest.mark.parametrize("c", [2, 7, 300])
def test_the_matrix_and_its_sums_are_scikit_learns(c):
    y, guess = answers(c=c)
    expected, found = metrics.confusion_matrix(y, guess, labels=range(c)), Confusion.of(y, guess, c)
    np.testing.assert_array_equal(found.table(), expected)
    np.testing.assert_array_equal(found.support, expected.sum(axis=1))
    np.testing.assert_array_equal(found.guesses, expected.sum(axis=0))
    np.testing.assert_array_equal(found.right, np.diag(expected))
    assert found.rows == len(y)


def test_a_million_cells_are_not_made_for_a_few_rows():
    found = Confusion.of(np.array([3, 9999, 3]), np.array([3, 0, 3]), 10_000)
    assert (found.true.tolist(), found.predicted.tolist(), found.count.tolist()) == ([3, 9999], [3, 0], [2, 1])
    assert len(json.dumps(found.record())) < 100


@pytest.mark.parametrize("c", [2, DENSE, DENSE + 1, 400])
def test_what_is_recorded_is_read_again(c):
    y, guess = answers(c=c)
    record = json.loads(json.dumps(Confusion.of(y, guess, c).record()))
    assert isinstance(record, list) == (c <= DENSE)
    again = confusion_from(record, c)
    assert again is not None
    np.testing.assert_array_equal(again.table(), metrics.confusion_matrix(y, guess, labels=range(c)))


def test_a_matrix_of_many_classes_from_before_there_were_cells_is_read():
    y, guess = answers(c=400)
    table = metrics.confusion_matrix(y, guess, labels=range(400))
    again = confusion_from(table.tolist(), 400)
    assert again is not None
    np.testing.assert_array_equal(again.table(), table)


def cells(true=(0, 1), predicted=(0, 0), count=(2, 1)):
    return {"true": list(true), "predicted": list(predicted), "count": list(count)}


@pytest.mark.parametrize(
    "record",
    [
        [[1, 0]],
        [[1, 0], [0]],
        [[1, 0], [0, -1]],
        cells(true=(0,)),
        cells(true=(0, 2)),
        cells(predicted=(0, -1)),
        cells(true=(0, 0)),  # one cell twice
        cells(true=(1, 0)),
        cells(count=(2, 0)),
        cells(true=(0, 2**62)),
    ],
)
def test_what_no_confusion_of_two_classes_can_be_is_none(record):
    assert confusion_from(cells(), 2) is not None
    assert confusion_from(record, 2) is None
