"""Rows in their eigenbasis as factors of products: held in memory, or read anew for each product.

Knows standardised rows and their spectrum; nothing of what the products are for.
"""

from __future__ import annotations

import torch

from pipeline.heads.exact.spectrum import Spectrum
from pipeline.heads.rows import StandardRows

PIECE = 2048  # rows that are squared at once


class Held:
    """Rotated rows (N, r) in memory."""

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows

    def forward(self, theta: torch.Tensor) -> torch.Tensor:
        """(P, N) for weights (P, r)."""
        return theta @ self._rows.T

    def backward(self, residual: torch.Tensor) -> torch.Tensor:
        """(P, r) for residuals (P, N)."""
        return residual @ self._rows

    def variance(self, weight: torch.Tensor) -> torch.Tensor:
        """(r,): the mean square of each coordinate under weights (N,) that sum to 1."""
        total = torch.zeros(self._rows.shape[1], dtype=weight.dtype, device=weight.device)
        for rows, w in zip(torch.split(self._rows, PIECE), torch.split(weight, PIECE), strict=True):
            total += w @ rows.square()
        return total


class Streamed:
    """Rows that do not fit: they are read for each product, and the (small) weights are rotated instead of them."""

    def __init__(self, rows: StandardRows, spectrum: Spectrum) -> None:
        self._rows, self._spectrum, self._vectors = rows, spectrum, spectrum.vectors.to(rows.dtype)

    def forward(self, theta: torch.Tensor) -> torch.Tensor:
        """(P, N) for weights (P, r)."""
        weight, shift = self._spectrum.to_features(theta, torch.zeros_like(theta[:, 0]))
        out = torch.empty(len(theta), len(self._rows), dtype=theta.dtype, device=theta.device)
        for start, piece in self._rows.chunks():
            out[:, start : start + len(piece)] = torch.addmm(shift[:, None], weight, piece.T)
        return out

    def backward(self, residual: torch.Tensor) -> torch.Tensor:
        """(P, r) for residuals (P, N)."""
        mean = self._spectrum.mean
        total = -residual.sum(dim=1, keepdim=True) * mean
        for start, piece in self._rows.chunks():
            total.addmm_(residual[:, start : start + len(piece)], piece)
        return total @ self._vectors

    def variance(self, weight: torch.Tensor) -> torch.Tensor:
        """(r,): the mean square of each coordinate under weights (N,) that sum to 1."""
        total = torch.zeros(self._vectors.shape[1], dtype=weight.dtype, device=weight.device)
        for start, piece in self._rows.chunks():
            rotated = (piece - self._spectrum.mean) @ self._vectors
            total += weight[start : start + len(piece)] @ rotated.square_()
        return total
