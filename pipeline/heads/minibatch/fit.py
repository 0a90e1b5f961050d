"""Heads by minibatch AdamW or SGD, many configurations and seeds in one pass over the rows.

Knows arrays only: checks them, gathers the configs that can share a pass (``training``), and gives the heads for raw
features. The gradient of the softmax cross-entropy is written by hand (``networks``); the updates are torch's AdamW
and SGD with a learning rate and weight decay of each head's own. Weights are decayed, biases and scales are not.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import torch

from pipeline.base.errors import ConfigError, HeadError
from pipeline.heads.mapped import unkept
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.passes import (
    Data,
    Epoch,
    FitResult,
    OnEpoch,
    Pass,
    ShouldStop,
    Split,
    epoch_batches,
    shared,
)
from pipeline.heads.rows import (
    Array,
    ClassWeight,
    StandardRows,
    check_classes,
    check_device,
    check_features,
    check_labels,
    check_sample_weight,
    class_weights,
)
from pipeline.heads.standardize import Standardization, fit_standardization, fold

__all__ = ["Epoch", "FitResult", "epoch_batches", "fit_minibatch"]

MEMORY_BUDGET_BYTES = 1 << 30
HEAD_COPIES = 6  # a head's parameters, their two moments, gradient, best epoch and their stacking
UNIT_COPIES = 6  # a batch's hidden units or logits, their gradients and what lies between


def fit_minibatch(
    X: Array,
    y: Array,
    *,
    n_classes: int,
    configs: Sequence[MinibatchConfig],
    X_val: Array | None = None,
    y_val: Array | None = None,
    standardize: bool = True,
    class_weight: ClassWeight = None,
    sample_weight: Array | None = None,
    class_names: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
    on_epoch: OnEpoch | None = None,
    should_stop: ShouldStop | None = None,
) -> list[FitResult]:
    """One fitted head for each config, in the configs' order; the same input gives the same bits.

    X: (N, D) float, may be a memory map; y: (N,) class numbers. Val rows, where given, choose the epoch that is kept.
    ``sample_weight`` (N,) multiplies each row's loss, as class weights do; a batch's loss is the mean over its rows.
    Rows are held as standardised float32 where they fit in ``memory_budget_bytes``, otherwise each batch is read anew;
    configs that agree in kind (and width and depth), epochs, batch size, solver, schedule and order seed advance in
    one pass, as many as fit in it again, other passes follow. A head's ``seed`` is its own, so that heads of many
    seeds train in one pass where their ``order_seed`` is the same number. A head whose loss stops being finite is
    dropped alone and says so. ``on_epoch(i, epoch)`` hears config i. When ``should_stop()`` turns true, training ends
    after the epoch in work, with what there is: heads that had no epoch come back as they began.

    Raises:
        HeadError: features, labels or weights that cannot be learned from.
        ConfigError: no configs, half a val set, or a device that is not there.
    """
    if not configs:
        raise ConfigError("no configurations: at least one is needed")
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
    results: dict[int, FitResult] = {}
    for members in passes(configs, data, memory_budget_bytes):
        group = Pass(data, [configs[i] for i in members])
        group.advance(group.configs[0].epochs, functools.partial(tell, on_epoch, members), should_stop or _never)
        results |= zip(members, on_raw_features(group.results(), s), strict=True)
    return [results[i] for i in range(len(configs))]


def prepare(
    X: Array,
    y: Array,
    *,
    n_classes: int,
    X_val: Array | None,
    y_val: Array | None,
    standardize: bool,
    class_weight: ClassWeight,
    sample_weight: Array | None,
    class_names: Sequence[str] | None,
    device: str | torch.device,
    memory_budget_bytes: int,
) -> tuple[Data, Standardization]:
    """Arguments of :func:`fit_minibatch` checked, and the rows ready to be read.

    Raises:
        HeadError, ConfigError
    """
    target = check_device(device)
    if (X_val is None) != (y_val is None):
        raise ConfigError("val features and val labels go together: give both or neither")
    held = StandardRows.held_bytes(X)
    resident = held <= memory_budget_bytes
    X = X if resident else unkept(X)
    check_features(X, "train")
    labels = check_labels(y, len(X), n_classes, "train")
    check_classes(labels, n_classes, class_names)
    weight = class_weights(labels, n_classes, class_weight)[labels] * check_sample_weight(sample_weight, len(X))
    s = fit_standardization(X) if standardize else Standardization(np.zeros(X.shape[1]), np.ones(X.shape[1]))
    scaling = s if standardize else None
    train = Split(StandardRows(X, scaling, target, resident=resident), torch.from_numpy(labels).to(target))
    val = None
    if X_val is not None and y_val is not None:
        resident = held + StandardRows.held_bytes(X_val) <= memory_budget_bytes
        X_val = X_val if resident else unkept(X_val)
        check_features(X_val, "val")
        if X_val.shape[1] != X.shape[1]:
            raise HeadError(f"val rows have {X_val.shape[1]} features, train rows {X.shape[1]}: one trunk gives both")
        val_labels = check_labels(y_val, len(X_val), n_classes, "val")
        val = Split(StandardRows(X_val, scaling, target, resident=resident), torch.from_numpy(val_labels).to(target))
    row_weight = torch.from_numpy(weight).to(target, torch.float32)
    return Data(n_classes, X.shape[1], row_weight, train, val, target), s


def tell(on_epoch: OnEpoch | None, members: Sequence[int], k: int, epoch: Epoch) -> None:
    """Hand an epoch of a pass's config k on as that of config ``members[k]``."""
    if on_epoch is not None:
        on_epoch(members[k], epoch)


def _never() -> bool:
    return False


def passes(configs: Sequence[MinibatchConfig], data: Data, memory_budget_bytes: int) -> list[list[int]]:
    """The configs' numbers, gathered by what a pass must have in common, as many a pass as fit in the budget."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, c in enumerate(configs):
        groups.setdefault(shared(c), []).append(i)
    found = []
    for members in groups.values():
        c = configs[members[0]]
        units = [c.width] * c.depth if c.kind == "mlp" else []
        sizes = [data.dim, *units, data.n_classes]
        parameters = sum((a + 1) * b for a, b in itertools.pairwise(sizes))
        batch = min(c.batch_size, len(data.train.rows))
        at_most = memory_budget_bytes // (4 * (HEAD_COPIES * parameters + UNIT_COPIES * batch * sum(sizes[1:])))
        at_most = max(1, at_most)
        found += [members[i : i + at_most] for i in range(0, len(members), at_most)]
    return found


def on_raw_features(results: list[FitResult], s: Standardization) -> list[FitResult]:
    """The same heads for features that are not standardised (P5).

    A cosine head divides by the standardised row's length: it keeps the standardisation as ``mean`` and ``inv_scale``.
    """
    for result in results:
        tensors = result.tensors
        if result.config.kind == "cosine":
            tensors["mean"], tensors["inv_scale"] = s.mean.astype(np.float32), (1 / s.scale).astype(np.float32)
            continue
        first = "" if result.config.kind == "linear" else "0."
        tensors[f"{first}weight"], tensors[f"{first}bias"] = fold(tensors[f"{first}weight"], tensors[f"{first}bias"], s)
    return results
