"""What is refused before a solver starts, and what a solver may take for granted."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from pipeline.base.errors import ConfigError, HeadError
from pipeline.heads import standardize
from pipeline.heads.problem import Problem, Split, check_classes, check_features, check_labels, class_weights


def features(n=40, d=6):
    return np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)


def test_non_finite_rows_are_counted_and_the_first_named():
    X = features()
    X[3, 1], X[3, 2], X[17, 0] = np.nan, np.inf, -np.inf
    with pytest.raises(HeadError, match=r"2 of 40 train rows .* first is row 3"):
        check_features(X, "train")


def test_first_bad_row_is_counted_from_the_start_in_later_pieces_too(monkeypatch):
    monkeypatch.setattr(standardize, "CHUNK_ROWS", 7)
    X = features()
    X[30] = np.nan
    with pytest.raises(HeadError, match=r"1 of 40 train rows .* first is row 30"):
        check_features(X, "train")


@pytest.mark.parametrize("shape", [(0, 6), (6, 0), (6,), (2, 3, 4)])
def test_features_that_are_not_a_filled_matrix_are_refused(shape):
    with pytest.raises(HeadError, match="shape"):
        check_features(np.zeros(shape, dtype=np.float32), "train")


def test_features_that_are_not_numbers_are_refused():
    with pytest.raises(HeadError, match="float16, float32 or float64"):
        check_features(np.array([["a", "b"]]), "train")


@pytest.mark.parametrize("wrong", [-1, 3])
def test_label_outside_the_classes_is_named(wrong):
    with pytest.raises(HeadError, match=rf"val label {wrong} .* outside 0 \.\.\. 2"):
        check_labels(np.array([0, wrong, 2]), 3, 3, "val")


def test_labels_that_are_not_whole_numbers_are_refused():
    with pytest.raises(HeadError, match="whole class numbers"):
        check_labels(np.array([0.0, 1.0]), 2, 2, "train")


def test_labels_of_another_count_than_the_rows_are_refused():
    with pytest.raises(HeadError, match=r"\(4,\) is needed"):
        check_labels(np.zeros(3, dtype=np.int64), 4, 2, "train")


def test_class_without_train_rows_is_named():
    with pytest.raises(HeadError, match="no train rows for class 'bee'"):
        check_classes(np.array([0, 2, 2]), 3, ["ant", "bee", "cat"])


def test_one_class_alone_is_refused():
    with pytest.raises(HeadError, match="at least 2"):
        check_classes(np.zeros(5, dtype=np.int64), 1, None)


def test_balanced_weights_are_scikit_learns():
    y = np.array([0] * 7 + [1] * 2 + [2] * 11)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y)
    np.testing.assert_allclose(class_weights(y, 3, "balanced"), expected)


def test_unknown_class_weight_is_refused():
    with pytest.raises(ConfigError, match="'even' is not known"):
        class_weights(np.array([0, 1]), 2, "even")


def problem(**changes):
    return Problem(**{"X": features(), "y": np.arange(40, dtype=np.int8) % 3, "n_classes": 3, **changes})


def test_a_problem_has_labels_weights_and_device_in_one_form():
    made = problem(sample_weight=range(40), class_weight={1: 5.0}, val=Split(features(4), [0, 1, 2, 0]))
    assert made.y.dtype == made.val.y.dtype == np.int64
    np.testing.assert_array_equal(made.row_weight, np.arange(40.0))
    np.testing.assert_array_equal(made.loss_weight, np.arange(40.0) * np.where(np.arange(40) % 3 == 1, 5, 1))
    assert made.target == torch.device("cpu") and made.n_folds == 0
    assert (problem().row_weight == 1).all() and (problem().loss_weight == 1).all()


def test_a_changed_problem_is_checked_again():
    made = problem()
    fewer = dataclasses.replace(made, X=made.X[:7], y=made.y[:7])
    assert fewer.loss_weight.shape == (7,)
    with pytest.raises(HeadError, match=r"train labels have shape \(40,\): \(7,\) is needed"):
        dataclasses.replace(made, X=made.X[:7])


def test_folds_are_counted_and_a_row_in_none_is_never_left_out():
    assert problem(folds=np.arange(40) % 5).n_folds == 5
    assert problem(folds=np.full(40, -1)).n_folds == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"X": np.full((40, 6), np.nan)}, "40 of 40 train rows hold NaN"),
        ({"y": np.zeros(40, int)}, "no train rows for class 1, 2"),
        ({"folds": np.arange(40) % 3}, "no train rows outside fold 0 for class 0"),
        ({"folds": np.arange(39) % 2}, r"folds have shape \(39,\): \(40,\) is needed"),
        ({"sample_weight": np.zeros(40)}, "every sample weight is 0"),
        ({"val": Split(features(4, 5), np.zeros(4, int))}, "val rows have 5 features, train rows 6"),
        ({"val": Split(features(4), np.full(4, 3))}, "val label 3"),
        ({"val": Split(features(4), None)}, "val labels have shape"),
        ({"val": Split(features(4)[:0], np.zeros(0, int))}, "val features have shape"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_when_the_problem_is_made(changes, words):
    with pytest.raises(HeadError, match=words):
        problem(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_weight": "even"}, "'even' is not known"),
        ({"class_weight": {0: -1.0}}, "none negative"),
        ({"class_names": ["ant", "bee"]}, "2 class names for 3 classes"),
        pytest.param(
            {"device": "cuda"},
            "'cuda' is not there: choose cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="it is there"),
        ),
    ],
)
def test_what_is_not_legal_is_refused_when_the_problem_is_made(changes, words):
    with pytest.raises(ConfigError, match=words):
        problem(**changes)


def test_a_gpu_of_a_number_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert problem(device="cuda:1").target == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="'cuda:2' is not there"):
        problem(device="cuda:2")
