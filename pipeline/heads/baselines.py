"""What a head has to beat: majority class, nearest centroids, k-NN, ridge, logistic regression; and what chance gives.

Knows arrays only. Each baseline gets the features that suit it, since a weak baseline flatters the head. Measured on
digits and CIFAR-10 through an ImageNet-trained EfficientNet-Lite0 (val accuracy, raw against standardised): k-NN
(k = 20) 0.866 against 0.851 and 0.729 against 0.735, Euclidean centroid 0.714 against 0.781 and 0.655 against 0.675,
logistic regression in 338 iterations against 28 and 362 against 70. So whatever goes by cosines sees raw rows, as is
usual for it, the others standardised ones. Settings are fixed or, for ridge, chosen by leave-one-out on train:
nothing is selected on val or test, so test rows are scored beside val rows.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from pipeline.heads.problem import Problem, Split
from pipeline.heads.ridge import LAMBDAS, RidgeFit, ridge_path
from pipeline.heads.rows import Array, StandardRows
from pipeline.heads.standardize import Standardization, fit_standardization, row_chunks

NEIGHBOURS = {"knn10": 10, "knn20": 20, "knn100": 100, "knn200": 200}
COSINE_CENTROID = "cosine-centroid"
BASELINES = ("majority", "centroid", COSINE_CENTROID, *NEIGHBOURS, "ridge", "logreg")
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
    problem: Problem, test: Split | None = None, *, names: Sequence[str] = BASELINES, max_iter: int = MAX_ITER
) -> Iterator[BaselineResult]:
    """A result for each name, in their order, each as soon as it is there; no figure for a split that is not given.

    Of the problem the rows, the classes and the val rows count, not weights or device. ``shuffled`` is ridge on train
    labels in random order: what chance looks like on these rows. Each split is copied once as standardised float32;
    k-NN takes a normalised float32 copy of train while it runs.

    Raises:
        ConfigError: an unknown name, or max_iter below 1.
        HeadError: every train row has the same features, or test rows that cannot be scored.
    """
    for name in names:
        if name not in (*BASELINES, SHUFFLED):
            raise ConfigError(f"baseline {name!r} is not known: choose from {', '.join((*BASELINES, SHUFFLED))}")
    if max_iter < 1:
        raise ConfigError(f"max_iter is {max_iter}: it must be at least 1")
    if test is not None:
        test = test.checked("test", problem.X.shape[1], problem.n_classes)
    rows = _Splits(problem, test)
    if not rows.train.standard.any():
        raise HeadError(
            "every train row has the same features: nothing can be told apart, check the images and weights"
        )
    return _results(rows, names, max_iter)


def _results(rows: _Splits, names: Sequence[str], max_iter: int) -> Iterator[BaselineResult]:
    neighbours = {name: k for name, k in NEIGHBOURS.items() if name in names}
    done: dict[str, BaselineResult] = {}
    for name in names:
        if name in neighbours and name not in done:
            done |= _neighbours(neighbours, rows)
        elif name == COSINE_CENTROID:
            done[name] = _cosine_centroid(rows)
        elif name in ("ridge", SHUFFLED):
            done[name] = _ridge(name, rows)
        elif name not in neighbours:
            done[name] = _scikit_learn(name, rows, max_iter)
        yield done[name]


class _Rows:
    """One split: rows as given (N, D), standardised float32 (N, D), and class numbers (N,)."""

    def __init__(self, split: Split | Problem, s: Standardization) -> None:
        self.raw, self.y = split.X, split.y
        rows = StandardRows(split.X, s, torch.device("cpu"), resident=True)
        self.standard = np.concatenate([piece.numpy() for _, piece in rows.chunks()])


class _Splits:
    """Train rows, and val and test rows where there are any."""

    def __init__(self, problem: Problem, test: Split | None) -> None:
        s = fit_standardization(problem.X)
        self.n_classes, self.train = problem.n_classes, _Rows(problem, s)
        self.val, self.test = (None if split is None else _Rows(split, s) for split in (problem.val, test))

    def guessed(self, guess: Callable[[_Rows], Guess]) -> tuple[Guess | None, Guess | None]:
        """Class numbers of val and test rows."""
        val, test = (None if rows is None else guess(rows) for rows in (self.val, self.test))
        return val, test


def _result(
    name: str, rows: _Splits, guesses: tuple[Guess | None, Guess | None], *, start: float, note: str
) -> BaselineResult:
    """The figures of guesses on val and test, timed from ``start`` until now."""
    seconds = time.perf_counter() - start
    val, test, macro = None, None, None
    if rows.val is not None:
        val = float(accuracy_score(rows.val.y, guesses[0]))
    if rows.test is not None:
        test = float(accuracy_score(rows.test.y, guesses[1]))
        macro = float(f1_score(rows.test.y, guesses[1], labels=np.unique(rows.test.y), average="macro"))
    return BaselineResult(name, val, test, macro, seconds, converged=None, note=note)


def _scikit_learn(name: str, rows: _Splits, max_iter: int) -> BaselineResult:
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
        model.fit(rows.train.standard, rows.train.y)
    stopped = [w for w in caught if issubclass(w.category, ConvergenceWarning)]
    for other in (w for w in caught if w not in stopped):
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    converged = None
    if name == "logreg":
        converged = not stopped
        note += f", {int(np.max(model.n_iter_))} iterations" + ("" if converged else f" of {max_iter}: not converged")
    guesses = rows.guessed(lambda split: model.predict(split.standard))
    return replace(_result(name, rows, guesses, start=start, note=note), converged=converged)


def _cosine_centroid(rows: _Splits) -> BaselineResult:
    start = time.perf_counter()
    centroids = cosine_centroids(rows.train.raw, rows.train.y, rows.n_classes)
    guesses = rows.guessed(lambda split: nearest_by_cosine(centroids, split.raw))
    return _result(COSINE_CENTROID, rows, guesses, start=start, note="nearest class mean by cosine, raw features")


def cosine_centroids(X: Array, y: npt.NDArray[np.int64], n_classes: int) -> torch.Tensor:
    """The direction (C, D) float32 of each class: the mean of its rows (N, D), each of length 1."""
    total = torch.zeros(n_classes, X.shape[1])
    return torch.nn.functional.normalize(total.index_add_(0, torch.from_numpy(y), _unit(X)))


def nearest_by_cosine(centroids: torch.Tensor, X: Array) -> Guess:
    """The class (n,) whose direction (C, D) is nearest to each row (n, D); of equals the lowest number."""
    nearest: Guess = (_unit(X) @ centroids.T).numpy().argmax(axis=1)
    return nearest


def _ridge(name: str, rows: _Splits) -> BaselineResult:
    start, train = time.perf_counter(), rows.train
    y = np.random.default_rng(0).permutation(train.y) if name == SHUFFLED else train.y
    fit = ridge_path(Problem(train.raw, y, rows.n_classes)).best
    chosen = f"λ = {fit.lam:.4g} of {len(LAMBDAS)} by leave-one-out, standardised"
    note = f"ridge on shuffled train labels: chance; {chosen}" if name == SHUFFLED else chosen
    return _result(name, rows, rows.guessed(lambda split: _linear(fit, split.raw)), start=start, note=note)


def _linear(fit: RidgeFit, X: Array) -> Guess:
    parts = [(chunk.astype(np.float32) @ fit.weight.T + fit.bias).argmax(axis=1) for _, chunk in row_chunks(X)]
    return np.concatenate(parts)


def _neighbours(neighbours: dict[str, int], rows: _Splits) -> dict[str, BaselineResult]:
    start = time.perf_counter()
    train = rows.train
    ks = sorted({min(k, len(train.y)) for k in neighbours.values()})
    known, labels = _unit(train.raw), torch.from_numpy(train.y)
    val, test = (
        {} if split is None else _votes(known, labels, split.raw, ks, rows.n_classes) for split in (rows.val, rows.test)
    )
    found = {}
    for name, asked in neighbours.items():
        k = min(asked, len(train.y))
        note = f"k = {k}{' (every train row)' if k < asked else ''}, cosine, temperature {TEMPERATURE}, raw features"
        found[name] = _result(name, rows, (val.get(k), test.get(k)), start=start, note=note)
    return found


def _unit(X: Array) -> torch.Tensor:
    """Rows (N, D) float32 of length 1; a row of zeros stays one, as far from all as from any."""
    rows = torch.empty(X.shape, dtype=torch.float32)
    for start, chunk in row_chunks(X):
        piece = torch.from_numpy(np.array(chunk, dtype=np.float32))  # a copy: the map is read-only
        rows[start : start + len(chunk)] = torch.nn.functional.normalize(piece)
    return rows


def _votes(known: torch.Tensor, labels: torch.Tensor, X: Array, ks: Sequence[int], n_classes: int) -> dict[int, Guess]:
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
