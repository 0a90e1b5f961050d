"""What is kept: the start, the best epoch, or weights between the two; chosen on val alone.

Weights between before and after (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903) are often better than either. The
shares are fixed beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.stages.finetune import scoring
from pipeline.stages.finetune.scoring import Score
from pipeline.stages.finetune.state import State, Tensors
from pipeline.stages.finetune.task import Task

SHARES = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class Mixture:
    """The network that is ``share`` of the way from before (0) to after (1), and its figures on val."""

    share: float
    val: float
    loss: float


@dataclass(frozen=True, eq=False)
class Choice:
    """What is kept: its tensors, its val accuracy, the epoch (0: the start), and how far it is from the start.

    ``share`` is None and there are no ``mixtures`` but with ``--interpolate``.
    """

    tensors: Tensors
    val: float
    epoch: int
    share: float | None = None
    mixtures: tuple[Mixture, ...] = ()


def choose(task: Task, state: State, step0: Score) -> Choice:
    """The best on val of step 0, the epochs and, with ``--interpolate``, what lies between; the former of equals."""
    best = state.progress.best
    if best is None or state.best is None:
        return Choice(state.start, step0.accuracy, 0)
    after, epoch = Score(best["loss"], best["val"]), int(best["epoch"])
    if task.settings.interpolate:
        mixtures = score_mixtures(task, state, step0, after)
        found = best_mixture(mixtures)
        tensors = between(state.start, state.best, found.share)
        return Choice(tensors, found.val, epoch if found.share else 0, found.share, tuple(mixtures))
    if after.order < step0.order:
        return Choice(state.best, after.accuracy, epoch)
    return Choice(state.start, step0.accuracy, 0)


def between(before: Tensors, after: Tensors, share: float) -> Tensors:
    """(1 - share) · before + share · after of every tensor; counters (integers) are those of ``after``."""
    return {
        name: (tensor.lerp(after[name], share) if 0 < share < 1 else (after if share else before)[name])
        if tensor.is_floating_point()
        else after[name]
        for name, tensor in before.items()
    }


def score_mixtures(task: Task, state: State, before: Score, after: Score) -> list[Mixture]:
    """All shares scored on val; ``before`` and ``after`` are known already. Loads each in turn."""
    assert state.best is not None
    found, val = [], task.attached.val
    for share in SHARES:
        figures = after if share else before
        if 0 < share < 1:
            state.load(between(state.start, state.best, share))
            figures = scoring.score(task, val, scoring.logits(task, val, f"{share:.1f} of the way"))
        found.append(Mixture(share, figures.accuracy, figures.loss))
    return found


def best_mixture(mixtures: Sequence[Mixture]) -> Mixture:
    """The highest accuracy, then the lowest loss; of equals the one nearest to before."""
    return min(mixtures, key=lambda m: (*Score(m.loss, m.val).order, m.share))
