"""What a head is chosen by, and which of equals is taken: one rule wherever something is chosen.

Knows figures by name, as plain numbers; imports nothing of the solvers, so that the command line reads it quickly.

The log-loss chooses unless another metric is asked for. Chosen by accuracy, C runs to where a few val rows happen to be
right: in 20 % of small separable val sets to the end of a path as far as 1e5, at a log-loss of 0.27 on test against
0.13; chosen by log-loss the accuracy on test was the same.

The epoch of a head that is trained once by minibatches, or of a fine-tuning, is chosen by accuracy, of equals by the
log-loss: chosen by log-loss alone, heads with hidden layers stopped after an epoch or two and lost accuracy (CIFAR-10
through an EfficientNet-Lite0, lr 3e-3: 78.2 % against 75.2 %); how sure they are is the temperature's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

METRICS = ("log_loss", "accuracy", "balanced_accuracy", "macro_f1")
METRIC = METRICS[0]
PENALTIES = tuple(10.0 ** (-4 + i / 4) for i in range(21))  # C of a path: 10^-4 ... 10, four a decade
DEFAULT_C = 0.01  # of one head; the README says on which figures


def order(figures: Mapping[str, float], metric: str = METRIC, C: float = 0.0) -> tuple[float, float, float]:
    """What sorts candidates, the best first: their figure, of equals the log-loss, of equals still the penalty.

    ``figures`` holds ``metric`` and ``log_loss``; of all metrics but the log-loss more is better. The stronger penalty
    (the lower C) is the simpler head.
    """
    value = figures[metric]
    return (value if metric == "log_loss" else -value), figures["log_loss"], C


def at_the_end(Cs: Sequence[float], chosen: float) -> str | None:
    """'lowest' or 'highest' where the chosen C is the end of a path of several, beyond which a better one may lie."""
    if len(Cs) < 2 or min(Cs) < chosen < max(Cs):
        return None
    return "lowest" if chosen == min(Cs) else "highest"
