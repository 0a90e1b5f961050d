"""Linear heads by minibatch AdamW or SGD, many configurations in one pass over the rows.

Knows arrays only. All heads of a pass see the same batches, so their weights (K, C, D) are one tall matrix (K*C, D):
one wide product gives all logits and one gives all gradients, where K narrow ones would leave the cores waiting. The
gradient of the softmax cross-entropy is written by hand; the updates are torch's AdamW and SGD with a learning rate
and weight decay of each head's own. Weights are decayed, biases are not. Heads start at zero: the problem is convex,
so there is nothing for a random start to break.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import ConfigError, HeadError
from pipeline.heads.config import MinibatchConfig
from pipeline.heads.rows import (
    Array,
    ClassWeight,
    StandardRows,
    check_classes,
    check_features,
    check_labels,
    class_weights,
)
from pipeline.heads.standardize import fit_standardization, fold
from pipeline.heads.updates import AdamW, Sgd, Update

MEMORY_BUDGET_BYTES = 1 << 30
HEAD_COPIES = 6  # a head's weights, its two moments, gradient, best epoch and their stacking
LOGITS_BYTES = 32 << 20  # of one product when a split is scored

OnEpoch = Callable[[int, "Epoch"], None]


@dataclass(frozen=True)
class Epoch:
    """One epoch of one head; loss and accuracy are measured on each batch before its update."""

    epoch: int  # from 1
    loss: float  # of the objective: label smoothing and class weights counted
    accuracy: float
    val_loss: float | None  # plain mean cross-entropy
    val_accuracy: float | None
    lr: float  # at the epoch's first step


@dataclass(eq=False)
class FitResult:
    """A fitted head: the epoch with the best val accuracy (then the lowest val loss), without val the last one."""

    config: MinibatchConfig
    weight: npt.NDArray[np.float32]  # (C, D), on raw features
    bias: npt.NDArray[np.float32]  # (C,)
    trace: list[Epoch]  # finite epochs only
    best_epoch: int  # 0: diverged in its first epoch, the weights are zero
    val_accuracy: float | None
    train_accuracy: float  # of the weights given, over all train rows
    seconds: float  # of the whole pass, shared with the heads beside it
    diverged: bool  # the loss stopped being finite in epoch len(trace) + 1
    n_iter: int  # updates made


def epoch_batches(n: int, *, batch_size: int, seed: int, epoch: int) -> list[npt.NDArray[np.int64]]:
    """Row numbers of an epoch's batches: a shuffle by (seed, epoch) cut evenly, none above batch_size, each sorted.

    Even cutting leaves no batch of a few rows at the end, whose noisy gradient would count like a full one.
    """
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return [np.sort(part) for part in np.array_split(order, math.ceil(n / batch_size))]


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
    class_names: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
    on_epoch: OnEpoch | None = None,
) -> list[FitResult]:
    """One fitted linear head for each config, in the configs' order; the same input gives the same bits.

    X: (N, D) float, may be a memory map; y: (N,) class numbers. Val rows, where given, choose the epoch that is kept.
    Rows are held as standardised float32 where they fit in ``memory_budget_bytes``, otherwise each batch is read anew;
    configs that agree in epochs, batch size, solver, schedule and seed advance in one pass, as many as fit in it again,
    other passes follow. A head whose loss stops being finite is dropped alone and says so. ``on_epoch(i, epoch)``
    hears config i.

    Raises:
        HeadError: features or labels that cannot be learned from.
        ConfigError: no configs, half a val set, or a device that is not there.
    """
    target = _device(device)
    if not configs:
        raise ConfigError("no configurations: at least one is needed")
    if (X_val is None) != (y_val is None):
        raise ConfigError("val features and val labels go together: give both or neither")
    check_features(X, "train")
    labels = check_labels(y, len(X), n_classes, "train")
    check_classes(labels, n_classes, class_names)
    s = fit_standardization(X) if standardize else None
    held = StandardRows.held_bytes(X)
    train = StandardRows(X, s, target, resident=held <= memory_budget_bytes)
    weights = torch.from_numpy(class_weights(labels, n_classes, class_weight)).to(target, torch.float32)
    data = _Data(n_classes, weights, _Split(train, torch.from_numpy(labels).to(target)), None)
    if X_val is not None and y_val is not None:
        check_features(X_val, "val")
        if X_val.shape[1] != X.shape[1]:
            raise HeadError(f"val rows have {X_val.shape[1]} features, train rows {X.shape[1]}: one trunk gives both")
        val_labels = check_labels(y_val, len(X_val), n_classes, "val")
        fits = held + StandardRows.held_bytes(X_val) <= memory_budget_bytes
        val = StandardRows(X_val, s, target, resident=fits)
        data = replace(data, val=_Split(val, torch.from_numpy(val_labels).to(target)))

    results: dict[int, FitResult] = {}
    heads_at_once = max(1, memory_budget_bytes // (HEAD_COPIES * 4 * n_classes * X.shape[1]))
    for members in _groups(configs, heads_at_once):
        group = _Pass(data, [configs[i] for i in members], X.shape[1], target)
        tell = functools.partial(_tell, on_epoch, members)
        for i, result in zip(members, group.fit(tell), strict=True):
            if s is not None:
                result.weight, result.bias = fold(result.weight, result.bias, s)
            results[i] = result
    return [results[i] for i in range(len(configs))]


def _device(device: str | torch.device) -> torch.device:
    target = torch.device(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {str(device)!r} is not there: choose cpu")
    return target


def _tell(on_epoch: OnEpoch | None, members: Sequence[int], k: int, epoch: Epoch) -> None:
    if on_epoch is not None:
        on_epoch(members[k], epoch)


def _groups(configs: Sequence[MinibatchConfig], at_most: int) -> list[list[int]]:
    """The configs' numbers, gathered by what a pass must have in common, ``at_most`` a pass."""
    groups: dict[tuple[int, int, str, str, int], list[int]] = {}
    for i, c in enumerate(configs):
        groups.setdefault((c.epochs, c.batch_size, c.solver, c.schedule, c.seed), []).append(i)
    return [g[i : i + at_most] for g in groups.values() for i in range(0, len(g), at_most)]


