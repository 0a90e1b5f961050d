"""What is refused before a solver starts, and the rows that a solver sees."""

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight

from pipeline.base.errors import ConfigError, HeadError
from pipeline.heads import standardize
from pipeline.heads.rows import StandardRows, check_classes, check_features, check_labels, class_weights
from pipeline.heads.standardize import fit_standardization

CPU = torch.device("cpu")


def features(n=40, d=6):
    return np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)


def test_non_finite_rows_are_counted_and_the_first_named():
    """H3."""
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
    """L6."""
    with pytest.raises(HeadError, match="no train rows for class 'bee'"):
        check_classes(np.array([0, 2, 2]), 3, ["ant", "bee", "cat"])


def test_one_class_alone_is_refused():
    with pytest.raises(HeadError, match="at least 2"):
        check_classes(np.zeros(5, dtype=np.int64), 1, None)


def test_balanced_weights_are_scikit_learns():
    """L5."""
    y = np.array([0] * 7 + [1] * 2 + [2] * 11)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y)
    np.testing.assert_allclose(class_weights(y, 3, "balanced"), expected)


def test_unknown_class_weight_is_refused():
    with pytest.raises(ConfigError, match="'even' is not known"):
        class_weights(np.array([0, 1]), 2, "even")


@pytest.mark.parametrize("resident", [True, False])
def test_rows_from_a_float16_map_are_standardised_float32(tmp_path, resident):
    stored = np.memmap(tmp_path / "x.bin", dtype=np.float16, mode="w+", shape=(40, 6))
    stored[:] = features() * 3 + 1
    stored.flush()
    X = np.memmap(tmp_path / "x.bin", dtype=np.float16, mode="r", shape=(40, 6))
    rows = StandardRows(X, fit_standardization(X), CPU, resident=resident)
    expected = StandardScaler().fit_transform(X.astype(np.float64))
    index = np.array([2, 5, 39])
    taken = rows.take(index)
    assert taken.dtype == torch.float32
    np.testing.assert_allclose(taken.numpy(), expected[index], atol=1e-6)
    np.testing.assert_allclose(np.concatenate([piece.numpy() for _, piece in rows.chunks()]), expected, atol=1e-6)


def test_held_rows_are_a_copy():
    X = features()
    before = X.copy()
    StandardRows(X, fit_standardization(X), CPU, resident=True)
    np.testing.assert_array_equal(X, before)
