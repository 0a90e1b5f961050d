"""Figures against scikit-learn."""

import json

import numpy as np
import pytest
import scipy.special
from sklearn import metrics

from pipeline.base.errors import HeadError
from pipeline.heads import standardize
from pipeline.heads.scores import metrics as ours
from pipeline.heads.scores.metrics import (
    calibration_error,
    classification_report,
    log_softmax,
    one_against_rest,
    softmax,
)


def scored(n=300, c=8, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, c, n)
    logits = rng.standard_normal((n, c)).astype(np.float32) + 2 * np.eye(c, dtype=np.float32)[y]
    return y, logits, [f"class {i}" for i in range(c)]


def test_figures_of_a_split_are_scikit_learns():
    y, logits, classes = scored()
    guess, found = logits.argmax(axis=1), classification_report(y, logits, classes)
    assert found.n == 300
    assert found.accuracy == pytest.approx(metrics.accuracy_score(y, guess))
    assert found.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(y, guess))
    assert found.macro_f1 == pytest.approx(metrics.f1_score(y, guess, average="macro"))
    assert found.log_loss == pytest.approx(metrics.log_loss(y, scipy.special.softmax(logits.astype(float), axis=1)))
    assert found.top5 == pytest.approx(metrics.top_k_accuracy_score(y, logits, k=5))
    np.testing.assert_array_equal(found.confusion.table(), metrics.confusion_matrix(y, guess))


def test_figures_of_each_class_are_scikit_learns():
    y, logits, classes = scored()
    expected = metrics.precision_recall_fscore_support(y, logits.argmax(axis=1))
    found = classification_report(y, logits, classes).per_class
    assert [scores.name for scores in found] == classes
    for figures, name in zip(expected, ("precision", "recall", "f1", "support"), strict=True):
        np.testing.assert_allclose([getattr(scores, name) for scores in found], figures)


def test_a_class_absent_from_the_split_is_in_no_mean_over_classes_though_it_was_predicted():
    y, logits, classes = scored()
    rows = y != 3
    y, logits = y[rows], logits[rows]
    guess, found = logits.argmax(axis=1), classification_report(y, logits, classes)
    assert 3 in guess
    recall = metrics.recall_score(y, guess, average=None, labels=np.unique(y))
    assert found.balanced_accuracy == pytest.approx(recall.mean())
    assert found.macro_f1 == pytest.approx(metrics.f1_score(y, guess, labels=np.unique(y), average="macro"))
    areas = [metrics.roc_auc_score(y == c, scipy.special.log_softmax(logits, axis=1)[:, c]) for c in np.unique(y)]
    assert found.auroc == pytest.approx(np.mean(areas))
    assert found.per_class[3].support == 0


def test_class_neither_present_nor_predicted_is_left_out_of_macro_f1():
    y, logits, classes = scored()
    logits[:, 3] = -100
    rows = y != 3
    guess = logits[rows].argmax(axis=1)
    found = classification_report(y[rows], logits[rows], classes)
    assert found.macro_f1 == pytest.approx(metrics.f1_score(y[rows], guess, average="macro"))


def test_auroc_is_scikit_learns_mean_of_each_class_against_the_rest():
    y, logits, classes = scored()
    p = scipy.special.softmax(logits.astype(float), axis=1)
    found = classification_report(y, logits, classes)
    assert found.auroc == pytest.approx(metrics.roc_auc_score(y, p, multi_class="ovr", average="macro"), abs=1e-12)
    each = [metrics.roc_auc_score(y == c, p[:, c]) for c in range(8)]
    np.testing.assert_allclose([scores.auroc for scores in found.per_class], each)


def test_rows_of_equal_score_count_one_half():
    y, logits, _ = scored()
    whole = logits.astype(float).round()
    each = [metrics.roc_auc_score(y == c, whole[:, c]) for c in range(8)]
    np.testing.assert_allclose(one_against_rest(y, whole), each)


def test_auroc_of_two_classes_is_scikit_learns_of_class_1():
    y, logits, classes = scored(c=2)
    expected = metrics.roc_auc_score(y, scipy.special.softmax(logits.astype(float), axis=1)[:, 1])
    assert classification_report(y, logits, classes).auroc == pytest.approx(expected)


def test_auroc_sees_differences_beyond_a_probability_of_1():
    logits = np.array([[0, 50.0], [0, 60.0], [0, 70.0], [0, 80.0]], dtype=np.float32)
    assert classification_report(np.array([0, 0, 1, 1]), logits, ["a", "b"]).auroc == 1.0


def test_auroc_leaves_out_a_class_without_rows():
    y, logits, classes = scored()
    rows = y != 3
    y, logits = y[rows], logits[rows]
    found = classification_report(y, logits, classes)
    p = scipy.special.softmax(logits.astype(float), axis=1)
    each = [metrics.roc_auc_score(y == c, p[:, c]) for c in range(8) if c != 3]
    assert found.auroc == pytest.approx(np.mean(each))
    assert found.per_class[3].auroc is None


def test_auroc_of_one_class_alone_does_not_exist():
    _, logits, classes = scored()
    assert classification_report(np.full(300, 2), logits, classes).auroc is None


