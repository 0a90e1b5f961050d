"""Successive halving: many heads for a few epochs, the best on val for more (Jamieson and Talwalkar, arXiv 1502.07943).

Knows what ``minibatch`` knows. Heads that go on continue where they were: nothing is trained twice.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch

from pipeline.base.errors import ConfigError
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.fit import MEMORY_BUDGET_BYTES, on_raw_features, passes, prepare, tell
from pipeline.heads.minibatch.passes import FitResult, OnEpoch, Pass, ShouldStop
from pipeline.heads.rows import Array, ClassWeight


def rungs(*, eta: int, min_epochs: int, max_epochs: int) -> list[int]:
    """The epochs at whose end heads are compared: min_epochs, times eta each, the last max_epochs.

    Raises:
        ConfigError: eta below 2, or not 1 <= min_epochs <= max_epochs.
    """
    if eta < 2:
        raise ConfigError(f"eta is {eta}: it must be at least 2")
    if not 1 <= min_epochs <= max_epochs:
        raise ConfigError(f"min_epochs is {min_epochs}: it must be at least 1 and at most max_epochs, {max_epochs}")
    found = [min_epochs]
    while found[-1] < max_epochs:
        found.append(min(found[-1] * eta, max_epochs))
    return found


def successive_halving(
    X: Array,
    y: Array,
    X_val: Array,
    y_val: Array,
    *,
    n_classes: int,
    configs: Sequence[MinibatchConfig],
    eta: int = 3,
    min_epochs: int,
    max_epochs: int,
    standardize: bool = True,
    class_weight: ClassWeight = None,
    sample_weight: Array | None = None,
    class_names: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
    on_epoch: OnEpoch | None = None,
    should_stop: ShouldStop | None = None,
) -> list[FitResult]:
    """All configs, in their order, each trained for as many epochs as it earned (``len(result.trace)``).

    All train for ``min_epochs``; then the best 1/eta of those still training (at least one), by their best val accuracy
    so far and the val loss there, go on to eta times as many, and so forth to ``max_epochs``. That number takes the
    place of the configs' ``epochs``, so that a cosine schedule is that of a full run: heads that reach the end are
    ``fit_minibatch``'s. Other arguments are its, too; all passes lie in memory together. When ``should_stop()`` turns
    true every pass ends after its epoch in work.

    Raises:
        HeadError: features, labels or weights that cannot be learned from.
        ConfigError: no configs, eta or epochs out of range, or a device that is not there.
    """
    if not configs:
        raise ConfigError("no configurations: at least one is needed")
    ends = rungs(eta=eta, min_epochs=min_epochs, max_epochs=max_epochs)
    data, s = prepare(
        X,
        y,
        n_classes=n_classes,
        X_val=X_val,
        y_val=y_val,
        standardize=standardize,
        class_weight=class_weight,
        sample_weight=sample_weight,
        class_names=class_names,
        device=device,
        memory_budget_bytes=memory_budget_bytes,
    )
    full = [replace(config, epochs=max_epochs) for config in configs]
    groups = [(members, Pass(data, [full[i] for i in members])) for members in passes(full, data, memory_budget_bytes)]
    stop = should_stop or (lambda: False)
    for end in ends:
        for members, group in groups:
            group.advance(end, functools.partial(tell, on_epoch, members), stop)
        if end == ends[-1] or stop():
            break
        _cut(groups, eta)
    results: dict[int, FitResult] = {}
    for members, group in groups:
        results |= zip(members, on_raw_features(group.results(), s), strict=True)
    return [results[i] for i in range(len(configs))]


def _cut(groups: Sequence[tuple[list[int], Pass]], eta: int) -> None:
    """Keep the best 1/eta of all heads that are alive; of equal ones the earlier config."""
    standing = {members[k]: group.standing(k) for members, group in groups for k in group.alive}
    ranked = sorted(standing, key=lambda i: (*(-value for value in standing[i]), i))
    chosen = set(ranked[: max(1, len(ranked) // eta)])
    for members, group in groups:
        group.keep([k for k, i in enumerate(members) if i in chosen])
