"""Eigenvalues and eigenvectors of symmetric matrices: of a GPU, too, by LAPACK on the processor, but many large ones.

cuSOLVER before CUDA 12.2 fails on matrices of low rank, such as those of constant features, in float32 and in float64
(pytorch#94772, #105359, #107082); and since CUDA 13 small ones in batches take it 30 to 130 times as long
(pytorch#183806). A matrix of 2,048 rows takes a processor a second or two, once a fit.
"""

from __future__ import annotations

import torch

from pipeline.heads.staging import on_device

SMALL = 256  # rows of a matrix, of which many are decomposed together: larger ones a GPU does itself, where it can


def eigh(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (..., n), ascending, and vectors (..., n, n) of matrices of which the lower triangle is read."""
    values, vectors = torch.linalg.eigh(matrices.cpu())
    return on_device(values, matrices.device), on_device(vectors, matrices.device)


def eigh_of_many(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of a batch (K, n, n); large ones on the GPU where they lie, unless its library fails on them."""
    if matrices.shape[-1] > SMALL and matrices.is_cuda:
        try:
            values, vectors = torch.linalg.eigh(matrices)
            return values, vectors
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            pass  # of low rank, by an older cuSOLVER
    return eigh(matrices)
