"""The check that an engine computes the trunk: against the library's own modules, eager, in float32."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.base.arithmetic import arithmetic
from pipeline.base.errors import EngineError
from pipeline.base.spelling import option
from pipeline.base.words import many
from pipeline.trunk.engines.base import TOLERANCE, Engine
from pipeline.trunk.identity import WeightsInfo

# An engine may be so many times as far from the network in float64 as the network in float32 is. That distance is one
# draw from a wide distribution (4.1 times was seen of a network that makes 1e-2 of rounding); TF32, the finest of the
# wrong ways to compute, rounds 8,192 times as coarsely.
NOISE = 16
# Least cosine of features in a precision with those in float32: of the mean over images, and of one image.
AGREEMENT = {"tf32": (0.999, 0.99), "bfloat16": (0.99, 0.93), "int8": (0.97, 0.85)}
CHECK_ROWS = 4  # images of the first batch that the reference is computed for: 0.4 s with resnet50 on two cores
LATER_ROWS = 2  # and of each later batch that is checked


@dataclass(frozen=True)
class Agreement:
    """How near the features of ``images`` are to those of the plain network in float32; the mean, and the worst image.

    ``error`` is the length of the difference as a share of the length of the features.
    """

    images: int
    cosine: float
    least_cosine: float
    error: float
    largest_error: float

    def joined(self, other: Agreement) -> Agreement:
        """Of both their images."""
        share = other.images / (self.images + other.images)
        return Agreement(
            self.images + other.images,
            self.cosine + share * (other.cosine - self.cosine),
            min(self.least_cosine, other.least_cosine),
            self.error + share * (other.error - self.error),
            max(self.largest_error, other.largest_error),
        )

    def refusal(self, precision: str, *, one: bool = False) -> str | None:
        """Why features of ``precision`` that agree so badly are none of the network's; None where they do agree.

        ``one`` judges each image alone: a few say nothing of the mean.
        """
        mean, least = AGREEMENT[precision]
        if self.least_cosine >= least and (one or self.cosine >= mean):
            return None
        wanted = f"at least {least:g} is wanted" if one else f"at least {mean:g} and {least:g} are wanted"
        return (
            f"the features in {precision} are not those of the network in float32: their cosine is {self.cosine:.4f}, "
            f"for the worst of {many(self.images, 'image')} {self.least_cosine:.4f}; {wanted}"
        )


def agreement(found: NDArray[np.floating[Any]], reference: NDArray[np.floating[Any]]) -> Agreement:
    """How near features (n, D) are to those of a reference, (n, D)."""
    a, b = found.astype(np.float64), reference.astype(np.float64)
    lengths, other = np.linalg.norm(b, axis=1), np.linalg.norm(a, axis=1)
    tiny = np.finfo(np.float32).tiny
    # An image may have no active feature at all; then what is found must have none as well.
    none = (lengths < tiny) & (other < tiny)
    with np.errstate(invalid="ignore"):  # what is not finite gives no number, and agrees with nothing
        cosine = np.where(none, 1.0, (a * b).sum(axis=1) / np.maximum(lengths * other, tiny))
        error = np.where(none, 0.0, np.linalg.norm(a - b, axis=1) / np.maximum(lengths, tiny))
    return Agreement(len(a), float(cosine.mean()), float(cosine.min()), float(error.mean()), float(error.max()))


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
        EngineError: in float32, a feature is off by more than TOLERANCE of the largest of its image and by more than
            NOISE times what rounding makes of the network itself; in another precision, the features of an image point
            elsewhere than AGREEMENT allows of one; or one is not a number.
    """
    at = np.unique(np.linspace(0, len(pixels) - 1, min(rows, len(pixels))).round().astype(int))
    reference = eager_features(trunk, info, pixels[at])
    given = (engine(pixels) if found is None else found)[at]
    # An image may have no active feature at all; then the engine's must be zeros as well.
    reach = np.maximum(np.abs(reference).max(axis=1), np.finfo(np.float32).tiny)
    worst, tolerance = float((np.abs(given - reference).max(axis=1) / reach).max()), TOLERANCE[engine.precision]
    if engine.precision != "float32":
        if why := agreement(given, reference).refusal(engine.precision, one=True):
            raise EngineError(f"{why}; {_cure()}")
        return worst
    if worst > tolerance:
        # Some networks make more of float32's rounding than others; how much is seen in the reference itself.
        exact = eager_features(copy.deepcopy(trunk).double(), info, pixels[at], torch.float64)
        noise = float((np.abs(reference - exact).max(axis=1) / reach).max())
        worst, tolerance = float((np.abs(given - exact).max(axis=1) / reach).max()), max(tolerance, NOISE * noise)
    if not worst <= tolerance:
        raise EngineError(
            f"engine {engine.name} {engine.version} on {engine.device} in {engine.precision} differs from plain "
            f"PyTorch by {worst:.1e} of the largest feature, {tolerance:.1e} is allowed: {_cure()}"
        )
    return worst


def _cure() -> str:
    return f"give another {option('engine')}, or {option('precision', 'float32')}"


def eager_features(
    trunk: nn.Module, info: WeightsInfo, pixels: NDArray[np.uint8], dtype: torch.dtype = torch.float32
) -> NDArray[np.floating[Any]]:
    """Features (n, D) of pixels (n, 3, S, S) uint8 by the network's own modules, ``dtype``, and float normalisation."""
    parameter = next(trunk.parameters())
    device = parameter.device.type
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (info.transform.mean, info.transform.std))

    @torch.inference_mode()
    def of(pixels: NDArray[np.uint8]) -> NDArray[np.floating[Any]]:
        x = (torch.from_numpy(pixels).float() / 255 - mean) / std
        features: NDArray[np.floating[Any]] = trunk(x.to(parameter.device, dtype)).cpu().numpy()
        return features

    with arithmetic():
        if device != "cpu" or (threads := min(torch.get_num_threads(), len(pixels))) == 1:
            return of(pixels)
        # torch divides each operation among its threads, which then wait for each other; where images are decoded
        # on the same cores, most of the time. A thread for some of the images waits for nobody.
        parts = np.array_split(pixels, threads)
        before = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                return np.concatenate(list(pool.map(of, parts)))
        finally:
            torch.set_num_threads(before)  # a thread's number becomes that of all threads to come
