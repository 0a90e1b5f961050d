"""Is a head as sure as it should be? What calibration error means, and the temperature that mends it.

Temperature scaling (Guo et al. 2017) is one number, fitted on val, that makes a head's probabilities honest. It divides
all logits, so no prediction changes, only how sure the head claims to be. Knows logits and labels only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from pipeline.heads.scores.metrics import Floats, calibration_bins, calibration_error, check_logits, log_softmax

FLATTEST = 1e-3  # the largest difference of two logits of a row, divided by the highest temperature
STEP = math.log(8)  # of the logarithm of 1 / T, while its root is bracketed
XTOL = 1e-10  # of the logarithm of the temperature
DRAWS = 200  # of an expected calibration error: its standard error is then below a tenth of its size
DRAWN_AT_ONCE = 4_000_000  # rows


@dataclass(frozen=True)
class Calibrated:
    """What a temperature makes of a split's figures; all others stay as they are."""

    temperature: float
    log_loss: float
    ece: float
    ece_expected: float  # see expected_calibration_error


def calibrated(logits: npt.NDArray[Any], y: npt.NDArray[Any], temperature: float) -> Calibrated:
    """The figures of logits (N, C) divided by a temperature, against labels (N,).

    Raises:
        HeadError: no rows, logits of another shape or not finite, or a label out of range.
    """
    labels = check_logits(y, logits, logits.shape[-1])
    log_p, every, guess = log_softmax(logits / temperature), np.arange(len(logits)), logits.argmax(axis=1)
    confidence = np.exp(log_p[every, guess])
    ece = calibration_error(guess == labels, confidence)
    loss = float(-log_p[every, labels].mean())
    return Calibrated(temperature, loss, ece, expected_calibration_error(confidence))


def expected_calibration_error(confidence: Floats) -> float:
    """The calibration error, 0 ... 1, that a head shows which claims these probabilities (N,) and is calibrated.

    It is above 0, and not little on few rows: the share of right rows of a bin is not its mean probability, but a draw
    of it. The mean of DRAWS draws in which each row is right with just the probability claimed; always the same draws.
    """
    order = np.argsort(confidence)
    claimed = confidence[order]
    starts = np.unique(calibration_bins(claimed), return_index=True)[1]
    rng, total, step = np.random.default_rng(0), 0.0, max(1, DRAWN_AT_ONCE // len(claimed))
    for start in range(0, DRAWS, step):
        excess = (rng.random((min(step, DRAWS - start), len(claimed))) < claimed) - claimed
        total += float(np.abs(np.add.reduceat(excess, starts, axis=1)).sum())
    return total / DRAWS / len(claimed)


def fit_temperature(logits: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
    """The T > 0 for which softmax(logits / T) has the lowest mean log-loss on labels y (N,); logits: (N, C).

    The log-loss is convex in b = 1 / T with the derivative mean(E_p[z] - z_y), whose root is bracketed and found by
    Brent's method in float64. Two bounds keep T finite: where all rows are right the loss falls for ever with T, so it
    is followed down to log((N + 2) / (N + 1)) and no further, the loss of being as sure as N right answers of N allow
    (Laplace's rule of succession); where the logits are no better than guessing, T stops when they are all but equal.

    Raises:
        HeadError: no rows, logits of another shape or not finite, or a label out of range.
    """
    labels = check_logits(y, logits, logits.shape[-1])
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    own = z[np.arange(len(z)), labels]
    spread = -float(z.min())
    if spread == 0:
        return 1.0  # every row's logits are all equal: no temperature changes anything

    def loss_and_slope(u: float) -> tuple[float, float]:
        """At b = exp(u), the slope in b."""
        log_p = log_softmax(math.exp(u) * z)
        loss = -log_p[np.arange(len(z)), labels].mean()
        expected = np.einsum("nc,nc->n", np.exp(log_p, out=log_p), z)
        return float(loss), float((expected - own).mean())

    def slope(u: float) -> float:
        return loss_and_slope(u)[1]

    def excess(u: float) -> float:
        return loss_and_slope(u)[0] - least

    least = math.log((len(z) + 2) / (len(z) + 1))
    low = math.log(FLATTEST / spread)  # of u = log b
    if slope(low) >= 0:
        return math.exp(-low)
    high = low + STEP
    while (found := loss_and_slope(high))[1] < 0 and found[0] > least:
        low, high = high, high + STEP  # the loss falls from here on, and is not down yet: both roots lie beyond
    if found[1] >= 0:
        high = float(brentq(slope, low, high, xtol=XTOL))
    if excess(high) < 0:
        high = float(brentq(excess, low, high, xtol=XTOL))
    return math.exp(-high)
