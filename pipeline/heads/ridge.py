"""Ridge regression on class targets: the whole penalty path and its leave-one-out figures from one decomposition.

Knows arrays only. The objective is scikit-learn's (``Ridge``, ``RidgeClassifier``): with targets t_ic = +1 for the
row's class and -1 for every other, rows weighted by w_i and a free intercept,

    sum_i w_i |t_i - W x_i - b|^2 + lambda |W|^2.

Let A and T be the features and targets, both centred by their weighted means, rows times sqrt(w). With the eigenvalues
s and eigenvectors V of A'A, W' = V diag(1 / (s + lambda)) V'A'T for every lambda, and the leverage of row i is
h_i = w_i / sum(w) + sum_j (A V)_ij^2 / (s_j + lambda). Leaving row i out changes its residual r_i to r_i / (1 - h_i)
(Allen 1974; Golub, Heath and Wahba 1979), so nothing is fitted twice. With hardly more rows than features the N x N
matrix AA' = Q diag(s) Q' takes the place of A'A; there r_i / (1 - h_i) = (Q f Q'T)_i / (Q f Q')_ii with
f = 1 / (s + lambda) (Rifkin and Lippert 2007), which stays exact where residual and 1 - h_i both go to 0.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from pipeline.base.arithmetic import arithmetic
from pipeline.base.errors import ConfigError
from pipeline.heads.eigen import eigh
from pipeline.heads.problem import Problem, told_where_memory_ends
from pipeline.heads.rows import Chunks, StandardRows
from pipeline.heads.staging import on_device, on_gpu
from pipeline.heads.standardize import fit_standardization, fold, identity

LAMBDAS = tuple(10.0 ** (k / 2) for k in range(-6, 13))  # 10^-3 ... 10^6; scikit-learn's alpha
GRAM_COLUMNS = 256  # of A'A that are computed at once
FITTED_COLUMNS = 256  # of several penalties' predictions, likewise
NOTHING_LEFT = 1e-9  # 1 - h below this: the row alone decides its own fit


@dataclass(frozen=True, eq=False)
class RidgeFit:
    """One penalty's layer on raw features, and its leave-one-out figures on train, rows counted by their weights.

    A row that alone decides its own fit (as some do at lambda 0) has no leave-one-out prediction: it counts as wrong,
    with infinite error.
    """

    lam: float
    weight: npt.NDArray[np.float32]  # (C, D)
    bias: npt.NDArray[np.float32]  # (C,)
    loo_accuracy: float
    loo_squared_error: float  # mean over rows and classes


@dataclass(frozen=True, eq=False)
class RidgePath:
    """The fits of all penalties, in the order in which these were given."""

    fits: tuple[RidgeFit, ...]

    @property
    def best(self) -> RidgeFit:
        """The fit of the highest leave-one-out accuracy; of equals the one of the lower squared error."""
        return min(self.fits, key=lambda fit: (-fit.loo_accuracy, fit.loo_squared_error))


@told_where_memory_ends
@arithmetic()
def ridge_path(problem: Problem, lambdas: Sequence[float] = LAMBDAS) -> RidgePath:
    """Ridge heads of every penalty.

    All arithmetic is float64; rows are read in pieces, and with N > D + 1 never held. Features are standardised on
    train and the layer given for raw ones. Lambda 0 is least squares by the pseudo-inverse: directions whose eigenvalue
    is below max(N, D) times the float64 epsilon of the largest get no weight, so that of all solutions the smallest is
    given. Leave-one-out keeps the standardisation of all rows, as scikit-learn's ``RidgeCV`` behind a scaler does.

    Raises:
        ConfigError: no penalty, a negative one or one that is not finite.
    """
    if not len(lambdas) or not all(0 <= lam < np.inf for lam in lambdas):
        raise ConfigError(f"lambdas are {', '.join(map(str, lambdas)) or 'none'}: finite ones of at least 0 are needed")
    rows = _Centred(problem)
    wide = rows.shape[0] <= rows.shape[1] + 1  # from there on least squares may pass through every row
    layers, left_out = _wide(rows, lambdas) if wide else _tall(rows, lambdas)
    fits = []
    for lam, layer, predicted in zip(lambdas, layers, left_out, strict=True):
        bias = rows.target_mean - layer @ rows.mean
        weight, bias_ = fold(layer.cpu().numpy(), bias.cpu().numpy(), rows.standardization)
        fits.append(RidgeFit(float(lam), weight, bias_, *rows.score(predicted)))
    return RidgePath(tuple(fits))


class _Centred:
    """The weighted, centred rows and targets of the module's header, in pieces on the device."""

    def __init__(self, problem: Problem) -> None:
        X, self.device, self.shape = problem.X, problem.target, problem.X.shape
        weight = problem.row_weight
        self.standardization = fit_standardization(X, weight) if problem.standardize else identity(X.shape[1])
        # A processor reads them as they are; a GPU, which has a way to them, holds them where it can.
        resident = on_gpu(self.device) and StandardRows.held_bytes(X, self.device) <= problem.memory_bytes
        self.rows = StandardRows(X, self.standardization, self.device, resident=resident, dtype=torch.float64)
        self.y = on_device(problem.y, self.device)
        self.w = on_device(problem.loss_weight, self.device)
        self.share = self.w / self.w.sum()
        self.targets = torch.full((len(X), problem.n_classes), -1.0, dtype=torch.float64, device=self.device)
        self.targets[torch.arange(len(X), device=self.device), self.y] = 1.0
        self.target_mean = self.share @ self.targets

        self.mean = self.rows.weighted_sum(self.share)

    def pieces(self, chunks: Chunks) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Where some rows are, and of these A (n, D) and T (n, C)."""
        for first, rows in chunks:
            at = slice(first, first + len(rows))
            root = self.w[at, None].sqrt()
            yield at, (rows - self.mean).mul_(root), (self.targets[at] - self.target_mean) * root

    def inverse(self, values: torch.Tensor, lam: float) -> torch.Tensor:
        """1 / (s + lambda) of eigenvalues s (r,); for lambda 0 the pseudo-inverse."""
        values = values.clamp(min=0)
        if lam > 0:
            return 1 / (values + lam)
        kept = values > max(self.shape) * np.finfo(np.float64).eps * values[-1]
        return torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)

    def left_out(self, at: slice, scaled: torch.Tensor, defined: torch.Tensor) -> torch.Tensor:
        """Predictions (n, C) from left-out residuals that were scaled by sqrt(w); NaN where there are none."""
        root = self.w[at, None].sqrt()
        found = self.targets[at] - scaled / torch.where(root > 0, root, 1.0)
        return torch.where(defined[:, None] | (root == 0), found, torch.nan)

    def score(self, predicted: torch.Tensor) -> tuple[float, float]:
        """Accuracy and mean squared error of leave-one-out predictions (N, C)."""
        defined = ~predicted.isnan().any(dim=1)
        hits = (predicted.nan_to_num().argmax(dim=1) == self.y) & defined
        errors = torch.where(defined, ((predicted - self.targets) ** 2).mean(dim=1), torch.inf)
        counted = self.w > 0
        return float(self.share @ hits.double()), float(self.share[counted] @ errors[counted])


Tensors: TypeAlias = list[torch.Tensor]


def _tall(rows: _Centred, lambdas: Sequence[float]) -> tuple[Tensors, Tensors]:
    """Layers (C, D) and left-out predictions (N, C) of each penalty by the D x D matrix, in two passes."""
    d = rows.shape[1]

    def learn(chunks: Chunks) -> tuple[torch.Tensor, torch.Tensor]:
        gram = torch.zeros(d, d, dtype=torch.float64, device=rows.device)
        moment = torch.zeros(d, rows.targets.shape[1], dtype=torch.float64, device=rows.device)
        for _, a, t in rows.pieces(chunks):
            for first in range(0, d, GRAM_COLUMNS):  # below the diagonal, which is all that eigh reads: half the work
                gram[first:, first : first + GRAM_COLUMNS].addmm_(a[:, first:].T, a[:, first : first + GRAM_COLUMNS])
            moment.addmm_(a.T, t)
        return gram, moment

    gram, moment = (
        functools.reduce(torch.Tensor.add_, part) for part in zip(*rows.rows.by_threads(learn), strict=True)
    )
    values, vectors = eigh(gram)  # of the lower triangle
    rotated = vectors.T @ moment
    inverses = [rows.inverse(values, lam) for lam in lambdas]
    solutions = [inverse[:, None] * rotated for inverse in inverses]
    predictions = [torch.empty_like(rows.targets) for _ in lambdas]
    classes = moment.shape[1]
    together = torch.split(torch.cat(solutions, dim=1), max(1, FITTED_COLUMNS // classes) * classes, dim=1)

    def leave_out(chunks: Chunks) -> None:
        for at, a, t in rows.pieces(chunks):
            u = a @ vectors
            leverages = (u * u) @ torch.stack(inverses, dim=1) + rows.share[at, None]
            fitted = itertools.chain.from_iterable(torch.split(u @ some, classes, dim=1) for some in together)
            for out, fit, leverage in zip(predictions, fitted, leverages.T, strict=True):
                rest = 1 - leverage
                defined = rest > NOTHING_LEFT
                out[at] = rows.left_out(at, (t - fit) / torch.where(defined, rest, 1.0)[:, None], defined)

    rows.rows.by_threads(leave_out)
    return [(vectors @ solution).T for solution in solutions], predictions


def _wide(rows: _Centred, lambdas: Sequence[float]) -> tuple[Tensors, Tensors]:
    """The same by the N x N matrix, its rows held."""
    pieces = list(rows.pieces(rows.rows.chunks()))
    a, t = torch.cat([piece[1] for piece in pieces]), torch.cat([piece[2] for piece in pieces])
    values, vectors = eigh(a @ a.T)
    # sqrt(w) is an eigenvector of eigenvalue 0, the intercept's: leaving rows out does not see it.
    intercept = rows.share.sqrt()
    free = vectors - intercept[:, None] * (intercept @ vectors)
    rotated = vectors.T @ t
    layers, predictions = [], []
    for lam in lambdas:
        inverse = rows.inverse(values, lam)
        layers.append((a.T @ (vectors @ (inverse[:, None] * rotated))).T)
        predictions.append(_left_out_wide(rows, free, rotated, inverse, least_squares=lam == 0))
    return layers, predictions


def _left_out_wide(
    rows: _Centred, free: torch.Tensor, rotated: torch.Tensor, inverse: torch.Tensor, *, least_squares: bool
) -> torch.Tensor:
    """Left-out predictions (N, C) from the header's second formula; ``free`` (N, N): Q without the intercept.

    Least squares is the limit of lambda -> 0: f falls together to the directions that A does not reach, if there are
    any beyond the intercept's; a row that has no part in them decides its own fit.
    """
    unreached = (inverse == 0).double()
    overdetermined = least_squares and int(unreached.sum()) > 1
    f = unreached if overdetermined else inverse
    rest = (free * free) @ f
    defined = rest > (NOTHING_LEFT if overdetermined else 0)
    scaled = (free @ (f[:, None] * rotated)) / torch.where(defined, rest, 1.0)[:, None]
    return rows.left_out(slice(None), scaled, defined)
