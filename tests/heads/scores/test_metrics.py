"""Figures against scikit-learn."""

import json

import numpy as np
import pytest
import scipy.special
from sklearn import metrics

from pipeline.base.errors import HeadError
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
    guess, ours = logits.argmax(axis=1), classification_report(y, logits, classes)
    assert ours.n == 300
    assert ours.accuracy == pytest.approx(metrics.accuracy_score(y, guess))
    assert ours.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(y, guess))
    assert ours.macro_f1 == pytest.approx(metrics.f1_score(y, guess, average="macro"))
    assert ours.log_loss == pytest.approx(metrics.log_loss(y, scipy.special.softmax(logits.astype(float), axis=1)))
    assert ours.top5 == pytest.approx(metrics.top_k_accuracy_score(y, logits, k=5))
    np.testing.assert_array_equal(ours.confusion, metrics.confusion_matrix(y, guess))


def test_figures_of_each_class_are_scikit_learns():
    y, logits, classes = scored()
    expected = metrics.precision_recall_fscore_support(y, logits.argmax(axis=1))
    ours = classification_report(y, logits, classes).per_class
    assert [scores.name for scores in ours] == classes
    for figures, name in zip(expected, ("precision", "recall", "f1", "support"), strict=True):
        np.testing.assert_allclose([getattr(scores, name) for scores in ours], figures)


def test_a_class_absent_from_the_split_is_in_no_mean_over_classes_though_it_was_predicted():
    y, logits, classes = scored()
    rows = y != 3
    y, logits = y[rows], logits[rows]
    guess, ours = logits.argmax(axis=1), classification_report(y, logits, classes)
    assert 3 in guess
    recall = metrics.recall_score(y, guess, average=None, labels=np.unique(y))
    assert ours.balanced_accuracy == pytest.approx(recall.mean())
    assert ours.macro_f1 == pytest.approx(metrics.f1_score(y, guess, labels=np.unique(y), average="macro"))
    areas = [metrics.roc_auc_score(y == c, scipy.special.log_softmax(logits, axis=1)[:, c]) for c in np.unique(y)]
    assert ours.auroc == pytest.approx(np.mean(areas))
    assert ours.per_class[3].support == 0


def test_class_neither_present_nor_predicted_is_left_out_of_macro_f1():
    y, logits, classes = scored()
    logits[:, 3] = -100
    rows = y != 3
    guess = logits[rows].argmax(axis=1)
    ours = classification_report(y[rows], logits[rows], classes)
    assert ours.macro_f1 == pytest.approx(metrics.f1_score(y[rows], guess, average="macro"))


def test_auroc_is_scikit_learns_mean_of_each_class_against_the_rest():
    y, logits, classes = scored()
    p = scipy.special.softmax(logits.astype(float), axis=1)
    ours = classification_report(y, logits, classes)
    assert ours.auroc == pytest.approx(metrics.roc_auc_score(y, p, multi_class="ovr", average="macro"), abs=1e-12)
    each = [metrics.roc_auc_score(y == c, p[:, c]) for c in range(8)]
    np.testing.assert_allclose([scores.auroc for scores in ours.per_class], each)


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
    ours = classification_report(y, logits, classes)
    p = scipy.special.softmax(logits.astype(float), axis=1)
    each = [metrics.roc_auc_score(y == c, p[:, c]) for c in range(8) if c != 3]
    assert ours.auroc == pytest.approx(np.mean(each))
    assert ours.per_class[3].auroc is None


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


def test_softmax_of_huge_logits_stays_finite():
    logits = np.array([[1e4, 0.0, -1e4], [-3e38, 3e38, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(softmax(logits), [[1, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(log_softmax(logits), scipy.special.log_softmax(logits.astype(float), axis=1))


def test_figures_are_plain_json():
    scores = classification_report(*scored())
    again = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert again["accuracy"] == scores.accuracy
    assert again["per_class"][2]["name"] == "class 2"
    assert np.array_equal(again["confusion"], scores.confusion)


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
