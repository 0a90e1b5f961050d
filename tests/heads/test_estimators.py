"""The heads as scikit-learn estimators: its own checks, and its own logistic regression as the reference."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import pipeline.heads
from pipeline.heads import ExactLinearHead, ExactLinearHeadCV, MinibatchHead

X, Y = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])
NO_INTERCEPT = "cosines have no intercept: a class cannot be favoured where the rows of both look alike"


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (ExactLinearHead(), {}),
        pytest.param(ExactLinearHeadCV(Cs=3, cv=2), {}, marks=pytest.mark.slow),
        pytest.param(MinibatchHead(), {}, marks=pytest.mark.slow),
        pytest.param(MinibatchHead(solver="sgd"), {}, marks=pytest.mark.slow),
        pytest.param(MinibatchHead("mlp", width=16, epochs=20), {}, marks=pytest.mark.slow),
        pytest.param(
            MinibatchHead("cosine", epochs=20),
            {"check_class_weight_classifiers": NO_INTERCEPT},
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda v: type(v).__name__ if not isinstance(v, dict) else "",
)
def test_scikit_learns_own_checks_pass(estimator, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_estimator(estimator, expected_failed_checks=expected, on_skip=None)


@pytest.mark.parametrize("classes", [2, 3])
def test_coefficients_are_logistic_regressions_on_standardised_features(classes):
    keep = classes > Y
    x, y = X[keep], NAMES[Y[keep]]
    head = ExactLinearHead(C=0.7).fit(x, y)
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=0.7, tol=1e-12, max_iter=100_000).fit(scaler.transform(x), y)
    np.testing.assert_allclose(head.coef_ * scaler.scale_, model.coef_, atol=1e-5)
    np.testing.assert_allclose(head.predict_proba(x), model.predict_proba(scaler.transform(x)), atol=1e-6)
    np.testing.assert_allclose(head.decision_function(x), model.decision_function(scaler.transform(x)), atol=1e-5)
    assert head.coef_.shape == model.coef_.shape and head.intercept_.shape == model.intercept_.shape
    assert list(head.classes_) == list(model.classes_)
    assert head.converged_ and head.grad_norm_ <= 1e-10


def test_float32_stays_float32_and_agrees():
    head, wide = ExactLinearHead(C=1.0).fit(X.astype(np.float32), Y), ExactLinearHead(C=1.0).fit(X, Y)
    assert head.coef_.dtype == np.float32 and wide.coef_.dtype == np.float64
    np.testing.assert_allclose(head.coef_, wide.coef_, atol=2e-3 * np.abs(wide.coef_).max())


def test_too_few_iterations_warn():
    with pytest.warns(ConvergenceWarning, match="raise max_iter"):
        ExactLinearHead(max_iter=1).fit(X, Y)


def test_cross_validation_chooses_as_scikit_learn_does():
    Cs, cv = [1e-4, 1e-2, 1.0, 100.0], StratifiedKFold(4, shuffle=True, random_state=0)
    Z = StandardScaler().fit_transform(X)
    with pytest.warns(UserWarning, match="C = 100 is the highest of Cs"):
        ours = ExactLinearHeadCV(Cs, cv=cv, standardize=False, scoring="accuracy").fit(Z, Y)
    theirs = np.array(
        [
            [LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(Z[i], Y[i]).score(Z[o], Y[o]) for C in Cs]
            for i, o in cv.split(Z, Y)
        ]
    )
    np.testing.assert_allclose(ours.scores_, theirs)
    assert Cs[theirs.mean(axis=0).argmax()] == ours.C_
    refit = ExactLinearHead(C=ours.C_, standardize=False).fit(Z, Y)
    np.testing.assert_allclose(ours.coef_, refit.coef_, atol=1e-7)


def test_cross_validation_by_log_loss_and_with_overlapping_folds():
    head = ExactLinearHeadCV([0.1, 1, 10, 100, 1000], cv=3).fit(X, Y)
    assert head.scores_.shape == (3, 5) and (head.scores_ < 0).all()
    assert head.scores_.mean(axis=0).argmax() == [0.1, 1, 10, 100, 1000].index(head.C_)
    twice = [(np.arange(10, 150), np.arange(10)), (np.arange(10, 150), np.arange(10))]
    with pytest.raises(ValueError, match="leaves a row out twice"):
        ExactLinearHeadCV(2, cv=twice).fit(X, Y)


@pytest.mark.slow
def test_a_penalty_given_twice_is_scored_twice():
    once, twice = (ExactLinearHeadCV(Cs, cv=3).fit(X, Y) for Cs in ([0.01, 10.0, 1e4], [0.01, 0.01, 10.0, 10.0, 1e4]))
    np.testing.assert_array_equal(twice.scores_, once.scores_[:, [0, 0, 1, 1, 2]])
    assert twice.C_ == once.C_


@pytest.mark.slow
@pytest.mark.parametrize("head", [ExactLinearHead(C=10.0), ExactLinearHeadCV([1.0, 10.0, 1e4], cv=3)])
def test_float16_rows_are_scored_in_float32(head):
    """Float16 logits near 200 are 0.1 apart."""
    narrow = (100 * X).astype(np.float16)
    narrowly, widely = clone(head).fit(narrow, Y), clone(head).fit(narrow.astype(np.float32), Y)
    assert narrowly.predict_proba(narrow).dtype == np.float32
    np.testing.assert_allclose(narrowly.predict_log_proba(narrow), widely.predict_log_proba(narrow.astype(np.float32)))


def test_equal_scores_go_to_the_lower_log_loss():
    """Accuracies of separable rows are equal over decades of C; the strongest penalty is the least sure of them."""
    keep = Y < 2
    with pytest.warns(UserWarning, match="C = 1 is the highest of Cs"):
        head = ExactLinearHeadCV([0.01, 0.1, 1.0], cv=3, scoring="accuracy").fit(X[keep], Y[keep])
    assert (head.scores_ == 1).all() and head.C_ == 1.0


def test_copies_of_a_row_are_left_out_together():
    """Every row twice and noise for labels: with copies on both sides of a fold the noise looks learnable."""
    rng = np.random.default_rng(0)
    rows, labels = np.repeat(rng.standard_normal((40, 60)), 2, axis=0), np.repeat(rng.integers(0, 2, 40), 2)
    groups, head = np.repeat(np.arange(40), 2), ExactLinearHeadCV([1.0], cv=4, scoring="accuracy")
    apart, together = clone(head).fit(rows, labels), clone(head).fit(rows, labels, groups=groups)
    assert apart.scores_.mean() > 0.85 and together.scores_.mean() < 0.65
    folds = together._folds(rows, labels, groups)
    assert (folds[::2] == folds[1::2]).all()
    with pytest.raises(ValueError, match="inconsistent numbers of samples: .*80, 10"):
        clone(head).fit(rows, labels, groups=groups[:10])


def test_heads_work_in_pipelines_grid_searches_and_cross_validation():
    grid = GridSearchCV(make_pipeline(StandardScaler(), ExactLinearHead()), {"exactlinearhead__C": [0.01, 1.0]}, cv=3)
    grid.fit(X, NAMES[Y])
    assert grid.best_score_ > 0.9
    assert cross_val_score(ExactLinearHead(C=1.0), X, Y, cv=KFold(3, shuffle=True, random_state=0)).min() > 0.9
    assert clone(ExactLinearHeadCV([1.0, 2.0], cv=3)).get_params()["Cs"] == [1.0, 2.0]


def test_class_weights_by_name_are_those_of_repeated_rows():
    y = NAMES[Y]
    head = ExactLinearHead(standardize=False, class_weight={"virginica": 3.0}).fit(X, y)
    rows = np.repeat(np.arange(len(y)), np.where(y == "virginica", 3, 1))
    again = ExactLinearHead(standardize=False).fit(X[rows], y[rows])
    np.testing.assert_allclose(head.coef_, again.coef_, atol=1e-6)
    with pytest.raises(ValueError, match="'rose', which is none of the classes"):
        ExactLinearHead(class_weight={"rose": 2.0}).fit(X, y)


def test_a_minibatch_head_stops_early_on_the_rows_it_holds_out():
    head = MinibatchHead(lr=0.05, epochs=200, patience=20, validation_fraction=0.3, random_state=1).fit(X, Y)
    assert head.n_iter_ < 200 and head.score(X, Y) > 0.9
    again = MinibatchHead(lr=0.05, epochs=200, patience=20, validation_fraction=0.3, random_state=1).fit(X, Y)
    np.testing.assert_array_equal(head.coef_, again.coef_)
    with pytest.raises(ValueError, match="diverged"):
        MinibatchHead(solver="sgd", lr=1e300, epochs=3).fit(X, Y)


def test_a_row_of_no_weight_is_not_held_out_to_choose_the_epoch():
    """Half of the rows have labels drawn at random, and no weight: with them the best epoch is one of the first."""
    rows, labels = np.concatenate([X, X]), np.concatenate([Y, np.random.default_rng(0).permutation(Y)])
    head = MinibatchHead(lr=0.01, epochs=30, patience=30, validation_fraction=0.3)
    weighed = head.fit(rows, labels, sample_weight=np.repeat([1.0, 0.0], len(X)))
    inside, outside = weighed._held_out(labels, 0, np.repeat([1.0, 0.0], len(X)))
    assert len(outside) == 45 and outside.max() < len(X)
    np.testing.assert_array_equal(np.sort(np.concatenate([inside, outside])), np.arange(2 * len(X)))


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (ExactLinearHead(C=-1.0), "C is -1.0"),
        (ExactLinearHead(class_weight="odd"), "class weight 'odd'"),
        (ExactLinearHead(class_weight={0: -1.0}), "none negative"),
        (ExactLinearHeadCV(Cs=[]), "no C"),
        (MinibatchHead(lr=-1.0), "lr is -1.0"),
        (MinibatchHead("round"), "kind 'round' is not known"),
    ],
)
def test_what_the_solvers_refuse_is_a_value_error_as_scikit_learns_users_expect(head, words):
    with pytest.raises(ValueError, match=words):
        head.fit(X, Y)


def test_rows_that_are_all_the_same_are_a_value_error():
    with pytest.raises(ValueError, match="the same features"):
        ExactLinearHead().fit(np.full((12, 3), 0.1), np.arange(12) % 2)


def test_random_state_may_be_what_scikit_learn_takes():
    head = MinibatchHead(epochs=2, batch_size=16)
    first, again, other = (
        clone(head).set_params(random_state=np.random.RandomState(seed)).fit(X, Y).coef_ for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert head.set_params(random_state=None, validation_fraction=0.2).fit(X, Y).n_iter_ == 2
    with pytest.warns(UserWarning, match="highest"):
        assert len(ExactLinearHeadCV(np.int64(3), cv=np.int64(2), random_state=None).fit(X, Y).Cs_) == 3


def test_settings_are_read_without_torch_and_heads_are_imported_when_asked_for():
    code = (
        "import sys, pipeline.heads.minibatch.config; from pipeline.heads import __all__; "
        "sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'NoHead'"):
        pipeline.heads.NoHead
