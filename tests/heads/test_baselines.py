"""Baselines against scikit-learn used plainly."""

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import f1_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import StandardScaler, normalize

from pipeline.base.errors import ConfigError, HeadError
from pipeline.heads import baselines
from pipeline.heads.baselines import BASELINES, run_baselines
from pipeline.heads.problem import Problem, Split


def blobs(n=150, d=12, c=3, seed=0, noise=2.0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((c, d))
    y = np.arange(n) % c
    return (centres[y] + noise * rng.standard_normal((n, d))).astype(np.float16), y


def run(**options):
    train, val, test = blobs(), blobs(60, seed=1), blobs(60, seed=2)
    return {r.name: r for r in run_baselines(Problem(*train, 3, val=Split(*val)), Split(*test), **options)}


def test_logistic_regression_scores_as_scikit_learn_in_float64():
    result = run(names=["logreg"])["logreg"]
    (X, y), (X_test, y_test) = blobs(), blobs(60, seed=2)
    scaler = StandardScaler().fit(X.astype(float))
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(X.astype(float)), y)
    guess = model.predict(scaler.transform(X_test.astype(float)))
    assert result.test == pytest.approx((guess == y_test).mean(), abs=1 / 60)
    assert result.macro_f1 == pytest.approx(f1_score(y_test, guess, average="macro"), abs=0.03)
    assert result.converged is True


def test_logistic_regression_that_stops_early_says_so():
    result = run(names=["logreg"], max_iter=2)["logreg"]
    assert result.converged is False
    assert "not converged" in result.note


def test_logistic_regression_of_many_rows_is_the_exact_solvers_and_comes_to_the_same(monkeypatch):
    plain = run(names=["logreg"])["logreg"]
    monkeypatch.setattr("pipeline.heads.baselines.LOGREG_NUMBERS", 100)
    exact = run(names=["logreg"])["logreg"]
    assert (exact.val, exact.converged) == (pytest.approx(plain.val, abs=1 / 60), True)
    assert "exact solver" in exact.note and "iterations" in plain.note


def test_centroid_is_scikit_learns_nearest_centroid():
    result = run(names=["centroid"])["centroid"]
    (X, y), (X_test, y_test) = blobs(), blobs(60, seed=2)
    scaler = StandardScaler().fit(X.astype(float))
    model = NearestCentroid().fit(scaler.transform(X.astype(float)), y)
    assert result.test == pytest.approx(model.score(scaler.transform(X_test.astype(float)), y_test))
    assert 0.5 < result.test < 1


def test_cosine_centroid_is_the_nearest_class_mean_by_cosine():
    result = run(names=["cosine-centroid"])["cosine-centroid"]
    (X, y), (X_test, y_test) = blobs(), blobs(60, seed=2)
    rows = normalize(X.astype(float))
    means = np.stack([rows[y == c].mean(axis=0) for c in range(3)])
    guess = cosine_similarity(X_test.astype(float), means).argmax(axis=1)
    assert result.test == pytest.approx((guess == y_test).mean()) and 0.5 < result.test < 1


def test_majority_scores_the_share_of_the_most_frequent_class():
    X, y = blobs(90)
    y = np.where(np.arange(90) < 60, 1, y)
    _, y_test = blobs(60, seed=2)
    (result,) = run_baselines(Problem(X, y, 3), Split(X[:60], y_test), names=["majority"])
    assert result.test == pytest.approx((y_test == 1).mean())


def test_separable_classes_are_found_by_every_baseline_but_majority():
    train, test = blobs(noise=0.05), blobs(60, seed=2, noise=0.05)
    results = list(run_baselines(Problem(*train, 3, val=Split(*test)), Split(*test)))
    assert [r.name for r in results] == list(BASELINES)
    assert results[0].test == pytest.approx(1 / 3)
    assert {r.test for r in results[1:]} == {1.0}


def test_splits_without_rows_have_no_figures():
    X, y = blobs()
    (result,) = run_baselines(Problem(X, y, 3), names=["centroid"])
    assert (result.val, result.test, result.macro_f1) == (None, None, None)


def test_neighbours_are_no_more_than_the_train_rows():
    X, y = blobs(15)
    results = run_baselines(Problem(X, y, 3, val=Split(X, y)), names=["knn10", "knn20", "knn200"])
    assert [r.note.split(",")[0] for r in results] == ["k = 10", *["k = 15 (every train row)"] * 2]


def test_cosine_centroids_hold_a_piece_of_the_rows_at_a_time(monkeypatch):
    X = np.random.default_rng(0).standard_normal((20_000, 4)).astype(np.float16)
    y, sizes, unit = np.arange(20_000) % 3, [], baselines._unit
    monkeypatch.setattr(baselines, "_unit", lambda rows: sizes.append(len(rows)) or unit(rows))
    found = baselines.cosine_centroids(X, y, 3)
    Z = X.astype(np.float64) / np.linalg.norm(X.astype(np.float64), axis=1, keepdims=True)
    means = np.stack([Z[y == c].mean(axis=0) for c in range(3)])
    np.testing.assert_allclose(found, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-4)
    assert sum(sizes) == 20_000 and max(sizes) <= 8192


