"""The eigenbasis of the features' weighted covariance: the coordinates in which a linear head is easy to fit.

Knows rows and weights, nothing of labels or penalties. With Z the (standardised) rows centred by their weighted mean
and G = Zᵀ diag(w) Z / Σw = V Λ Vᵀ, the rows become U = Z V. A head θ on U is the head θ Vᵀ on Z, its penalty ‖θ‖² is
the same number, and the curvature of any loss that sees the rows through θ U is a weighting of a diagonal matrix. With
fewer rows than features only the directions that the rows span are kept: a penalised head has no weight elsewhere.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from pipeline.base.errors import HeadError
from pipeline.heads.rows import StandardRows

EIGENVALUE_FLOOR = 1e-12  # of the largest, in float64: below it is rounding


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
    mean = torch.zeros(rows.dim, dtype=rows.dtype, device=weight.device)
    for start, piece in rows.chunks():
        mean += weight[start : start + len(piece)] @ piece
    if len(rows) < rows.dim:
        return _of_few(rows, weight, mean)
    gram = torch.zeros(rows.dim, rows.dim, dtype=rows.dtype, device=weight.device)
    for start, piece in rows.chunks():
        scaled = (piece - mean).mul_(weight[start : start + len(piece), None].sqrt())
        gram.addmm_(scaled.T, scaled)
    _check_not_all_the_same(rows, weight, mean, gram.diagonal())
    # All directions are kept: rotated by an orthogonal matrix nothing is lost, however small an eigenvalue may be.
    values, vectors = torch.linalg.eigh(gram)
    return Spectrum(values.clamp_min_(0), (vectors.contiguous(),), mean)


def _of_few(rows: StandardRows, weight: torch.Tensor, mean: torch.Tensor) -> Spectrum:
    """From the N x N matrix of the rows' products; in float64, since its small eigenvalues are divided by."""
    scaled = torch.cat([piece for _, piece in rows.chunks()]).sub_(mean).mul_(weight[:, None].sqrt()).double()
    _check_not_all_the_same(rows, weight, mean, scaled.square().sum(dim=0))
    values, left = torch.linalg.eigh(scaled @ scaled.T)
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