@dataclass(frozen=True, eq=False)
class _Split:
    rows: StandardRows
    y: torch.Tensor  # (N,) int64


@dataclass(frozen=True, eq=False)
class _Data:
    n_classes: int
    class_weight: torch.Tensor  # (C,) float32
    train: _Split
    val: _Split | None


@dataclass(eq=False)
class _Record:
    """What is remembered of one head, also after it has left the pass."""

    weight: torch.Tensor  # (C, D) of the best epoch
    bias: torch.Tensor  # (C,)
    trace: list[Epoch]
    best: Epoch | None = None
    diverged: bool = False
    n_iter: int = 0

    def improved(self, epoch: Epoch) -> bool:
        """Whether the epoch is better than the best before it; without val the later one is."""
        if self.best is None or epoch.val_accuracy is None or self.best.val_accuracy is None:
            return True
        assert epoch.val_loss is not None and self.best.val_loss is not None
        return (epoch.val_accuracy, -epoch.val_loss) > (self.best.val_accuracy, -self.best.val_loss)


def _hits(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Rows of (K, C, n) whose highest logit is the label's, (K,); equal logits go to the class of the lowest number."""
    return (logits.max(dim=1).indices == y).sum(dim=1)  # argmax over a middle axis took 15 times as long


class _Pass:
    """Heads that advance together; ``alive[j]`` is the config of the j-th head still in the arrays."""

    def __init__(self, data: _Data, configs: Sequence[MinibatchConfig], dim: int, device: torch.device) -> None:
        self.data, self.configs, self.device = data, configs, device
        k, c = len(configs), data.n_classes
        self.alive = list(range(k))
        self.weight = torch.zeros(k, c, dim, device=device)
        self.bias = torch.zeros(k, c, device=device)
        self.lr, self.decay, self.smoothing = (
            torch.tensor([getattr(config, name) for config in configs], device=device, dtype=torch.float32)
            for name in ("lr", "weight_decay", "label_smoothing")
        )
        self.weight_update = self._update(self.weight)
        self.bias_update = self._update(self.bias)
        self.records = [_Record(torch.zeros(c, dim), torch.zeros(c), []) for _ in configs]
        self.steps = 0

    def _update(self, parameter: torch.Tensor) -> Update:
        if self.configs[0].solver == "adamw":
            return AdamW(parameter)
        return Sgd(parameter, torch.tensor([c.momentum for c in self.configs], device=self.device))

    def fit(self, on_epoch: OnEpoch) -> list[FitResult]:
        """Run all epochs; ``on_epoch(k, epoch)`` hears the group's config k."""
        start = time.perf_counter()
        shared, n = self.configs[0], len(self.data.train.rows)
        total = shared.epochs * math.ceil(n / shared.batch_size)
        for epoch in range(1, shared.epochs + 1):
            loss = torch.zeros(len(self.alive), dtype=torch.float64, device=self.device)
            hits = torch.zeros(len(self.alive), dtype=torch.int64, device=self.device)
            factor = self._factor(total)
            for index in epoch_batches(n, batch_size=shared.batch_size, seed=shared.seed, epoch=epoch):
                self._step(index, self.lr * self._factor(total), loss, hits)
            self._close(epoch, factor, loss / n, hits / n, on_epoch)
            if not self.alive:
                break
        return self._results(start)

    def _factor(self, total: int) -> float:
        if self.configs[0].schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * self.steps / total))

    def _logits(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """(K, C, n): one product for all heads; the rows last, so that softmax runs along memory."""
        k, c, d = weight.shape
        return torch.addmm(bias.view(-1, 1), weight.view(k * c, d), x.T).view(k, c, len(x))

    def _step(self, index: npt.NDArray[np.int64], lr: torch.Tensor, loss: torch.Tensor, hits: torch.Tensor) -> None:
        """One batch: add its summed losses and hits, then update.

        With targets q = (1 - s) onehot(y) + s / C and class weights w, the loss of a row is -w Σ q log p and its
        gradient in the logits w (p - q); the batch's gradient is the mean over its rows.
        """
        x, y = self.data.train.rows.take(index), self.data.train.y[torch.from_numpy(index).to(self.device)]
        n, k, c = len(x), len(self.alive), self.data.n_classes
        logits = self._logits(x, self.weight, self.bias)
        hits += _hits(logits, y)
        log_p = torch.log_softmax(logits, dim=1)
        places = y.expand(k, 1, n)
        at_label = log_p.gather(1, places).squeeze(1)
        w = self.data.class_weight[y]
        s = self.smoothing.view(k, 1)
        loss -= (w * ((1 - s) * at_label + s * log_p.mean(dim=1))).sum(dim=1, dtype=torch.float64)
        gradient = log_p.exp_()
        gradient.sub_((s / c).view(k, 1, 1))
        gradient.scatter_add_(1, places, (s - 1).view(k, 1, 1).expand(k, 1, n))
        gradient.mul_(w / n)
        self.weight_update.step(self.weight, (gradient.view(k * c, n) @ x).view_as(self.weight), lr, self.decay)
        self.bias_update.step(self.bias, gradient.sum(dim=2), lr, torch.zeros_like(self.decay))
        self.steps += 1

    def _close(self, number: int, factor: float, loss: torch.Tensor, accuracy: torch.Tensor, tell: OnEpoch) -> None:
        """Score the epoch on val, remember the better heads, drop those that diverged or have waited long enough."""
        finite = (
            torch.isfinite(loss) & torch.isfinite(self.weight.sum(dim=(1, 2))) & torch.isfinite(self.bias.sum(dim=1))
        )
        val = self._score(self.data.val, self.weight, self.bias) if self.data.val is not None else None
        if val is not None:
            finite &= torch.isfinite(val[0])
        stay = []
        for j, k in enumerate(self.alive):
            record = self.records[k]
            record.n_iter = self.steps
            if not finite[j]:
                record.diverged = True
                continue
            val_loss, val_accuracy = (float(val[0][j]), float(val[1][j])) if val is not None else (None, None)
            epoch = Epoch(
                number, float(loss[j]), float(accuracy[j]), val_loss, val_accuracy, self.configs[k].lr * factor
            )
            record.trace.append(epoch)
            if record.improved(epoch):
                record.best = epoch
                record.weight, record.bias = self.weight[j].clone(), self.bias[j].clone()
            tell(k, epoch)
            patience = self.configs[k].patience
            if patience is None or record.best is None or number - record.best.epoch < patience:
                stay.append(j)
        if len(stay) < len(self.alive):
            self._keep(stay)

    def _keep(self, stay: list[int]) -> None:
        places = torch.tensor(stay, dtype=torch.int64, device=self.device)
        self.alive = [self.alive[j] for j in stay]
        for name in ("weight", "bias", "lr", "decay", "smoothing"):
            setattr(self, name, getattr(self, name)[places])
        self.weight_update.keep(places)
        self.bias_update.keep(places)

    def _score(self, split: _Split, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean cross-entropy (K,) float64 and accuracy (K,) of heads (K, C, D) over all rows of a split."""
        loss = torch.zeros(len(weight), dtype=torch.float64, device=self.device)
        hits = torch.zeros(len(weight), dtype=torch.int64, device=self.device)
        at_once = max(1, LOGITS_BYTES // (4 * bias.numel()))
        for start, piece in split.rows.chunks():
            labels = split.y[start : start + len(piece)]
            for x, y in zip(torch.split(piece, at_once), torch.split(labels, at_once), strict=True):
                logits = self._logits(x, weight, bias)
                hits += _hits(logits, y)
                at_label = torch.log_softmax(logits, dim=1).gather(1, y.expand(len(weight), 1, len(y)))
                loss -= at_label.sum(dim=(1, 2), dtype=torch.float64)
        return loss / len(split.rows), hits / len(split.rows)

    def _results(self, start: float) -> list[FitResult]:
        weight = torch.stack([r.weight.to(self.device) for r in self.records])
        bias = torch.stack([r.bias.to(self.device) for r in self.records])
        _, accuracy = self._score(self.data.train, weight, bias)
        seconds = time.perf_counter() - start
        return [
            FitResult(
                config=config,
                weight=weight[k].cpu().numpy(),
                bias=bias[k].cpu().numpy(),
                trace=record.trace,
                best_epoch=record.best.epoch if record.best is not None else 0,
                val_accuracy=record.best.val_accuracy if record.best is not None else None,
                train_accuracy=float(accuracy[k]),
                seconds=seconds,
                diverged=record.diverged,
                n_iter=record.n_iter,
            )
            for k, (config, record) in enumerate(zip(self.configs, self.records, strict=True))
        ]
