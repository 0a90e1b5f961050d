"""Figures of thousands of classes: kept small, read again, shown; those from before are read as they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

from pipeline.base.errors import HeadError
from pipeline.show.pictures import confusion_picture
from pipeline.stages.score.answers import figures_of
from pipeline.stages.score.figures import EvaluateResult, ScoredRows, confusion_of, recorded
from pipeline.stages.score.words import classes_of, matrix_of

CLASSES = 3000


@pytest.fixture(scope="module")
def scored() -> ScoredRows:
    """200 rows of 3,000 classes; the first 50 are all taken for class 7, which makes it the most confused."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((200, CLASSES)).astype(np.float32)
    logits[:50, 7] = 99
    return ScoredRows(logits, np.arange(200), rng.integers(0, CLASSES, 200))


def kept(scored: ScoredRows, folder: Path) -> EvaluateResult:
    names = [f"c{c:04d}" for c in range(CLASSES)]
    return EvaluateResult(folder, figures_of(scored, names, 1.0), 0.1, "2025-01-01T00:00:00Z").recorded()


def test_a_record_grows_with_the_rows_and_not_with_the_square_of_the_classes(
    scored: ScoredRows, tmp_path: Path
) -> None:
    result = kept(scored, tmp_path)
    assert result.file.stat().st_size < 200 * CLASSES  # 3,000 classes squared are 9,000,000 cells
    again = recorded(tmp_path)
    assert again is not None and again.test == result.test
    predicted = scored.logits.argmax(axis=1)
    expected = metrics.confusion_matrix(scored.y, predicted, labels=range(CLASSES))
    np.testing.assert_array_equal(confusion_of(again.test).table(), expected)


@pytest.mark.slow
def test_a_matrix_that_was_kept_cell_by_cell_before_is_read_as_it_was(scored: ScoredRows, tmp_path: Path) -> None:
    result = kept(scored, tmp_path)
    old = json.loads(result.file.read_text())
    old["test"]["confusion"] = confusion_of(result.test).table().tolist()
    result.file.write_text(json.dumps(old))
    again = recorded(tmp_path)
    assert again is not None
    assert matrix_of(again.test) == matrix_of(result.test)


def test_cells_that_are_none_are_damage(scored: ScoredRows, tmp_path: Path) -> None:
    result = kept(scored, tmp_path)
    told = json.loads(result.file.read_text())
    told["test"]["confusion"]["true"][0] = CLASSES
    result.file.write_text(json.dumps(told))
    with pytest.raises(HeadError, match="a confusion of as many classes as per_class has is needed"):
        recorded(tmp_path)


@pytest.mark.slow
def test_the_most_confused_of_thousands_of_classes_are_shown(
    scored: ScoredRows, tmp_path: Path, printed: Callable[..., str]
) -> None:
    result = kept(scored, tmp_path)
    table, matrix = classes_of(result.test, "test", None)
    seen = len(np.union1d(scored.y, scored.logits.argmax(axis=1)))
    assert len(matrix.classes) == seen and f"of {seen}" in table.caption
    assert "→ c0007" in printed(matrix, 100)
    picture = confusion_picture(matrix, "t", "svg").decode()
    assert f"the 100 classes most often confused, of {seen}" in picture and picture.count(">c0007<") == 2
