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

import numpy as np
import numpy.typing as npt
import torch
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, pairwise_distances_argmin

from pipeline.base.arithmetic import arithmetic
from pipeline.base.errors import ConfigError, HeadError
from pipeline.heads.exact.path import ExactFit, fit_exact
from pipeline.heads.problem import Problem, Split
from pipeline.heads.ridge import LAMBDAS, RidgeFit, ridge_path
from pipeline.heads.rows import Array, StandardRows
from pipeline.heads.standardize import Standardization, copied, fit_standardization, row_chunks

NEIGHBOURS = {"knn10": 10, "knn20": 20, "knn100": 100, "knn200": 200}
COSINE_CENTROID = "cosine-centroid"
BASELINES = ("majority", "centroid", COSINE_CENTROID, *NEIGHBOURS, "ridge", "logreg")
SHUFFLED = "shuffled"
MAX_ITER = 1000
TEMPERATURE = 0.07  # of a neighbour's vote exp(cosine / temperature): Wu et al. 2018 (arXiv:1805.01978), dinov2
KNOWN = 16384  # train rows that are compared together
SIMILARITIES = 16 << 20  # of rows with those, held at once
PRODUCTS = 1.0e12  # of k-NN and a split: about 20 s on two cores; above that a sample of the split is scored
# Numbers of train (24,000 rows of 2,048) that scikit-learn's logistic regression is handed: 90 s on two cores. More is
# the exact solver's business, which comes to the same optimum, sooner and in less memory.
LOGREG_NUMBERS = 50_000_000

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
    labels in random order: what chance looks like on these rows. Rows are read in pieces; the logistic regression holds
    train as standardised float32 while it runs.

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
    rows = _Splits.of(problem, test)
    if not any((chunk != problem.X[0]).any() for _, chunk in row_chunks(problem.X)):
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
        elif name == "majority":
            done[name] = _majority(rows)
        elif name == "centroid":
            done[name] = _centroid(rows)
        elif name == "logreg":
            done[name] = _logistic_regression(rows, max_iter)
        yield done[name]


class _Rows:
    """One split: rows as given (N, D), and class numbers (N,)."""

    def __init__(self, split: Split | Problem, s: Standardization) -> None:
        self.raw, self.y, self._s = split.X, split.y, s

    def take(self, at: npt.NDArray[np.int64]) -> _Rows:
        """The rows at ``at`` (n,)."""
        return _Rows(Split(self.raw[at], self.y[at]), self._s)

    def standard(self) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Where some rows are, and these standardised (n, D) float32."""
        for start, piece in StandardRows(self.raw, self._s, torch.device("cpu"), resident=False).chunks():
            yield slice(start, start + len(piece)), piece.numpy()


@dataclass(frozen=True)
class _Splits:
    """Train rows, and val and test rows where there are any."""

    n_classes: int
    train: _Rows
    val: _Rows | None
    test: _Rows | None

    @classmethod
    def of(cls, problem: Problem, test: Split | None) -> _Splits:
        """The splits, to be standardised as train is."""
        s = fit_standardization(problem.X)
        val, tested = (None if split is None else _Rows(split, s) for split in (problem.val, test))
        return cls(problem.n_classes, _Rows(problem, s), val, tested)

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


def _majority(rows: _Splits) -> BaselineResult:
    start, train = time.perf_counter(), rows.train
    model = DummyClassifier(strategy="most_frequent").fit(np.zeros((len(train.y), 1)), train.y)
    guesses = rows.guessed(lambda split: model.predict(np.zeros((len(split.y), 1))))
    return _result("majority", rows, guesses, start=start, note="always the most frequent train class")


def _centroid(rows: _Splits) -> BaselineResult:
    """As scikit-learn's ``NearestCentroid``, from sums over pieces of the rows."""
    start, train = time.perf_counter(), rows.train
    present, place = np.unique(train.y, return_inverse=True)
    total = torch.zeros(len(present), train.raw.shape[1], dtype=torch.float64)
    for at, piece in train.standard():
        total.addmm_(_members(place[at], len(present)).double(), torch.from_numpy(piece).double())
    means = total.numpy() / np.bincount(place)[:, None]

    def nearest(split: _Rows) -> Guess:
        return np.concatenate([present[pairwise_distances_argmin(piece, means)] for _, piece in split.standard()])

    return _result("centroid", rows, rows.guessed(nearest), start=start, note="nearest class mean, standardised")


def _logistic_regression(rows: _Splits, max_iter: int) -> BaselineResult:
    start, train = time.perf_counter(), rows.train
    if train.raw.size > LOGREG_NUMBERS:
        return _exact_regression(rows, start)
    X = np.empty(train.raw.shape, np.float32)
    for at, piece in train.standard():
        X[at] = piece
    model = LogisticRegression(C=1.0, max_iter=max_iter)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, train.y)
    stopped = [w for w in caught if issubclass(w.category, ConvergenceWarning)]
    for other in (w for w in caught if w not in stopped):
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    converged = not stopped
    ended = "" if converged else f" of {max_iter}: not converged"
    note = f"C = 1, lbfgs, standardised, {int(np.max(model.n_iter_))} iterations{ended}"
    guesses = rows.guessed(lambda split: np.concatenate([model.predict(piece) for _, piece in split.standard()]))
    return replace(_result("logreg", rows, guesses, start=start, note=note), converged=converged)


