"""What a head has to beat: scikit-learn's majority class, nearest centroid, k-NN and logistic regression.

Knows arrays only. Each baseline gets the features that suit it, since a weak baseline flatters the head. Measured on
digits through a random ResNet50 at 64 px (val accuracy, raw against standardised on train): k-NN 0.967 against 0.915,
centroid 0.726 against 0.807, logistic regression 0.981 in 524 iterations against 0.981 in 17. So k-NN sees raw rows, as
is usual for it, the others standardised ones. Nothing is selected here, so test rows are scored beside val rows.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from pipeline.errors import ConfigError, HeadError
from pipeline.heads.rows import Array, StandardRows, check_classes, check_features, check_labels
from pipeline.heads.standardize import Standardization, fit_standardization

BASELINES = ("majority", "centroid", "knn", "logreg")
NEIGHBOURS = 10
MAX_ITER = 1000


@dataclass(frozen=True)
class BaselineResult:
    """One baseline's figures: accuracies on val and test, macro-F1 on test; None where the split has no rows."""

    name: str
    val: float | None
    test: float | None
    macro_f1: float | None
    seconds: float  # fit and scoring
    converged: bool | None  # None where nothing iterates
    note: str


def run_baselines(
    X_train: Array,
    y_train: Array,
    X_val: Array | None,
    y_val: Array | None,
    X_test: Array | None,
    y_test: Array | None,
    *,
    n_classes: int,
    names: Sequence[str] = BASELINES,
    max_iter: int = MAX_ITER,
    class_names: Sequence[str] | None = None,
    on_result: Callable[[BaselineResult], None] | None = None,
) -> list[BaselineResult]:
    """One result for each name, in their order; X: (N, D) float, y: (N,) class numbers, no rows or None: no figure.

    Each split is copied once as standardised float32; k-NN takes a raw float32 copy while it runs. ``on_result`` hears
    each result as soon as it is there.

    Raises:
        ConfigError: an unknown name, or max_iter below 1.
        HeadError: features or labels that cannot be learned from or scored.
    """
    for name in names:
        if name not in BASELINES:
            raise ConfigError(f"baseline {name!r} is not known: choose from {', '.join(BASELINES)}")
    if max_iter < 1:
        raise ConfigError(f"max_iter is {max_iter}: it must be at least 1")
    check_features(X_train, "train")
    y = check_labels(y_train, len(X_train), n_classes, "train")
    check_classes(y, n_classes, class_names)
    s = fit_standardization(X_train)
    train = _Split(X_train, _standard(X_train, s), y)
    if not train.standard.any():
        raise HeadError(
            "every train row has the same features: nothing can be told apart, check the images and weights"
        )
    val, test = _scored(X_val, y_val, s, n_classes, "val"), _scored(X_test, y_test, s, n_classes, "test")
    results = []
    for name in names:
        result = _run(name, train, val, test, max_iter)
        results.append(result)
        if on_result is not None:
            on_result(result)
    return results


@dataclass(frozen=True, eq=False)
class _Split:
    raw: Array  # (N, D), as given
    standard: npt.NDArray[np.float32]  # (N, D)
    y: npt.NDArray[np.int64]  # (N,)

    def rows(self, name: str) -> npt.NDArray[np.float32]:
        """The features that the baseline ``name`` sees."""
        return self.raw.astype(np.float32) if name == "knn" else self.standard


def _standard(X: Array, s: Standardization) -> npt.NDArray[np.float32]:
    rows = StandardRows(X, s, torch.device("cpu"), resident=True)
    return np.concatenate([piece.numpy() for _, piece in rows.chunks()])


def _scored(X: Array | None, y: Array | None, s: Standardization, n_classes: int, what: str) -> _Split | None:
    if X is None or y is None or len(X) == 0:
        return None
    check_features(X, what)
    if X.shape[1] != len(s.mean):
        raise HeadError(f"{what} rows have {X.shape[1]} features, train rows {len(s.mean)}: one trunk gives both")
    return _Split(X, _standard(X, s), check_labels(y, len(X), n_classes, what))


def _model(name: str, n_rows: int, max_iter: int) -> tuple[Any, str]:
    if name == "majority":
        return DummyClassifier(strategy="most_frequent"), "always the most frequent train class"
    if name == "centroid":
        return NearestCentroid(), "nearest class mean, standardised"
    if name == "knn":
        k = min(NEIGHBOURS, n_rows)
        return KNeighborsClassifier(n_neighbors=k, metric="cosine", algorithm="brute"), f"k = {k}, cosine, raw features"
    return LogisticRegression(C=1.0, max_iter=max_iter), "C = 1, lbfgs, standardised"


def _run(name: str, train: _Split, val: _Split | None, test: _Split | None, max_iter: int) -> BaselineResult:
    start = time.perf_counter()
    model, note = _model(name, len(train.y), max_iter)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Says that a feature is the same in all rows of a class, which does no harm to a centroid.
        warnings.filterwarnings("ignore", message="self.within_class_std_dev_ has at least 1 zero")
        model.fit(train.rows(name), train.y)
    stopped = [w for w in caught if issubclass(w.category, ConvergenceWarning)]
    for other in (w for w in caught if w not in stopped):
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    converged = None
    if name == "logreg":
        converged = not stopped
        note += f", {int(np.max(model.n_iter_))} iterations" + ("" if converged else f" of {max_iter}: not converged")
    guess_val = model.predict(val.rows(name)) if val is not None else None
    guess_test = model.predict(test.rows(name)) if test is not None else None
    seconds = time.perf_counter() - start
    return BaselineResult(
        name=name,
        val=float(accuracy_score(val.y, guess_val)) if val is not None else None,
        test=float(accuracy_score(test.y, guess_test)) if test is not None else None,
        macro_f1=float(f1_score(test.y, guess_test, average="macro", zero_division=0)) if test is not None else None,
        seconds=seconds,
        converged=converged,
        note=note,
    )
