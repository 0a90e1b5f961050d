"""The heads as scikit-learn estimators: the same solvers, scikit-learn's names and manners.

Knows arrays. Input in float64 is solved in float64, everything else in float32. What the solvers refuse is a ValueError
here, as scikit-learn's users expect: ``GridSearchCV`` and others treat it so.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import get_scorer
from sklearn.model_selection import check_cv, train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_consistent_length, check_is_fitted, validate_data

from pipeline.base.errors import ConfigError, HeadError
from pipeline.heads.choice import DEFAULT_C, PENALTIES, at_the_end, order
from pipeline.heads.exact.path import MAX_ITER, ExactFit, fit_exact
from pipeline.heads.folds import fewest_groups, fold_numbers
from pipeline.heads.kinds.kind import kind_of
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.fit import fit_minibatch
from pipeline.heads.problem import Problem, Split

DEFAULTS = MinibatchConfig()

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[Any]


@contextlib.contextmanager
def _as_value_error() -> Iterator[None]:
    """Turn what the solvers refuse into scikit-learn's kind of error, with the same words."""
    try:
        yield
    except (ConfigError, HeadError) as error:
        raise ValueError(str(error)) from error


class _Head(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What the heads share: checked input, and predictions from ``_logits``."""

    classes_: Labels

    def _logits(self, X: Floats) -> Floats:
        """Logits (n, C) of checked rows."""
        raise NotImplementedError

    def _begin(self, X: Any, y: Any) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Checked rows and class numbers; sets ``classes_`` and ``n_features_in_``."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32, np.float16])
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs samples of at least 2 classes: the data holds only one class, "
                f"{self.classes_[0]!r}"
            )
        return X, numbers.astype(np.int64)

    def _weighting(self, class_weight: Any) -> Any:
        """``class_weight`` by class number."""
        if isinstance(class_weight, Mapping):
            unknown = [label for label in class_weight if label not in self.classes_]
            if unknown:
                raise ValueError(f"class_weight has {unknown[0]!r}, which is none of the classes")
            return {i: float(class_weight.get(label, 1.0)) for i, label in enumerate(self.classes_.tolist())}
        return class_weight

    def _checked(self, X: Any) -> Floats:
        check_is_fitted(self)
        rows: Floats = validate_data(self, X, dtype=[np.float64, np.float32, np.float16], reset=False)
        return rows

    def decision_function(self, X: Any) -> Floats:
        """(n,) for two classes, the second one's logit less the first one's; otherwise logits (n, C)."""
        logits = self._logits(self._checked(X))
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict(self, X: Any) -> Labels:
        """The likeliest class of each row (n,)."""
        logits = self._logits(self._checked(X))
        found: Labels = self.classes_[logits.argmax(axis=1)]
        return found

    def predict_proba(self, X: Any) -> Floats:
        """Class probabilities (n, C)."""
        found: Floats = softmax(self._logits(self._checked(X)), axis=1)
        return found

    def predict_log_proba(self, X: Any) -> Floats:
        """Their logarithms (n, C)."""
        found: Floats = log_softmax(self._logits(self._checked(X)), axis=1)
        return found


def _coefficients(weight: Floats, bias: Floats) -> tuple[Floats, Floats]:
    """A layer (C, D), (C,) as scikit-learn gives it: of two classes the difference, in one row."""
    return (weight[1:] - weight[:1], bias[1:] - bias[:1]) if len(bias) == 2 else (weight, bias)


class _Linear(_Head):
    """A head with ``coef_`` and ``intercept_``; for two classes one row, as scikit-learn's."""

    coef_: Floats
    intercept_: Floats

    def _keep(self, weight: Floats, bias: Floats) -> None:
        self.coef_, self.intercept_ = _coefficients(weight, bias)

    def _logits(self, X: Floats) -> Floats:
        X = _wide(X)
        scores: Floats = X @ self.coef_.T.astype(X.dtype) + self.intercept_.astype(X.dtype)
        return np.hstack([np.zeros_like(scores), scores]) if len(self.classes_) == 2 else scores


class _Exact(_Linear):
    """What both exact heads take from a fit."""

    def _solve(
        self, X: Floats, numbers: npt.NDArray[np.int64], Cs: Sequence[float], weight: Any, folds: Any = None
    ) -> list[ExactFit]:
        class_weight = self._weighting(self.class_weight)
        with _as_value_error():
            problem = Problem(
                X,
                numbers,
                len(self.classes_),
                class_weight=class_weight,
                sample_weight=weight,
                folds=folds,
                standardize=self.standardize,
                device=self.device,
                dtype=_type(X),
            )
            return fit_exact(problem, Cs, tol=self.tol, max_iter=self.max_iter)

    def _take(self, fit: ExactFit) -> None:
        self._keep(fit.weight, fit.bias)
        self.n_iter_, self.converged_ = fit.n_iter, fit.converged
        self.grad_norm_, self.objective_ = fit.grad_norm, fit.objective
        if not fit.converged:
            warnings.warn(
                f"not converged after {fit.n_iter} iterations (gradient {fit.grad_norm:.1e}): raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=3,
            )


def _wide(X: Floats) -> Floats:
    """Rows in the type of their logits: that of float16 is too coarse for them."""
    return X.astype(np.float32) if X.dtype == np.float16 else X


def _type(X: Floats) -> torch.dtype:
    return torch.float64 if X.dtype == np.float64 else torch.float32


def _weights(sample_weight: Any, X: Floats) -> npt.NDArray[np.float64] | None:
    if sample_weight is None:
        return None
    weights: npt.NDArray[np.float64] = _check_sample_weight(
        sample_weight, X, dtype=np.float64, ensure_non_negative=True
    )
    return weights


class ExactLinearHead(_Exact):
    """Penalised multinomial logistic regression at its optimum: ``C · Σ w_i CE_i + ½‖coef_‖²``, free intercept.

    The objective is :class:`sklearn.linear_model.LogisticRegression`'s, on standardised features unless ``standardize``
    is False; ``coef_`` is for the features as they are given. Standardised: no column is divided by less than half the
    median deviation, as suits a network's features; columns in different units want a scaler before. ``tol`` bounds the
    gradient's largest entry, None means 1e-5 in float32 and 1e-10 in float64.

    Attributes:
        coef_: (1, D) for two classes, else (C, D).
        intercept_: (1,) or (C,).
        classes_, n_features_in_, n_iter_: as scikit-learn's.
        converged_, grad_norm_, objective_: the certificate (see :class:`pipeline.heads.exact.path.ExactFit`).
    """

    def __init__(
        self,
        C: float = DEFAULT_C,
        *,
        standardize: bool = True,
        class_weight: Any = None,
        tol: float | None = None,
        max_iter: int = MAX_ITER,
        device: str = "cpu",
    ) -> None:
        self.C = C
        self.standardize = standardize
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> ExactLinearHead:
        """Fit on X (n, D) and labels y (n,); ``sample_weight`` (n,) multiplies each row's loss."""
        rows, numbers = self._begin(X, y)
        self._take(self._solve(rows, numbers, [self.C], _weights(sample_weight, rows))[0])
        return self


class ExactLinearHeadCV(_Exact):
    """An :class:`ExactLinearHead` whose C is chosen by cross-validation, all folds and penalties in one pass.

    ``Cs``: the values, or how many between 10^-4 and 10; ``cv``: stratified, shuffled folds, or a splitter whose test
    sets are disjoint. Standardisation is that of all rows, which no label enters (see :func:`fit_exact`). ``scoring``
    is a scikit-learn scorer's name; equal scores go to the lower log-loss, then to the stronger penalty. A warning says
    when the end of the path has won.

    Attributes:
        C_: the chosen value.
        Cs_: (K,) the values.
        scores_: (folds, K); their mean chose ``C_``, so that the best one is optimistic.
        coef_, intercept_, classes_, n_iter_, converged_, grad_norm_, objective_: of the refit on all rows.
    """

    def __init__(  # noqa: PLR0913  (scikit-learn: an estimator has one argument for each parameter)
        self,
        Cs: int | Sequence[float] = PENALTIES,
        *,
        cv: Any = 5,
        scoring: str = "neg_log_loss",
        standardize: bool = True,
        class_weight: Any = None,
        tol: float | None = None,
        max_iter: int = MAX_ITER,
        device: str = "cpu",
        random_state: Any = 0,
    ) -> None:
        self.Cs = Cs
        self.cv = cv
        self.scoring = scoring
        self.standardize = standardize
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> ExactLinearHeadCV:
        """Choose C and refit on all rows X (n, D), y (n,).

        ``sample_weight`` (n,) weighs losses and scores; rows of one of ``groups`` (n,), such as copies of an image, are
        left out together.
        """
        rows, numbers = self._begin(X, y)
        weight = _weights(sample_weight, rows)
        check_consistent_length(rows, groups)
        ends = np.log10(PENALTIES[0]), np.log10(PENALTIES[-1])
        self.Cs_ = (
            np.logspace(*ends, self.Cs) if isinstance(self.Cs, Integral) else np.asarray(self.Cs, dtype=np.float64)
        )
        folds = self._folds(rows, numbers, groups)
        fits = self._solve(rows, numbers, self.Cs_.tolist(), weight, folds)
        scorer = get_scorer(self.scoring)
        self.scores_, losses = np.empty((2, int(folds.max()) + 1, len(self.Cs_)))
        for fit in (fit for fit in fits if fit.fold >= 0):
            out = folds == fit.fold
            at = fit.fold, self.Cs_ == fit.C  # all of them, where it was given twice
            self._keep(fit.weight, fit.bias)
            extra = {} if weight is None else {"sample_weight": weight[out]}
            self.scores_[at] = scorer(self, rows[out], self.classes_[numbers[out]], **extra)
            log_p = log_softmax(self._logits(rows[out]), axis=1)[np.arange(out.sum()), numbers[out]]
            losses[at] = -np.average(log_p, weights=None if weight is None else weight[out])
        found = [
            {"score": score, "log_loss": loss} for score, loss in zip(self.scores_.mean(0), losses.mean(0), strict=True)
        ]
        best = min(range(len(found)), key=lambda i: order(found[i], "score", float(self.Cs_[i])))
        self.C_ = float(self.Cs_[best])
        if end := at_the_end(self.Cs_.tolist(), self.C_):
            warnings.warn(f"C = {self.C_:g} is the {end} of Cs: a better one may lie beyond", stacklevel=2)
        self._take(next(f for f in fits if f.fold < 0 and self.C_ == f.C))
        return self

    def _folds(self, X: Floats, numbers: npt.NDArray[np.int64], groups: Any) -> npt.NDArray[np.int64]:
        """The fold of each row (n,); -1 for a row that is never left out."""
        cv: Any = self.cv
        if isinstance(cv, Integral):
            apart = np.arange(len(X)) if groups is None else np.asarray(groups)
            fewest = fewest_groups(numbers, apart)
            if fewest < 2:
                what = "sample" if groups is None else "group"
                raise ValueError(f"a class has {fewest} {what}: cross-validation needs at least 2 of each class")
            return fold_numbers(numbers, apart, min(int(cv), fewest), self.random_state)
        folds = np.full(len(X), -1, dtype=np.int64)
        for number, (_, out) in enumerate(check_cv(cv, numbers, classifier=True).split(X, numbers, groups)):
            if (folds[out] >= 0).any():
                raise ValueError("cv leaves a row out twice: give a splitter with disjoint test sets, such as KFold")
            folds[out] = number
        return folds


class MinibatchHead(_Head):
    """A head trained by minibatches: linear, with hidden layers (``mlp``) or on cosines.

    Parameters are :class:`pipeline.heads.minibatch.config.MinibatchConfig`'s, ``random_state`` its seed. With
    ``validation_fraction`` above 0 that share of the rows that have weight, stratified, is held out and chooses the
    epoch that is kept, and ``patience`` epochs without a better one end the training.

    Attributes:
        classes_, n_features_in_: as scikit-learn's.
        n_iter_: epochs run.
        tensors_: the parameters by name, for features as they are given.
        coef_, intercept_: of a head that is one linear layer.
    """

    _FIELDS: ClassVar = ("kind", "solver", "lr", "weight_decay", "epochs", "batch_size", "schedule", "momentum")
    _MORE: ClassVar = ("label_smoothing", "mixup", "width", "depth", "dropout", "scale", "patience")

    def __init__(  # noqa: PLR0913  (scikit-learn: an estimator has one argument for each parameter)
        self,
        kind: str = DEFAULTS.kind,
        *,
        solver: str = DEFAULTS.solver,
        lr: float | None = DEFAULTS.lr,
        weight_decay: float = DEFAULTS.weight_decay,
        epochs: int = DEFAULTS.epochs,
        batch_size: int = DEFAULTS.batch_size,
        schedule: str = DEFAULTS.schedule,
        momentum: float = DEFAULTS.momentum,
        label_smoothing: float = DEFAULTS.label_smoothing,
        mixup: float = DEFAULTS.mixup,
        width: int = DEFAULTS.width,
        depth: int = DEFAULTS.depth,
        dropout: float = DEFAULTS.dropout,
        scale: float = DEFAULTS.scale,
        patience: int | None = DEFAULTS.patience,
        validation_fraction: float = 0.0,
        standardize: bool = True,
        class_weight: Any = None,
        random_state: Any = DEFAULTS.seed,
        device: str = "cpu",
    ) -> None:
        self.kind = kind
        self.solver = solver
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.schedule = schedule
        self.momentum = momentum
        self.label_smoothing = label_smoothing
        self.mixup = mixup
        self.width = width
        self.depth = depth
        self.dropout = dropout
        self.scale = scale
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.standardize = standardize
        self.class_weight = class_weight
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> MinibatchHead:
        """Fit on X (n, D) and labels y (n,); ``sample_weight`` (n,) multiplies each row's loss."""
        rows, numbers = self._begin(X, y)
        weight = _weights(sample_weight, rows)
        options = {name: getattr(self, name) for name in (*self._FIELDS, *self._MORE)}
        seed = self._seed()
        inside, outside = self._held_out(numbers, seed, weight)
        with _as_value_error():
            problem = Problem(
                rows[inside],
                numbers[inside],
                len(self.classes_),
                class_weight=self._weighting(self.class_weight),
                sample_weight=None if weight is None else weight[inside],
                val=Split(rows[outside], numbers[outside]) if len(outside) else None,
                standardize=self.standardize,
                device=self.device,
                dtype=_type(rows),
            )
            fit = fit_minibatch(problem, [MinibatchConfig(**options, seed=seed)])[0]
        if fit.diverged:
            raise ValueError(f"training diverged after {fit.n_iter} steps: lr = {fit.config.lr} is too high")
        self.tensors_, self.n_iter_ = fit.tensors, len(fit.trace)
        layer = kind_of(self.kind).layer(fit.tensors)
        if layer is not None:
            self.coef_, self.intercept_ = _coefficients(*layer)
        return self

    def _seed(self) -> int:
        """An int ``random_state`` is the seed itself; from None or a RandomState one is drawn."""
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

    def _held_out(
        self, numbers: npt.NDArray[np.int64], seed: int, weight: npt.NDArray[np.float64] | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Places to learn from and places that choose the epoch; a row of no weight chooses nothing."""
        places = np.arange(len(numbers))
        if not self.validation_fraction:
            return places, places[:0]
        counted = places if weight is None else np.flatnonzero(weight)
        _, outside = train_test_split(
            counted, test_size=self.validation_fraction, stratify=numbers[counted], random_state=seed
        )
        return np.setdiff1d(places, outside), np.sort(outside)

    def _logits(self, X: Floats) -> Floats:
        return kind_of(self.kind).logits(self.tensors_, _wide(X))
