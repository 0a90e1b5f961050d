"""What a head has to beat: majority class, nearest centroid, k-NN, ridge, logistic regression; and what chance gives.

Knows arrays only. Each baseline gets the features that suit it, since a weak baseline flatters the head. Measured on
digits through a random ResNet50 at 64 px (val accuracy, raw against standardised on train): k-NN 0.967 against 0.915,
centroid 0.726 against 0.807, logistic regression 0.981 in 524 iterations against 0.981 in 17. So k-NN sees raw rows, as
is usual for it, the others standardised ones. Settings are fixed or, for ridge, chosen by leave-one-out on train:
nothing is selected on val or test, so test rows are scored beside val rows.
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
from sklearn.neighbors import NearestCentroid

from pipeline.base.errors import ConfigError, HeadError
from pipeline.heads.ridge import LAMBDAS, RidgeFit, ridge_path
from pipeline.heads.rows import Array, StandardRows, check_classes, check_features, check_labels
from pipeline.heads.standardize import Standardization, fit_standardization, row_chunks

NEIGHBOURS = {"knn10": 10, "knn20": 20, "knn100": 100, "knn200": 200}
BASELINES = ("majority", "centroid", *NEIGHBOURS, "ridge", "logreg")
SHUFFLED = "shuffled"
MAX_ITER = 1000
TEMPERATURE = 0.07  # of a neighbour's vote exp(cosine / temperature): Wu et al. 2018 (arXiv:1805.01978), dinov2
SIMILARITIES = 16 << 20  # of a piece of rows with all train rows, held at once

Guess = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BaselineResult:
    """One baseline's figures: accuracies on val and test, macro-F1 on test; None where the split has no rows."""

    name: str
    val: float | None
    test: float | None
    macro_f1: float | None
    seconds: float  # fit and scoring; all k-NN share one pass and its time
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

    ``shuffled`` is ridge on train labels in random order: what chance looks like on these rows. Each split is copied
    once as standardised float32; k-NN takes a normalised float32 copy of train while it runs. ``on_result`` hears each
    result as soon as it is there.

    Raises:
        ConfigError: an unknown name, or max_iter below 1.
        HeadError: features or labels that cannot be learned from or scored.
    """
    for name in names:
        if name not in (*BASELINES, SHUFFLED):
            raise ConfigError(f"baseline {name!r} is not known: choose from {', '.join((*BASELINES, SHUFFLED))}")
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
    neighbours = {name: k for name, k in NEIGHBOURS.items() if name in names}
    done: dict[str, BaselineResult] = {}
    results = []
    for name in names:
        if name in neighbours and name not in done:
            done |= _neighbours(neighbours, train, val, test, n_classes)
        elif name in ("ridge", SHUFFLED):
            done[name] = _ridge(name, train, val, test, n_classes)
        elif name not in neighbours:
            done[name] = _scikit_learn(name, train, val, test, max_iter)
        results.append(done[name])
        if on_result is not None:
            on_result(done[name])
    return results


@dataclass(frozen=True, eq=False)
class _Split:
    raw: Array  # (N, D), as given
    standard: npt.NDArray[np.float32]  # (N, D)
    y: npt.NDArray[np.int64]  # (N,)


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


def _result(
    name: str,
    val: tuple[_Split | None, Guess | None],
    test: tuple[_Split | None, Guess | None],
    *,
    start: float,
    note: str,
    converged: bool | None = None,
) -> BaselineResult:
    """The figures of guesses, timed from ``start`` until now."""
    seconds = time.perf_counter() - start
    (val_rows, on_val), (test_rows, on_test) = val, test
    macro = None
    if test_rows is not None:
        macro = float(f1_score(test_rows.y, on_test, average="macro", zero_division=0))
    return BaselineResult(
        name=name,
        val=float(accuracy_score(val_rows.y, on_val)) if val_rows is not None else None,
        test=float(accuracy_score(test_rows.y, on_test)) if test_rows is not None else None,
        macro_f1=macro,
        seconds=seconds,
        converged=converged,
        note=note,
    )


def _scikit_learn(name: str, train: _Split, val: _Split | None, test: _Split | None, max_iter: int) -> BaselineResult:
    start = time.perf_counter()
    model: Any
    if name == "majority":
        model, note = DummyClassifier(strategy="most_frequent"), "always the most frequent train class"
    elif name == "centroid":
        model, note = NearestCentroid(), "nearest class mean, standardised"
    else:
        model, note = LogisticRegression(C=1.0, max_iter=max_iter), "C = 1, lbfgs, standardised"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Says that a feature is the same in all rows of a class, which does no harm to a centroid.
        warnings.filterwarnings("ignore", message="self.within_class_std_dev_ has at least 1 zero")
        model.fit(train.standard, train.y)
    stopped = [w for w in caught if issubclass(w.category, ConvergenceWarning)]
    for other in (w for w in caught if w not in stopped):
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    converged = None
    if name == "logreg":
        converged = not stopped
        note += f", {int(np.max(model.n_iter_))} iterations" + ("" if converged else f" of {max_iter}: not converged")
    guesses = [model.predict(split.standard) if split is not None else None for split in (val, test)]
    return _result(name, (val, guesses[0]), (test, guesses[1]), start=start, note=note, converged=converged)


def _ridge(name: str, train: _Split, val: _Split | None, test: _Split | None, n_classes: int) -> BaselineResult:
    start = time.perf_counter()
    y = np.random.default_rng(0).permutation(train.y) if name == SHUFFLED else train.y
    fit = ridge_path(train.raw, y, n_classes=n_classes).best
    chosen = f"λ = {fit.lam:.4g} of {len(LAMBDAS)} by leave-one-out, standardised"
    note = f"ridge on shuffled train labels: chance; {chosen}" if name == SHUFFLED else chosen
    guesses = [_linear(fit, split.raw) if split is not None else None for split in (val, test)]
    return _result(name, (val, guesses[0]), (test, guesses[1]), start=start, note=note)


def _linear(fit: RidgeFit, X: Array) -> Guess:
    parts = [(chunk.astype(np.float32) @ fit.weight.T + fit.bias).argmax(axis=1) for _, chunk in row_chunks(X)]
    return np.concatenate(parts)


def _neighbours(
    neighbours: dict[str, int], train: _Split, val: _Split | None, test: _Split | None, n_classes: int
) -> dict[str, BaselineResult]:
    start = time.perf_counter()
    rows = len(train.y)
    ks = sorted({min(k, rows) for k in neighbours.values()})
    known, labels = _unit(train.raw), torch.from_numpy(train.y)
    guesses = [
        _votes(known, labels, split.raw, ks, n_classes) if split is not None else dict.fromkeys(ks)
        for split in (val, test)
    ]
    found = {}
    for name, asked in neighbours.items():
        k = min(asked, rows)
        note = f"k = {k}{' (every train row)' if k < asked else ''}, cosine, temperature {TEMPERATURE}, raw features"
        found[name] = _result(name, (val, guesses[0][k]), (test, guesses[1][k]), start=start, note=note)
    return found


def _unit(X: Array) -> torch.Tensor:
    """Rows (N, D) float32 of length 1; a row of zeros stays one, as far from all as from any."""
    rows = torch.empty(X.shape, dtype=torch.float32)
    for start, chunk in row_chunks(X):
        piece = torch.from_numpy(np.array(chunk, dtype=np.float32))  # a copy: the map is read-only
        rows[start : start + len(chunk)] = torch.nn.functional.normalize(piece)
    return rows


def _votes(
    known: torch.Tensor, labels: torch.Tensor, X: Array, ks: Sequence[int], n_classes: int
) -> dict[int, Guess | None]:
    """The class (n,) with the most votes among the k nearest of ``known``, for each ascending k, in one pass."""
    parts: dict[int, list[Guess]] = {k: [] for k in ks}
    queries, size = _unit(X), max(1, SIMILARITIES // len(known))
    for start in range(0, len(queries), size):
        rows = queries[start : start + size]
        similar, index = (rows @ known.T).topk(ks[-1], dim=1)
        weight, voted = torch.exp(similar / TEMPERATURE), labels[index]
        votes = torch.zeros(len(rows), n_classes)
        for k, before in zip(ks, (0, *ks), strict=False):
            votes.scatter_add_(1, voted[:, before:k], weight[:, before:k])
            # numpy's argmax gives equal votes to the class of the lowest number; torch's promises nothing.
            parts[k].append(votes.numpy().argmax(axis=1))
    return {k: np.concatenate(found) for k, found in parts.items()}
