"""Entries `exact-one`, `exact-path`, `exact-cv`, `evals` and the exact head's part of `memory`.

The yardstick is one fit of scikit-learn's LogisticRegression (lbfgs, C = 1, at most 1000 iterations) on standardised
float32 rows; standardising is inside both timings. It takes about a minute on 10,000 × 2048 rows, so each way is run at
most twice there.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bench.child import observed
from pipeline.bench.features import power_law
from pipeline.bench.measure import Bench, Figure, Goal, ratio, seconds

ONE_GOAL = Goal(floor=0.25, aim=0.12, sense="most")
PATH_GOAL = Goal(floor=1.0, aim=0.3, sense="most")
CV_GOAL = Goal(floor=1.5, sense="most")
EVALS_GOAL = Goal(floor=0.35, sense="most")
OBJECTIVE_GOAL = Goal(floor=1e-6, sense="most")
MEMORY_GOAL = Goal(floor=1.5, sense="most")
REPEATS = 2  # at most
FOLDS = 5
MAX_ITER = 1000
COMPARED = 5  # penalties whose objective is compared: scikit-learn needs up to a minute for each


@dataclass(frozen=True, eq=False)
class Rows:
    """Features (N, D) float16 and labels (N,) under a name."""

    name: str
    X: NDArray[np.float16]
    y: NDArray[np.int64]

    @property
    def classes(self) -> int:
        """How many."""
        return int(self.y.max()) + 1


def feature_sets(bench: Bench) -> list[Rows]:
    """digits through a random ResNet50 at 32 px (train + val rows), and a power-law set of 10,000 × 2048."""
    from pipeline.extract import extract
    from pipeline.store import open_cache

    made = extract(
        "digits", weights="random:0", image_size=32, engine="torch", cache_root=bench.folder, watch=bench.watch
    )
    train = open_cache(made.cache).split("train")
    X, y = power_law(10_000, 2048, 10, seed=0)
    return [Rows("digits", np.array(train.X), train.y.copy()), Rows("power law", X, y)]


def bench_exact_one(bench: Bench, sets: Sequence[Rows] | None = None) -> list[Figure]:
    """One fit at C = 1 ÷ scikit-learn's, in seconds; and how far its objective is above scikit-learn's."""
    found = []
    for rows in sets or feature_sets(bench):
        mine, theirs = _Kept(_ours), _Kept(_theirs)
        ours, others = _turns(bench, "exact-one", partial(mine, rows, [1.0]), rows, theirs)
        note = f"exact-one: {_size(rows)}"
        found.append(ratio("exact-one", rows.name, ours, others, "s", goal=ONE_GOAL, note=note))
        model, Z = theirs.value
        above = mine.value[0].objective / _objective(Z, rows.y, 1.0, model) - 1
        found.append(_alone("exact-one", f"{rows.name}: objective above", above, OBJECTIVE_GOAL, note))
    return found


def bench_exact_path(bench: Bench, sets: Sequence[Rows] | None = None) -> list[Figure]:
    """The path of 45 penalties ÷ one scikit-learn fit; the worst objective beside scikit-learn's at some of them."""
    from pipeline.heads.config import PENALTIES

    found = []
    for rows in sets or feature_sets(bench):
        mine, theirs = _Kept(_ours), _Kept(_theirs)
        ours, others = _turns(bench, "exact-path", partial(mine, rows, PENALTIES), rows, theirs)
        fits = mine.value
        converged = sum(fit.converged for fit in fits)
        compared = fits[:: max(1, len(fits) // (COMPARED - 1))]
        note = (
            f"exact-path: {_size(rows)}, {len(fits)} penalties, {converged} converged; objectives compared at C = "
            + ", ".join(f"{fit.C:.0e}" for fit in compared)
        )
        found.append(ratio("exact-path", rows.name, ours, others, "s", goal=PATH_GOAL, note=note))
        worst = -np.inf
        for fit in compared:
            model, Z = _theirs(rows, fit.C)
            worst = max(worst, fit.objective / _objective(Z, rows.y, fit.C, model) - 1)
        found.append(_alone("exact-path", f"{rows.name}: worst objective above", worst, OBJECTIVE_GOAL, note))
    return found


def bench_exact_cv(bench: Bench, sets: Sequence[Rows] | None = None) -> list[Figure]:
    """5 folds × 45 penalties, and the path on all rows with them, ÷ one scikit-learn fit."""
    from pipeline.heads.config import PENALTIES

    found = []
    for rows in sets or feature_sets(bench):
        folds = np.random.default_rng(0).permutation(len(rows.y)) % FOLDS
        ours, others = _turns(bench, "exact-cv", partial(_ours, rows, PENALTIES, folds=folds), rows, _Kept(_theirs))
        note = f"exact-cv: {_size(rows)}, {FOLDS} folds × {len(PENALTIES)} penalties"
        found.append(ratio("exact-cv", rows.name, ours, others, "s", goal=CV_GOAL, note=note))
    return found


def bench_evals(bench: Bench, sets: Sequence[Rows] | None = None) -> list[Figure]:
    """Gradients computed to convergence at C = 1 ÷ scikit-learn's iterations (it computes at least one in each)."""
    found = []
    for rows in sets or feature_sets(bench):
        fit = _ours(rows, [1.0])[0]
        iterations = int(_theirs(rows, 1.0)[0].n_iter_.max())
        note = f"evals: {_size(rows)}; converged: {'yes' if fit.converged else 'no'}"
        ours, theirs = ("exact", [float(fit.n_evals)]), ("scikit-learn", [float(iterations)])
        found.append(ratio("evals", rows.name, ours, theirs, "gradients", goal=EVALS_GOAL, note=note))
    return found


def bench_exact_memory(bench: Bench, *, rows: int = 50_000, dim: int = 2048) -> list[Figure]:
    """Peak of a process that fits C = 0.01, less that of one that makes the same rows, ÷ the float32 features."""
    levels: dict[str, Callable[[], float]] = {
        "with the fit": lambda: _peak(bench, "fit", rows, dim),
        "without": lambda: _peak(bench, "make", rows, dim),
    }
    found = Bench(min(bench.repeats, REPEATS), bench.folder, bench.watch, bench.threads).alternate("memory", levels)
    features = 4 * rows * dim / 1e6
    each = tuple((a - b) / features for a, b in zip(found["with the fit"], found["without"], strict=True))
    note = (
        f"memory: exact fit on {rows:,} × {dim} float16 rows; what it takes beyond the process that holds the rows, "
        f"÷ {features:.0f} MB of float32 features"
    )
    return [Figure("memory", "exact fit ÷ float32 features", each, found, "MB", goal=MEMORY_GOAL, note=note)]


class _Kept:
    """Does ``work`` and holds what it gave the last time."""

    value: Any = None

    def __init__(self, work: Callable[..., Any]) -> None:
        self._work = work

    def __call__(self, *arguments: Any) -> None:
        self.value = self._work(*arguments)


def _turns(
    bench: Bench, entry: str, ours: Callable[[], Any], rows: Rows, kept: _Kept
) -> list[tuple[str, tuple[float, ...]]]:
    """Seconds of both ways, in turns: (name, repeats) of ours and of scikit-learn's."""
    few = Bench(min(bench.repeats, REPEATS), bench.folder, bench.watch, bench.threads)
    ways: dict[str, Callable[[], float]] = {
        "exact": lambda: seconds(ours),
        "scikit-learn, one fit": lambda: seconds(lambda: kept(rows, 1.0)),
    }
    return list(few.alternate(entry, ways).items())


def _ours(rows: Rows, Cs: Sequence[float], folds: NDArray[np.int64] | None = None) -> Any:
    from pipeline.heads.exact import fit_exact

    return fit_exact(rows.X, rows.y, n_classes=rows.classes, Cs=Cs, folds=folds)


def _theirs(rows: Rows, C: float) -> tuple[Any, NDArray[np.float32]]:
    """scikit-learn's model and the standardised rows it was fitted on."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    Z = StandardScaler().fit_transform(rows.X.astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=C, max_iter=MAX_ITER).fit(Z, rows.y), Z


def _objective(Z: NDArray[np.float32], y: NDArray[np.int64], C: float, model: Any) -> float:
    """scikit-learn's objective of its own model, in float64."""
    W, b = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
    scores = Z.astype(np.float64) @ W.T + b
    if len(W) == 1:
        scores = np.hstack([np.zeros_like(scores), scores])
    ce = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(len(y)), y]
    return float(C * ce.sum() + 0.5 * (W**2).sum())


def _alone(entry: str, name: str, value: float, goal: Goal, note: str) -> Figure:
    return Figure(entry, name, (float(value),), {name: (float(value),)}, unit="relative", goal=goal, note=note)


def _size(rows: Rows) -> str:
    return f"{rows.name} {rows.X.shape[0]:,} × {rows.X.shape[1]} float16, {rows.classes} classes"


def _peak(bench: Bench, what: str, rows: int, dim: int) -> float:
    """Peak of the resident memory of a process, in MB."""
    words = [what, str(rows), str(dim)]
    found = observed(
        bench.folder / "peak.json", "pipeline.bench.heads_exact", words, watched=bench.folder, threads=bench.threads
    )
    return float(found["peak_bytes"]) / 1e6


def _process(what: str, rows: int, dim: int) -> None:
    """Makes rows, block by block, and fits them where asked to; both processes import the same."""
    from pipeline.heads.exact import fit_exact

    rng = np.random.default_rng(0)
    X = np.empty((rows, dim), np.float16)
    for start in range(0, rows, 1000):
        X[start : start + 1000] = rng.normal(size=(min(1000, rows - start), dim))
    y = np.arange(rows) % 10
    X[np.arange(rows), y] += 1
    if what == "fit":
        assert fit_exact(X, y, n_classes=10, Cs=[0.01])[0].converged


if __name__ == "__main__":
    _process(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
