"""Features made up with the spectrum of real ones: few directions carry most of the variance."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

LABEL_DEVIATION = 2.0  # of the logits that the labels are drawn from


def power_law(rows: int, dim: int, classes: int, seed: int) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Gaussian features X (rows, dim) float16, labels y (rows,) int64; the same seed gives the same.

    The covariance has eigenvalues 1/k, k = 1 ... dim, in a random orthogonal basis; labels are drawn from the softmax
    of a random linear map of the directions, whose logits have standard deviation 2.
    """
    return next(power_law_pieces(rows, dim, classes, seed, piece=rows))


def power_law_pieces(
    rows: int, dim: int, classes: int, seed: int, *, piece: int
) -> Iterator[tuple[NDArray[np.float16], NDArray[np.int64]]]:
    """Features and labels as of :func:`power_law`, ``piece`` rows at a time, for more than memory should hold.

    All pieces are of one basis and one map; the first of them is ``power_law(piece, ...)``.
    """
    rng = np.random.default_rng(seed)
    deviations = (1 / np.sqrt(np.arange(1, dim + 1))).astype(np.float32)
    rotation = np.linalg.qr(rng.standard_normal((dim, dim), dtype=np.float32))[0]
    directions = np.zeros((dim, 0), np.float32)
    for start in range(0, rows, piece):
        latent = rng.standard_normal((min(piece, rows - start), dim), dtype=np.float32) * deviations
        if not start:
            directions = rng.standard_normal((dim, classes), dtype=np.float32)
        logits = latent @ directions
        logits *= LABEL_DEVIATION / np.linalg.norm(deviations)
        # The greatest of the logits and Gumbel noise is a draw from their softmax.
        y = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
        yield (latent @ rotation.T).astype(np.float16), y.astype(np.int64)