def test_calibration_error_is_guos():
    """Bin by bin as Guo et al. 2017 write it."""
    y, logits, classes = scored()
    p = scipy.special.softmax(3 * logits.astype(float), axis=1)
    confidence, right, expected = p.max(axis=1), p.argmax(axis=1) == y, 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            expected += inside.sum() / len(y) * abs(right[inside].mean() - confidence[inside].mean())
    assert classification_report(y, 3 * logits, classes).ece == pytest.approx(expected)


def test_calibration_error_of_an_honest_claim_is_nothing_and_of_a_false_one_its_size():
    right = np.array([True] * 7 + [False] * 3)
    assert calibration_error(right, np.full(10, 0.7)) == pytest.approx(0)
    assert calibration_error(right, np.full(10, 1.0)) == pytest.approx(0.3)


@pytest.mark.parametrize(("c", "given"), [(2, False), (5, False), (6, True)])
def test_top5_is_given_only_where_it_can_miss(c, given):
    assert (classification_report(*scored(c=c)).top5 is not None) is given


def test_top5_takes_equal_logits_by_the_number_of_their_class():
    """As a stable sort of each row has them."""
    y, logits, classes = scored(c=12)
    logits = logits.round()
    first = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    assert len(np.unique(logits[0])) < 12
    assert classification_report(y, logits, classes).top5 == (first == y[:, None]).any(axis=1).mean()


def test_figures_of_more_rows_and_classes_than_are_taken_at_once_are_scikit_learns(monkeypatch):
    """Pieces of rows, and of columns, that do not come out even."""
    y, logits, classes = scored(n=500, c=37)
    monkeypatch.setattr(standardize, "CHUNK_ROWS", 64)
    monkeypatch.setattr(ours, "COLUMN_BYTES", 1)
    p = scipy.special.softmax(logits.astype(float), axis=1)
    found = classification_report(y, logits, classes)
    assert found.log_loss == pytest.approx(metrics.log_loss(y, p), abs=1e-12)
    assert found.top5 == metrics.top_k_accuracy_score(y, logits, k=5)
    assert found.auroc == pytest.approx(metrics.roc_auc_score(y, p, multi_class="ovr", average="macro"), abs=1e-12)
    np.testing.assert_array_equal(found.confusion.table(), metrics.confusion_matrix(y, logits.argmax(axis=1)))


def test_the_rows_are_gone_through_a_fixed_number_of_times_however_many_classes_there_are(monkeypatch):
    """And no array of the logits' size is made: what is looked at is a piece of the rows, or a few columns of them."""
    seen, sizes = [], []

    class Watched(np.ndarray):
        def __array_finalize__(self, _):
            sizes.append(self.size)

        def __getitem__(self, key):
            seen.append(key)
            return super().__getitem__(key)

    monkeypatch.setattr(standardize, "CHUNK_ROWS", 100)
    for c in (100, 400):
        y, logits, classes = scored(n=1000, c=c)
        watched = logits.view(Watched)
        seen.clear(), sizes.clear()
        monkeypatch.setattr(ours, "COLUMN_BYTES", 4 * 1000 * c // 8)
        classification_report(y, watched, classes)
        whole = [key for key in seen if isinstance(key, slice)]
        columns = [key[1] for key in seen if isinstance(key, tuple) and isinstance(key[1], slice)]
        assert len(whole) == 2 * 10  # checked, and read: ten pieces each
        assert len(columns) <= 9
        assert max(sizes[1:]) <= 1000 * c // 4


def test_without_areas_no_column_is_ranked(monkeypatch):
    monkeypatch.setattr(ours, "one_against_rest", None)
    y, logits, classes = scored()
    found = classification_report(y, logits, classes, areas=False)
    assert found.auroc is None and {scores.auroc for scores in found.per_class} == {None}
    assert found.accuracy == metrics.accuracy_score(y, logits.argmax(axis=1))


def test_softmax_of_huge_logits_stays_finite():
    logits = np.array([[1e4, 0.0, -1e4], [-3e38, 3e38, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(softmax(logits), [[1, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(log_softmax(logits), scipy.special.log_softmax(logits.astype(float), axis=1))


def test_figures_are_plain_json():
    scores = classification_report(*scored())
    again = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert again["accuracy"] == scores.accuracy
    assert again["per_class"][2]["name"] == "class 2"
    assert np.array_equal(again["confusion"], scores.confusion.table())


def test_non_finite_logits_are_refused():
    y, logits, classes = scored()
    logits[4, 0] = np.nan
    with pytest.raises(HeadError, match="1 of 300 rows"):
        classification_report(y, logits, classes)


def test_no_rows_are_refused():
    with pytest.raises(HeadError, match="at least one row"):
        classification_report(np.zeros(0, dtype=int), np.zeros((0, 2)), ["a", "b"])


def test_logits_of_another_number_of_classes_are_refused():
    y, logits, classes = scored()
    with pytest.raises(HeadError, match="shape"):
        classification_report(y, logits[:, :-1], classes)
