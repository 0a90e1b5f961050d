"""Rows in their eigenbasis as factors of products: turned and held in memory, or read anew for each product.

Knows rows and their spectrum; nothing of what the products are for. Turning N rows costs what D columns of a product
do, and held they are four bytes a number. Read anew, the weights are turned instead, which costs a column of a product
D / N more; the rows then come from the map or array that they are in, mostly as float16, of which a piece in the
processor's cache is made float32 in a tenth of the time that the memory takes to give what is held.
"""

from __future__ import annotations

import functools

import torch

from pipeline.heads.exact.spectrum import Spectrum, sample, weighed
from pipeline.heads.rows import Chunks, StandardRows

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
    """Rows that are read for each product, and the (small) weights are turned instead of them."""

    def __init__(self, rows: StandardRows, spectrum: Spectrum) -> None:
        self._rows, scale = rows.undivided(spectrum.mean)
        self._values = spectrum.values.to(rows.dtype)
        self._vectors = (spectrum.vectors / scale[:, None]).to(rows.dtype)  # (D, r)

    def forward(self, theta: torch.Tensor) -> torch.Tensor:
        """(P, N) for weights (P, r)."""
        weight = theta @ self._vectors.T
        out = torch.empty(len(theta), len(self._rows), dtype=theta.dtype, device=theta.device)

        def work(chunks: Chunks) -> None:
            for start, piece in chunks:
                torch.mm(weight, piece.T, out=out[:, start : start + len(piece)])

        self._rows.by_threads(work)
        return out

    def backward(self, residual: torch.Tensor) -> torch.Tensor:
        """(P, r) for residuals (P, N)."""

        def work(chunks: Chunks) -> torch.Tensor:
            total = torch.zeros(len(residual), self._rows.dim, dtype=residual.dtype, device=residual.device)
            for start, piece in chunks:
                total.addmm_(residual[:, start : start + len(piece)], piece)
            return total

        return functools.reduce(torch.Tensor.add_, self._rows.by_threads(work)) @ self._vectors

    def variance(self, weight: torch.Tensor) -> torch.Tensor:
        """(r,): the mean square of each coordinate under weights (N,) that sum to 1; of very many rows, in a sample."""
        total = torch.zeros(self._vectors.shape[1], dtype=weight.dtype, device=weight.device)
        _, aside = sample(weight, self._rows.dim)
        for piece, w in weighed(self._rows, weight, aside):
            total += w @ (piece @ self._vectors).square_()
        # The sample that the vectors are of makes too little of what varies little, this one nothing of a column that
        # is zero in it. A step that is too short does less harm than one that is too long.
        return total if aside is None else torch.maximum(total, self._values)
