"""Weights between before and after (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903): often better than either.

Scored on val alone; the shares are fixed beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.stages.finetune.loop import Tensors, Tuning

SHARES = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class Mixture:
    """The network that is ``share`` of the way from before (0) to after (1), and its figures on val."""

    share: float
    val: float
    loss: float


def between(before: Tensors, after: Tensors, share: float) -> dict[str, torch.Tensor]:
    """(1 - share) · before + share · after of every tensor; counters (integers) are those of ``after``."""
    return {
        name: (tensor.lerp(after[name], share) if 0 < share < 1 else (after if share else before)[name])
        if tensor.is_floating_point()
        else after[name]
        for name, tensor in before.items()
    }


def score_mixtures(tuning: Tuning, before: tuple[float, float], after: tuple[float, float]) -> list[Mixture]:
    """All shares scored on val; ``before`` and ``after`` are (loss, accuracy), known already. Loads each in turn."""
    assert tuning.best is not None
    found = []
    for share in SHARES:
        loss, val = before if share == 0 else after
        if 0 < share < 1:
            tuning.load(between(tuning.start, tuning.best, share))
            rows = tuning.attached.val
            loss, val = tuning.scores(rows, tuning.logits(rows, f"{share:.1f} of the way"))
        found.append(Mixture(share, val, loss))
    return found


def best_mixture(mixtures: Sequence[Mixture]) -> Mixture:
    """The highest accuracy, then the lowest loss; of equals the one nearest to before."""
    return max(mixtures, key=lambda m: (m.val, -m.loss, -m.share))