def _exact_regression(rows: _Splits, start: float) -> BaselineResult:
    [fit] = fit_exact(Problem(rows.train.raw, rows.train.y, rows.n_classes), [1.0])
    note = "C = 1, standardised, by the exact solver, as scikit-learn takes long for so many rows"
    guesses = rows.guessed(lambda split: _linear(fit, split.raw))
    return replace(_result("logreg", rows, guesses, start=start, note=note), converged=fit.converged)


def _cosine_centroid(rows: _Splits) -> BaselineResult:
    start = time.perf_counter()
    centroids = cosine_centroids(rows.train.raw, rows.train.y, rows.n_classes)
    guesses = rows.guessed(lambda split: nearest_by_cosine(centroids, split.raw))
    return _result(COSINE_CENTROID, rows, guesses, start=start, note="nearest class mean by cosine, raw features")


@arithmetic()
def cosine_centroids(X: Array, y: npt.NDArray[np.int64], n_classes: int) -> torch.Tensor:
    """The direction (C, D) float32 of each class: the mean of its rows (N, D), each of length 1."""
    total = torch.zeros(n_classes, X.shape[1])
    for start, chunk in row_chunks(X):
        total.addmm_(_members(y[start : start + len(chunk)], n_classes), _unit(chunk))
    return torch.nn.functional.normalize(total)


def _members(place: npt.NDArray[np.int64], n: int) -> torch.Tensor:
    """(n, rows) float32: 1 where a row is of a class; the product with rows is their sum by class."""
    return torch.nn.functional.one_hot(torch.from_numpy(place), n).T.float()


@arithmetic()
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


def _linear(fit: RidgeFit | ExactFit, X: Array) -> Guess:
    weight, bias = fit.weight.T.astype(np.float32), fit.bias.astype(np.float32)
    parts = [(copied(chunk).numpy() @ weight + bias).argmax(axis=1) for _, chunk in row_chunks(X)]
    return np.concatenate(parts)


def _neighbours(neighbours: dict[str, int], rows: _Splits) -> dict[str, BaselineResult]:
    start, train = time.perf_counter(), rows.train
    ks = sorted({min(k, len(train.y)) for k in neighbours.values()})
    val, of_val = _sample(rows.val, train.raw.size)
    test, of_test = _sample(rows.test, train.raw.size)
    scored = _Splits(rows.n_classes, train, val, test)
    left_out = [f"on {told} {name} rows" for name, told in (("val", of_val), ("test", of_test)) if told]
    guesses = [{} if split is None else _votes(train, split.raw, ks, rows.n_classes) for split in (val, test)]
    found = {}
    for name, asked in neighbours.items():
        k = min(asked, len(train.y))
        note = f"k = {k}{' (every train row)' if k < asked else ''}, cosine, temperature {TEMPERATURE}, raw features"
        note = "; ".join([note, *left_out])
        found[name] = _result(name, scored, (guesses[0].get(k), guesses[1].get(k)), start=start, note=note)
    return found


def _sample(split: _Rows | None, known: int) -> tuple[_Rows | None, str | None]:
    """Rows of a split, evenly spread over it, that make no more than PRODUCTS with so many numbers; how many of all."""
    if split is None or len(split.y) * known <= PRODUCTS:
        return split, None
    n = max(1, int(PRODUCTS // known))
    at = np.linspace(0, len(split.y) - 1, n).round().astype(np.int64)
    return split.take(at), f"{n:,} of {len(split.y):,}"


def _unit(X: Array) -> torch.Tensor:
    """Rows (N, D) float32 of length 1; a row of zeros stays one, as far from all as from any."""
    rows = torch.empty(X.shape, dtype=torch.float32)
    for start, chunk in row_chunks(X):
        rows[start : start + len(chunk)] = torch.nn.functional.normalize(copied(chunk))
    return rows


@arithmetic()
def _votes(train: _Rows, X: Array, ks: Sequence[int], n_classes: int) -> dict[int, Guess]:
    """The class (n,) with the most votes among the k nearest rows of train, for each ascending k, in one pass.

    Over pieces of train, of which the nearest so far are kept.
    """
    queries, k = _unit(X), ks[-1]
    nearest, index = torch.zeros(len(X), 0), torch.zeros(len(X), 0, dtype=torch.int64)
    for first in range(0, len(train.y), KNOWN):
        known = _unit(train.raw[first : first + KNOWN])
        parts = []
        for start in range(0, len(queries), max(1, SIMILARITIES // len(known))):
            at = slice(start, start + max(1, SIMILARITIES // len(known)))
            parts.append(_nearest(queries[at] @ known.T, first, nearest[at], index[at], k))
        nearest, index = (torch.cat(part) for part in zip(*parts, strict=True))
    labels = torch.from_numpy(train.y)
    weight, voted = torch.exp(nearest / TEMPERATURE), labels[index]
    votes, found = torch.zeros(len(X), n_classes), {}
    for k, before in zip(ks, (0, *ks), strict=False):
        votes.scatter_add_(1, voted[:, before:k], weight[:, before:k])
        # numpy's argmax gives equal votes to the class of the lowest number; torch's promises nothing.
        found[k] = votes.numpy().argmax(axis=1)
    return found


def _nearest(
    similar: torch.Tensor, first: int, nearest: torch.Tensor, index: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest (n, k), and whose they are, of similarities to rows ``first`` ... and of the nearest so far."""
    best, at = similar.topk(min(k, similar.shape[1]), dim=1)
    best, index = torch.cat([nearest, best], dim=1), torch.cat([index, at + first], dim=1)
    best, at = best.topk(min(k, best.shape[1]), dim=1)
    return best, index.gather(1, at)
