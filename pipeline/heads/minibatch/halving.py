"""Successive halving: many heads for a few epochs, the best on val for more (Jamieson and Talwalkar, arXiv 1502.07943).

Knows what ``fit`` knows. Heads that go on continue where they were: nothing is trained twice.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.base.errors import ConfigError, HeadError
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.fit import never, passes, tell
from pipeline.heads.minibatch.passes import FitResult, OnEpoch, Pass, ShouldStop
from pipeline.heads.problem import Problem, told_where_memory_ends


@dataclass(frozen=True)
class Halving:
    """All heads train for ``min_epochs``, the best 1/eta of them for eta times as many, and so on to ``max_epochs``.

    Raises:
        ConfigError: eta below 2, or not 1 <= min_epochs <= max_epochs.
    """

    min_epochs: int
    max_epochs: int
    eta: int = 3

    def __post_init__(self) -> None:
        """Refuse values that are not legal."""
        if self.eta < 2:
            raise ConfigError(f"eta is {self.eta}: it must be at least 2")
        if not 1 <= self.min_epochs <= self.max_epochs:
            raise ConfigError(
                f"min_epochs is {self.min_epochs}: it must be at least 1 and at most max_epochs, {self.max_epochs}"
            )

    def rungs(self) -> list[int]:
        """The epochs at whose end heads are compared: min_epochs, times eta each, the last max_epochs."""
        found = [self.min_epochs]
        while found[-1] < self.max_epochs:
            found.append(min(found[-1] * self.eta, self.max_epochs))
        return found


@told_where_memory_ends
def successive_halving(
    problem: Problem,
    configs: Sequence[MinibatchConfig],
    schedule: Halving,
    *,
    on_epoch: OnEpoch | None = None,
    should_stop: ShouldStop | None = None,
) -> list[FitResult]:
    """All configs, in their order, each trained for as many epochs as it earned (``len(result.trace)``).

    After each rung the best 1/eta of those still training (at least one), by the epoch that was best on val so far,
    go on to the next. ``schedule.max_epochs`` takes the place of the configs' ``epochs``, so that a
    cosine schedule is that of a full run: heads that reach the end are ``fit_minibatch``'s. Other arguments are its,
    too; all passes lie in memory together. When ``should_stop()`` turns true every pass ends after its epoch in work.

    Raises:
        HeadError: no val rows.
        ConfigError: no configs.
    """
    if problem.val is None:
        raise HeadError("no val rows: successive halving compares heads on them")
    full = [replace(config, epochs=schedule.max_epochs) for config in configs]
    groups = list(passes(problem, full))
    stop, ends = should_stop or never, schedule.rungs()
    for end in ends:
        for members, group in groups:
            group.advance(end, functools.partial(tell, on_epoch, members), stop)
        if end == ends[-1] or stop():
            break
        _cut(groups, schedule.eta)
    results: dict[int, FitResult] = {}
    for members, group in groups:
        results |= zip(members, group.results(), strict=True)
    return [results[i] for i in range(len(configs))]


def _cut(groups: Sequence[tuple[list[int], Pass]], eta: int) -> None:
    """Keep the best 1/eta of all heads that are alive; of equal ones the earlier config."""
    standing = {members[k]: group.standing(k) for members, group in groups for k in group.alive}
    ranked = sorted(standing, key=lambda i: (*standing[i], i))
    chosen = set(ranked[: max(1, len(ranked) // eta)])
    for members, group in groups:
        group.keep([k for k, i in enumerate(members) if i in chosen])
