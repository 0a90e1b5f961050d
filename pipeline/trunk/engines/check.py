"""The check that an engine computes the trunk: against the library's own modules, eager, in float32."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.base.errors import EngineError
from pipeline.base.spelling import option
from pipeline.trunk.engines.base import TOLERANCE, Engine, exact_convolutions
from pipeline.trunk.identity import WeightsInfo

# An engine may be so many times as far from the network in float64 as the network in float32 is. That distance is one
# draw from a wide distribution (4.1 times was seen of a network that makes 1e-2 of rounding); TF32, the finest of the
# wrong ways to compute, rounds 8,192 times as coarsely.
NOISE = 16
CHECK_ROWS = 4  # images of the first batch that the reference is computed for: 0.4 s with resnet50 on two cores
LATER_ROWS = 2  # and of each later batch that is checked


def check_engine(
    engine: Engine,
    trunk: nn.Module,
    info: WeightsInfo,
    pixels: NDArray[np.uint8],
    found: NDArray[np.float32] | None = None,
    *,
    rows: int = CHECK_ROWS,
) -> float:
    """The engine on pixels (n, 3, S, S) uint8, 1 <= n <= batch, against the network's own modules, eager, in float32.

    ``found`` (n, D) is what the engine gave for them, where that is known already.

    Returns the largest difference of a feature as a share of the largest feature of its image, over ``rows`` images
    spread over the batch, its first and last among them.

    Raises:
        EngineError: the difference is above TOLERANCE of the engine's precision and above NOISE times what rounding
            makes of the network itself, or not a number.
    """
    at = np.unique(np.linspace(0, len(pixels) - 1, min(rows, len(pixels))).round().astype(int))
    reference = eager_features(trunk, info, pixels[at])
    given = (engine(pixels) if found is None else found)[at]
    # An image may have no active feature at all; then the engine's must be zeros as well.
    reach = np.maximum(np.abs(reference).max(axis=1), np.finfo(np.float32).tiny)
    worst, tolerance = float((np.abs(given - reference).max(axis=1) / reach).max()), TOLERANCE[engine.precision]
    if worst > tolerance and engine.precision == "float32":
        # Some networks make more of float32's rounding than others; how much is seen in the reference itself.
        exact = eager_features(copy.deepcopy(trunk).double(), info, pixels[at], torch.float64)
        noise = float((np.abs(reference - exact).max(axis=1) / reach).max())
        worst, tolerance = float((np.abs(given - exact).max(axis=1) / reach).max()), max(tolerance, NOISE * noise)
    if not worst <= tolerance:
        raise EngineError(
            f"engine {engine.name} {engine.version} on {engine.device} in {engine.precision} differs from plain "
            f"PyTorch by {worst:.1e} of the largest feature, {tolerance:.1e} is allowed: give another "
            f"{option('engine')}, or {option('precision', 'float32')}"
        )
    return worst


def eager_features(
    trunk: nn.Module, info: WeightsInfo, pixels: NDArray[np.uint8], dtype: torch.dtype = torch.float32
) -> NDArray[np.floating[Any]]:
    """Features (n, D) of pixels (n, 3, S, S) uint8 by the network's own modules, ``dtype``, and float normalisation."""
    parameter = next(trunk.parameters())
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (info.transform.mean, info.transform.std))
    with torch.inference_mode(), exact_convolutions(parameter.device.type):
        x = (torch.from_numpy(pixels).float() / 255 - mean) / std
        features: NDArray[np.floating[Any]] = trunk(x.to(parameter.device, dtype)).cpu().numpy()
    return features
