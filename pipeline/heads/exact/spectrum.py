"""The eigenbasis of the features' weighted covariance: the coordinates in which a linear head is easy to fit.

Knows rows and weights, nothing of labels or penalties. With Z the (standardised) rows centred by their weighted mean
and G = Zᵀ diag(w) Z / Σw = V Λ Vᵀ, the rows become U = Z V. A head θ on U is the head θ Vᵀ on Z, its penalty ‖θ‖² is
the same number, and the curvature of any loss that sees the rows through θ U is a weighting of a diagonal matrix. With
fewer rows than features only the directions that the rows span are kept: a penalised head has no weight elsewhere.

Of very many rows a sample makes G: any orthogonal V leaves the problem what it is, and one from SAMPLED rows for each
feature costs a fit one or two iterations. Its columns are scaled to the variances that they have in all rows, so that
one which is all but zero in the sample is not taken for one without curvature.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipeline.base.errors import HeadError
from pipeline.heads.eigen import eigh
from pipeline.heads.rows import StandardRows
from pipeline.heads.staging import on_device

EIGENVALUE_FLOOR = 1e-12  # of the largest, in float64: below it is rounding
SAMPLED = 8  # rows for each feature, of which G is made where there are more
ASIDE = 2  # ... and of others, of which the coordinates' variances are
FEWEST = 20_000  # rows of both together


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues (r,), ascending, eigenvectors (D, r) and the weighted mean (D,) of the rows; r <= min(N, D)."""

    values: torch.Tensor
    factors: tuple[torch.Tensor, ...]  # whose product the vectors are; float64 where N < D, see _of_few
    mean: torch.Tensor
    turned: torch.Tensor | None = None  # (N, r), the rows in these coordinates, where they are known already

    @property
    def vectors(self) -> torch.Tensor:
        """The eigenvectors (D, r)."""
        return functools.reduce(torch.matmul, self.factors)

    def rotate(self, rows: StandardRows) -> torch.Tensor:
        """All rows in these coordinates (N, r); the rows themselves are read in pieces."""
        if self.turned is not None:
            return self.turned.to(rows.dtype)
        vectors = self.vectors
        out = torch.empty(len(rows), len(self.values), dtype=rows.dtype, device=self.mean.device)
        for start, piece in rows.chunks():
            out[start : start + len(piece)] = (piece - self.mean).to(vectors.dtype) @ vectors
        return out

    def to_features(self, theta: torch.Tensor, intercept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (..., D) and intercepts on the rows for weights (..., r) and intercepts in these coordinates."""
        weight = theta
        for factor in reversed(self.factors):
            weight = weight @ factor.T.to(theta.dtype)
        return weight, intercept - weight @ self.mean.to(theta.dtype)


def decompose(rows: StandardRows, weight: torch.Tensor) -> Spectrum:
    """The spectrum of rows (N, D) under weights (N,) that sum to 1; in N dimensions where N < D.

    Raises:
        HeadError: every row has the same features.
    """
    mean = rows.weighted_sum(weight)
    if len(rows) < rows.dim:
        return _of_few(rows, weight, mean)
    places, _ = sample(weight, rows.dim)
    gram = torch.zeros(rows.dim, rows.dim, dtype=rows.dtype, device=weight.device)
    for piece, w in weighed(rows, weight, places):
        scaled = (piece - mean).mul_(w[:, None].sqrt())
        gram.addmm_(scaled.T, scaled)
    _check_not_all_the_same(rows, weight, mean, gram.diagonal())
    if places is not None:
        _scale_columns(gram, rows.weighted_sum(weight, off=mean))
    # All directions are kept: rotated by an orthogonal matrix nothing is lost, however small an eigenvalue may be.
    values, vectors = eigh(gram)
    return Spectrum(values.clamp_min_(0), (vectors.contiguous(),), mean)


Places = npt.NDArray[np.int64]


def sample(weight: torch.Tensor, dim: int) -> tuple[Places | None, Places | None]:
    """Rows evenly spaced among those of a weight (N,) above 0, as two lists without a common row; None means all.

    The first is of SAMPLED rows for each of the ``dim`` features, the second of ASIDE, or of as many shares of FEWEST.
    """
    wanted = max((SAMPLED + ASIDE) * dim, FEWEST)
    if len(weight) <= wanted:
        return None, None
    counted = np.flatnonzero(weight.cpu().numpy())
    if len(counted) > wanted:
        counted = counted[np.arange(wanted) * len(counted) // wanted]
    aside = np.arange(len(counted)) % ((SAMPLED + ASIDE) // ASIDE) == 0
    return counted[~aside], counted[aside]


def weighed(
    rows: StandardRows, weight: torch.Tensor, places: Places | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The rows at ``places``, by default all, in pieces (n, D) with their weights (n,), which sum to 1 over all."""
    if places is None:
        for start, piece in rows.chunks():
            yield piece, weight[start : start + len(piece)]
        return
    some = weight[on_device(places, weight.device)]
    some = some / some.sum()
    for first, piece in rows.picked(places):
        yield piece, some[first : first + len(piece)]


def _scale_columns(gram: torch.Tensor, variance: torch.Tensor) -> None:
    """Make ``variance`` (D,) the diagonal of G (D, D), and leave the columns' correlations as they are."""
    found = gram.diagonal()
    factor = torch.where(found > 0, (variance / found).sqrt(), torch.zeros_like(found))
    gram.mul_(factor).mul_(factor[:, None])
    gram.diagonal().copy_(variance)


def _of_few(rows: StandardRows, weight: torch.Tensor, mean: torch.Tensor) -> Spectrum:
    """From the N x N matrix of the rows' products; in float64, since its small eigenvalues are divided by."""
    scaled = torch.cat([piece.clone() for _, piece in rows.chunks()]).sub_(mean).mul_(weight[:, None].sqrt()).double()
    _check_not_all_the_same(rows, weight, mean, scaled.square().sum(dim=0))
    values, left = eigh(scaled @ scaled.T)
    kept = values > EIGENVALUE_FLOOR * values[-1]
    deviations, left = values[kept].sqrt(), left[:, kept]
    # Rows times their root weights are left · deviations · vectorsᵀ; a row of no weight is not to be had from that.
    turned = left * deviations / weight.double().sqrt()[:, None] if bool((weight > 0).all()) else None
    # In float64, since rows turned in float32 would mix into small directions; multiplied out only where asked for.
    return Spectrum(values[kept], (scaled.T, left / deviations), mean, turned)


def _check_not_all_the_same(
    rows: StandardRows, weight: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
) -> None:
    # A mean is rounded, so equal rows leave a variance behind. One that could be such is looked into, row by row.
    if (variance > (len(rows) * torch.finfo(rows.dtype).eps * mean).square()).any():
        return
    first: torch.Tensor | None = None
    for start, piece in rows.chunks():
        counted = piece[weight[start : start + len(piece)] > 0]
        if not len(counted):
            continue
        first = counted[0] if first is None else first
        if not torch.equal(counted, first.expand_as(counted)):
            return
    raise HeadError("every train row has the same features: nothing can be told apart, check the images and weights")
