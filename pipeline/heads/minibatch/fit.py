"""Heads by minibatch AdamW or SGD, many configurations and seeds in one pass over the rows.

Knows arrays only: gathers the configs that can share a pass (``passes``), and gives the heads for raw features. The
gradient of the softmax cross-entropy is written by hand (``kinds``); the updates are torch's AdamW and SGD with a
learning rate and weight decay of each head's own. Weights are decayed, biases and scales are not.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence

from pipeline.base.errors import ConfigError
from pipeline.heads.kinds.kind import kind_of
from pipeline.heads.minibatch.batches import POOL_BYTES
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.passes import Data, Epoch, FitResult, Labelled, OnEpoch, Pass, ShouldStop, shared
from pipeline.heads.problem import Problem, told_where_memory_ends
from pipeline.heads.rows import Array, StandardRows, unkept
from pipeline.heads.staging import on_device
from pipeline.heads.standardize import fit_standardization, identity

HEAD_COPIES = 6  # a head's parameters, their two moments, gradient, best epoch and their stacking
UNIT_COPIES = 6  # a batch's hidden units or logits, their gradients and what lies between


@told_where_memory_ends
def fit_minibatch(
    problem: Problem,
    configs: Sequence[MinibatchConfig],
    *,
    on_epoch: OnEpoch | None = None,
    should_stop: ShouldStop | None = None,
) -> list[FitResult]:
    """One fitted head for each config, in the configs' order; the same input gives the same bits.

    Val rows, where given, choose the epoch that is kept. A batch's loss is the mean over its rows, each weighed.
    Rows are held standardised where they fit in ``problem.memory``, otherwise each epoch reads them (``batches``);
    configs that agree in kind (and hidden layers), epochs, batch size, solver, schedule and order seed advance in
    one pass, as many as fit in it again, other passes follow. A head's ``seed`` is its own, so that heads of many
    seeds train in one pass where their ``order_seed`` is the same number. A head whose loss stops being finite is
    dropped alone and says so. ``on_epoch(i, epoch)`` hears config i. When ``should_stop()`` turns true, training ends
    after the epoch in work, with what there is: heads that had no epoch come back as they began.

    Raises:
        ConfigError: no configs.
    """
    results: dict[int, FitResult] = {}
    for members, group in passes(problem, configs):
        group.advance(group.configs[0].epochs, functools.partial(tell, on_epoch, members), should_stop or never)
        results |= zip(members, group.results(), strict=True)
    return [results[i] for i in range(len(configs))]


def passes(problem: Problem, configs: Sequence[MinibatchConfig]) -> Iterator[tuple[list[int], Pass]]:
    """The passes that the configs need, each with the numbers of its configs; made when asked for.

    Raises:
        ConfigError: no configs.
    """
    if not configs:
        raise ConfigError("no configurations: at least one is needed")
    data = _data(problem)
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, c in enumerate(configs):
        groups.setdefault(shared(c), []).append(i)
    for members in groups.values():
        at_most = max(1, problem.memory_bytes // _bytes(configs[members[0]], data))
        for some in (members[i : i + at_most] for i in range(0, len(members), at_most)):
            first = configs[some[0]]
            widest = max([data.dim, *kind_of(first.kind).hidden(first)])
            yield some, Pass(data, [configs[i].with_rate(widest) for i in some])


def _data(problem: Problem) -> Data:
    """The problem's rows, held where they fit in the budget, train rows first."""
    val, held, allowed = problem.val, rows_bytes(problem), problem.memory_bytes
    resident = held <= allowed
    X = problem.X if resident else unkept(problem.X)
    s = fit_standardization(X, problem.row_weight) if problem.standardize else identity(X.shape[1])

    def labelled(rows: Array, y: Array, *, resident: bool) -> Labelled:
        scaling = s if problem.standardize else None
        ready = StandardRows(rows, scaling, problem.target, resident=resident, dtype=problem.dtype)
        return Labelled(ready, on_device(y, problem.target))

    train, watched = labelled(X, problem.y, resident=resident), None
    if val is not None:
        beside = held if resident else POOL_BYTES
        resident = beside + StandardRows.held_bytes(val.X, problem.target, problem.dtype) <= allowed
        watched = labelled(val.X if resident else unkept(val.X), val.y, resident=resident)
    # A weighted mean, so that a row of weight 2 counts as two rows do.
    loss_weight = on_device(problem.loss_weight / problem.row_weight.mean(), problem.target, problem.dtype)
    return Data(problem.n_classes, X.shape[1], loss_weight, train, watched, s, problem.target, problem.val_metric)


def rows_bytes(problem: Problem) -> int:
    """Bytes that the train rows take where they are held."""
    return StandardRows.held_bytes(problem.X, problem.target, problem.dtype)


def _bytes(config: MinibatchConfig, data: Data) -> int:
    """What a head of this config takes while it is trained."""
    sizes = [data.dim, *kind_of(config.kind).hidden(config), data.n_classes]
    parameters = sum((a + 1) * b for a, b in itertools.pairwise(sizes))
    batch = min(config.batch_size, len(data.train.rows))
    return data.loss_weight.element_size() * (HEAD_COPIES * parameters + UNIT_COPIES * batch * sum(sizes[1:]))


def tell(on_epoch: OnEpoch | None, members: Sequence[int], k: int, epoch: Epoch) -> None:
    """Hand an epoch of a pass's config k on as that of config ``members[k]``."""
    if on_epoch is not None:
        on_epoch(members[k], epoch)


def never() -> bool:
    """Nobody asks for a stop."""
    return False
