"""Eigenvalues and eigenvectors of symmetric matrices, by LAPACK on the processor, also of a GPU's matrices.

cuSOLVER before CUDA 12.2 fails on matrices of low rank, such as those of constant features, in float32 and in float64
(pytorch#94772, #105359, #107082); and since CUDA 13 small ones in batches take it 30 to 130 times as long
(pytorch#183806). A matrix of 2,048 rows takes a processor a second or two, once a fit.
"""

from __future__ import annotations

import torch

from pipeline.heads.staging import on_device


def eigh(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (..., n), ascending, and vectors (..., n, n) of matrices of which the lower triangle is read."""
    values, vectors = torch.linalg.eigh(matrices.cpu())
    return on_device(values, matrices.device), on_device(vectors, matrices.device)