@pytest.mark.parametrize(("rows_at_once", "known"), [(None, None), (7, None), (7, 130), (60, 1)])
def test_neighbours_vote_as_scikit_learns_on_raw_features(rows_at_once, known, monkeypatch):
    """A baseline is not weakened; k-NN scored higher on raw features than on standardised ones."""
    if rows_at_once:
        monkeypatch.setattr("pipeline.heads.baselines.SIMILARITIES", rows_at_once * 300)
    if known:
        monkeypatch.setattr("pipeline.heads.baselines.KNOWN", known)
    (X, y), (X_test, y_test) = blobs(300), blobs(60, seed=2)
    X, X_test = X * np.linspace(0.1, 5, 12), X_test * np.linspace(0.1, 5, 12)
    scored = Split(X_test, y_test)
    results = list(run_baselines(Problem(X, y, 3, val=scored), scored, names=["knn200", "knn10", "knn100"]))
    assert [r.name for r in results] == ["knn200", "knn10", "knn100"]
    for result, k in zip(results, (200, 10, 100), strict=True):
        model = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
        guess = model.fit(X, y).predict(X_test)
        assert result.val == result.test == pytest.approx((guess == y_test).mean())
        assert result.macro_f1 == pytest.approx(f1_score(y_test, guess, average="macro"))
        scaler = StandardScaler().fit(X)
        assert result.test != model.fit(scaler.transform(X), y).score(scaler.transform(X_test), y_test)


def test_of_too_many_rows_neighbours_score_a_part_and_say_so(monkeypatch):
    (X, y), (X_val, y_val) = blobs(300), blobs(60, seed=2)
    monkeypatch.setattr("pipeline.heads.baselines.PRODUCTS", 20 * X.size)
    results = list(run_baselines(Problem(X, y, 3, val=Split(X_val, y_val)), names=["knn10", "centroid"]))
    at = np.linspace(0, 59, 20).round().astype(int)
    model = KNeighborsClassifier(10, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    assert results[0].val == pytest.approx(model.fit(X, y).score(X_val[at], y_val[at]))
    assert results[0].note.endswith("; on 20 of 60 val rows") and "of 60" not in results[1].note


@pytest.mark.slow
def test_ridge_scores_as_scikit_learns_at_the_penalty_with_the_best_left_out_accuracy():
    result = run(names=["ridge"])["ridge"]
    (X, y), (X_test, y_test) = blobs(), blobs(60, seed=2)
    scaler = StandardScaler().fit(X.astype(float))
    X, X_test = scaler.transform(X.astype(float)), scaler.transform(X_test.astype(float))

    def left_out(alpha):
        rows = np.arange(len(y))
        hits = [RidgeClassifier(alpha).fit(X[rows != i], y[rows != i]).predict(X[i : i + 1])[0] == y[i] for i in rows]
        return np.mean(hits)

    alpha = float(result.note.split()[2])
    assert left_out(alpha) >= max(left_out(other) for other in (1e-2, 10.0, 1e3))
    assert result.test == pytest.approx((RidgeClassifier(alpha).fit(X, y).predict(X_test) == y_test).mean())
    assert result.converged is None


def test_shuffled_labels_score_as_chance_where_true_ones_score_full():
    train, test = blobs(900, noise=0.05), blobs(900, seed=2, noise=0.05)
    results = list(run_baselines(Problem(*train, 3), Split(*test), names=["ridge", "shuffled"]))
    assert results[0].test == 1.0
    assert results[1].test < 0.7  # three tight blobs, each of which gets one of three classes by chance
    assert "chance" in results[1].note


def test_each_result_is_there_before_the_next_is_worked_out(monkeypatch):
    fitted = []

    class Counted(DummyClassifier):
        def fit(self, *arguments):
            fitted.append(self.strategy)
            return super().fit(*arguments)

    monkeypatch.setattr("pipeline.heads.baselines.DummyClassifier", Counted)
    results = run_baselines(Problem(*blobs(), 3), names=["majority", "majority"])
    assert fitted == []
    assert next(results).name == "majority" and len(fitted) == 1
    assert next(results).name == "majority" and len(fitted) == 2


def test_constant_columns_do_no_harm():
    X, y = blobs(noise=0.05)
    X[:, 3] = 7
    assert all(r.val == 1.0 for r in list(run_baselines(Problem(X, y, 3, val=Split(X, y))))[1:])


def test_rows_that_are_all_the_same_are_refused():
    X, y = blobs()
    with pytest.raises(HeadError, match="the same features"):
        run_baselines(Problem(np.ones_like(X), y, 3))


def test_test_rows_of_another_trunk_are_refused():
    X, y = blobs()
    with pytest.raises(HeadError, match="test rows have 11 features, train rows 12"):
        run_baselines(Problem(X, y, 3), Split(X[:, :11], y))


def test_unknown_baseline_is_refused_with_the_legal_ones():
    with pytest.raises(ConfigError, match="'svm' is not known: choose from majority, centroid, cosine-centroid, knn10"):
        run(names=["svm"])
