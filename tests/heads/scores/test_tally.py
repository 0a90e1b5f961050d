"""The figures that heads are chosen by, from pieces of the rows, against the full report and scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.special
from sklearn import metrics

from pipeline.base.errors import HeadError
from pipeline.heads import standardize
from pipeline.heads.choice import METRICS
from pipeline.heads.scores import tally
from pipeline.heads.scores.metrics import classification_report
from pipeline.heads.scores.tally import Linear, Tally, linear_figures


def made(n: int = 157, d: int = 12, c: int = 6, heads: int = 5) -> tuple[Any, Any, list[Linear]]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d)).astype(np.float16)
    y = rng.integers(0, c - 1, n)  # the last class has no rows, and is predicted
    return X, y, [(rng.standard_normal((c, d)), rng.standard_normal(c)) for _ in range(heads)]


def report(X: Any, y: Any, head: Linear) -> dict[str, float]:
    logits = X.astype(np.float32) @ head[0].astype(np.float32).T + head[1].astype(np.float32)
    found = classification_report(y, logits, [str(i) for i in range(len(head[1]))])
    return {name: getattr(found, name) for name in METRICS}


def test_each_head_has_the_figures_of_the_full_report_and_of_scikit_learn() -> None:
    X, y, heads = made()
    found = linear_figures(heads, X, y)
    for head, ours in zip(heads, found, strict=True):
        assert ours == pytest.approx(report(X, y, head), rel=1e-6)
        logits = X.astype(float) @ head[0].T + head[1]
        guess, there = logits.argmax(axis=1), np.unique(y)
        assert (guess == 5).any()
        loss = metrics.log_loss(y, scipy.special.softmax(logits, axis=1), labels=range(6))
        assert ours["log_loss"] == pytest.approx(loss, rel=1e-6)
        assert ours["accuracy"] == pytest.approx(metrics.accuracy_score(y, guess))
        recall = metrics.recall_score(y, guess, labels=there, average=None)
        assert ours["balanced_accuracy"] == pytest.approx(recall.mean())
        assert ours["macro_f1"] == pytest.approx(metrics.f1_score(y, guess, labels=there, average="macro"))


@pytest.mark.parametrize(("columns", "numbers"), [(6, 1), (12, 7), (13, 40), (10**6, 10**6)])
def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch, columns: int, numbers: int) -> None:
    X, y, heads = made()
    whole = linear_figures(heads, X, y)
    monkeypatch.setattr(tally, "COLUMNS", columns)
    monkeypatch.setattr(tally, "NUMBERS", numbers)
    monkeypatch.setattr(standardize, "CHUNK_ROWS", 50)
    for ours, other in zip(whole, linear_figures(heads, X, y), strict=True):
        assert ours == pytest.approx(other, rel=1e-6)
    one = Tally(1, 6)
    logits = X.astype(np.float32) @ heads[0][0].astype(np.float32).T + heads[0][1].astype(np.float32)
    one.add(logits[:90], y[:90])
    one.add(logits[90:], y[90:])
    assert one.figures()[0] == pytest.approx(whole[0], rel=1e-6)


def test_rows_are_converted_once_for_all_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, heads = made(heads=45)
    seen: list[int] = []
    pieces = standardize.row_chunks

    def counted(rows: Any) -> Any:
        for start, chunk in pieces(rows):
            seen.append(len(chunk))
            yield start, chunk

    monkeypatch.setattr(tally, "row_chunks", counted)
    linear_figures(heads, X, y)
    assert sum(seen) == len(X)


def test_of_equal_logits_the_first_class_is_meant() -> None:
    one = Tally(1, 3)
    one.add(np.zeros((2, 3), np.float32), np.array([0, 1]))
    assert one.figures()[0]["accuracy"] == 0.5


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(HeadError, match="NaN or infinite"):
        Tally(1, 2).add(np.array([[0, -np.inf]], np.float32), np.array([0]))
    with pytest.raises(HeadError, match="NaN or infinite"):
        linear_figures([(np.full((2, 3), 3e38), np.zeros(2))], np.ones((1, 3), np.float16), np.array([0]))
