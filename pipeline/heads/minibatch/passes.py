"""Heads that train together: batches, loss, updates, what is remembered of each head, and when one leaves.

Knows arrays only; what a head is lies in ``kinds``. A :class:`Pass` can be advanced epoch by epoch and cut down to
some of its heads, which is what early stopping, diverging heads and successive halving (``halving``) need.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.base.arithmetic import arithmetic
from pipeline.base.errors import HeadError
from pipeline.heads.choice import order
from pipeline.heads.kinds.batched import Parameters, decays
from pipeline.heads.kinds.kind import kind_of
from pipeline.heads.minibatch.batches import taken
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.noise import Mix, Noise
from pipeline.heads.minibatch.updates import AdamW, Sgd, Update
from pipeline.heads.rows import StandardRows
from pipeline.heads.staging import on_device, on_gpu
from pipeline.heads.standardize import Standardization

LOGITS_BYTES = 32 << 20  # of one product when a split is scored, on a processor
GPU_LOGITS_BYTES = 256 << 20

OnEpoch = Callable[[int, "Epoch"], None]
ShouldStop = Callable[[], bool]


@dataclass(frozen=True)
class Epoch:
    """One epoch of one head; loss and accuracy are measured on each batch before its update."""

    epoch: int  # from 1
    loss: float  # of the objective: label smoothing, mixup, dropout and weights counted
    accuracy: float  # of mixed rows, each label counts with its share
    val_loss: float | None  # plain mean cross-entropy
    val_accuracy: float | None
    lr: float  # at the epoch's first step

    def order(self, metric: str) -> tuple[float, float, float]:
        """What sorts epochs and heads, the best on val first; there are val rows."""
        assert self.val_accuracy is not None and self.val_loss is not None
        return order({"accuracy": self.val_accuracy, "log_loss": self.val_loss}, metric)


@dataclass(eq=False)
class FitResult:
    """A fitted head: the epoch that val chose (see ``pipeline.heads.choice``), without val the last one.

    ``tensors`` are those of its kind (see ``kinds``), for raw features.
    """

    config: MinibatchConfig  # with its learning rate
    tensors: dict[str, npt.NDArray[Any]]
    trace: list[Epoch]  # finite epochs only
    best_epoch: int  # 0: diverged or stopped in its first epoch, the tensors are as they began
    val_accuracy: float | None
    train_accuracy: float  # of the tensors given, over all train rows
    seconds: float  # of the whole pass, shared with the heads beside it
    diverged: bool  # the loss stopped being finite in epoch len(trace) + 1
    n_iter: int  # updates made

    @property
    def weight(self) -> npt.NDArray[np.float32]:
        """(C, D), of a linear head on raw features.

        Raises:
            HeadError: a head of another kind.
        """
        return self._layer[0]

    @property
    def bias(self) -> npt.NDArray[np.float32]:
        """(C,), of a linear head on raw features.

        Raises:
            HeadError: a head of another kind.
        """
        return self._layer[1]

    @property
    def _layer(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        layer = kind_of(self.config.kind).layer(self.tensors)
        if layer is None:
            raise HeadError(f"a head of kind {self.config.kind} has no single weight and bias: take its tensors")
        return layer


@dataclass(frozen=True, eq=False)
class Labelled:
    """Standardised rows with their labels (N,) int64 on the same device."""

    rows: StandardRows
    y: torch.Tensor


@dataclass(frozen=True, eq=False)
class Data:
    """What passes learn from; ``loss_weight`` (N,) multiplies the train rows' losses, its type is that of the heads."""

    n_classes: int
    dim: int
    loss_weight: torch.Tensor
    train: Labelled
    val: Labelled | None
    standardization: Standardization  # of the rows; heads are given for raw ones
    device: torch.device
    val_metric: str  # what val chooses the epoch by


@dataclass(frozen=True, eq=False)
class Labelling:
    """Labels of a batch: each (n,), or (K, n) where heads differ; with mixup there are two, which share the weight."""

    y: torch.Tensor  # int64
    weight: torch.Tensor
    share: torch.Tensor | float = 1.0  # (K, 1)


def softmax_loss(
    logits: torch.Tensor, labellings: Sequence[Labelling], smoothing: torch.Tensor, *, smooth: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed losses (K,) float64 of logits (K, C, n), and the gradient (K, C, n) of the mean over rows.

    With targets q = (1 - s) onehot(y) + s / C and a row's weight w, its loss is -w Σ q log p and the gradient in its
    logits w (p - q); s is ``smoothing`` (K,), and ``smooth`` whether any of it is above 0: asking a GPU takes time.
    """
    k, c, n = logits.shape
    s = smoothing.view(k, 1)
    log_p = torch.log_softmax(logits, dim=1)
    total = sum((one.share * one.weight for one in labellings[1:]), labellings[0].share * labellings[0].weight)
    loss = (total * (s * log_p.mean(dim=1))).sum(dim=1, dtype=torch.float64) if smooth else 0.0
    places = [one.y.expand(k, n).unsqueeze(1) for one in labellings]
    for one, place in zip(labellings, places, strict=True):
        at_label = log_p.gather(1, place).squeeze(1)
        loss = loss + (one.share * one.weight * ((1 - s) * at_label)).sum(dim=1, dtype=torch.float64)
    gradient = log_p.exp_()
    if smooth:
        gradient.sub_((s / c).unsqueeze(2))
    gradient.mul_((total / n).expand(k, n).unsqueeze(1))
    for one, place in zip(labellings, places, strict=True):
        gradient.scatter_add_(1, place, (one.share * one.weight * ((s - 1) / n)).expand(k, n).unsqueeze(1))
    return -torch.as_tensor(loss), gradient


def _hits(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Which rows of (K, C, n) have their highest logit at the label, (K, n); equal ones go to the lowest class."""
    return logits.max(dim=1).indices == y  # argmax over a middle axis took 15 times as long


@dataclass(eq=False)
class _Record:
    """What is remembered of one head, also after it has left the pass."""

    tensors: Parameters  # of the best epoch
    trace: list[Epoch]
    best: Epoch | None = None
    diverged: bool = False
    n_iter: int = 0

    def improved(self, epoch: Epoch, metric: str) -> bool:
        """Whether the epoch is better than the best before it; without val the later one is."""
        if self.best is None or epoch.val_loss is None:
            return True
        return epoch.order(metric) < self.best.order(metric)


class Pass:
    """Heads that advance together; ``alive[j]`` is the config of the j-th head still in the arrays.

    Their configs agree in what :func:`shared` gives, and have learning rates.
    """

    def __init__(self, data: Data, configs: Sequence[MinibatchConfig]) -> None:
        """The heads as they begin."""
        self.configs, self.alive = configs, list(range(len(configs)))
        self._data = data
        self._kind = kind_of(configs[0].kind)
        self._heads = self._kind.heads(configs, data.dim, data.n_classes, data.device)
        self._heads.parameters = {n: p.to(data.loss_weight.dtype) for n, p in self._heads.parameters.items()}
        self._noise = Noise(configs, data.device, data.loss_weight.dtype)
        self._lr, self._decay, self._smoothing = (
            self._settings(name, data.loss_weight.dtype) for name in ("lr", "weight_decay", "label_smoothing")
        )
        self._no_decay = torch.zeros_like(self._decay)
        self._updates = {name: self._update(p) for name, p in self._heads.parameters.items()}
        self._records = [
            _Record({name: p[k].clone() for name, p in self._heads.parameters.items()}, []) for k in range(len(configs))
        ]
        self._batches = math.ceil(len(data.train.rows) / configs[0].batch_size)
        self._epoch, self._steps, self._seconds = 0, 0, 0.0

    def _update(self, parameter: torch.Tensor) -> Update:
        if self.configs[0].solver == "adamw":
            return AdamW(parameter)
        return Sgd(parameter, self._settings("momentum", torch.float32))

    def _settings(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A setting of each config (K,)."""
        return on_device(torch.tensor([getattr(c, name) for c in self.configs], dtype=dtype), self._data.device)

    @arithmetic()
    def advance(self, until: int, on_epoch: OnEpoch, should_stop: ShouldStop) -> None:
        """Train on to the end of epoch ``until``, or of the one in work when a stop is asked for.

        ``on_epoch(k, epoch)`` hears config k.
        """
        began, first = time.perf_counter(), self.configs[0]
        while self._epoch < until and self.alive and not should_stop():
            self._epoch += 1
            loss = torch.zeros(len(self.alive), dtype=torch.float64, device=self._data.device)
            hits = torch.zeros_like(loss)
            n, factor = len(self._data.train.rows), self._factor()
            batches = taken(self._data.train.rows, batch_size=first.batch_size, seed=first.order, epoch=self._epoch)
            for at, x in batches:
                self._step(at, x, loss, hits)
            self._close(factor, loss / n, hits / n, on_epoch)
        self._seconds += time.perf_counter() - began

    def standing(self, k: int) -> tuple[float, float, float]:
        """What config k's best epoch on val sorts by, the best first."""
        best = self._records[k].best
        assert best is not None
        return best.order(self._data.val_metric)

    def keep(self, chosen: Collection[int]) -> None:
        """Go on with these configs only, as far as they are alive; the others keep what they have reached."""
        self._keep([j for j, k in enumerate(self.alive) if k in chosen])

    def _factor(self) -> float:
        if self.configs[0].schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * self._steps / (self._batches * self.configs[0].epochs)))

    def _step(self, at: torch.Tensor, x: torch.Tensor, loss: torch.Tensor, hits: torch.Tensor) -> None:
        """One batch, of the rows x whose numbers are ``at``: add its summed losses and hits, then update.

        Nothing here waits for a GPU: what it is asked in an epoch it is asked as fast as Python can.
        """
        data = self._data
        mix = self._noise.mix(len(at))
        logits = self._heads.forward(x, mix, self._noise)
        labellings = _labellings(data.train.y[at], data.loss_weight[at], mix)
        for one in labellings:
            hits += (one.share * _hits(logits, one.y)).sum(dim=1)
        smooth = any(self.configs[k].label_smoothing for k in self.alive)
        lost, gradient = softmax_loss(logits, labellings, self._smoothing, smooth=smooth)
        loss += lost
        lr = self._lr * self._factor()
        for name, found in self._heads.backward(gradient).items():
            decay = self._decay if decays(name) else self._no_decay
            self._updates[name].step(self._heads.parameters[name], found, lr, decay)
        self._steps += 1

    def _close(self, factor: float, loss: torch.Tensor, accuracy: torch.Tensor, tell: OnEpoch) -> None:
        """Score the epoch on val, remember the better heads, drop those that diverged or have waited long enough."""
        parameters = self._heads.parameters
        finite = torch.isfinite(loss)
        for p in parameters.values():
            finite &= torch.isfinite(p.flatten(1).sum(dim=1))
        val = self._score(self._data.val) if self._data.val is not None else None
        if val is not None:
            finite &= torch.isfinite(val[0])
        # All of it at once: each number asked of a GPU alone would wait for it anew.
        figures = torch.stack([finite.double(), loss, accuracy, *(val or ())], dim=1).tolist()
        stay = []
        for j, k in enumerate(self.alive):
            record, config = self._records[k], self.configs[k]
            record.n_iter = self._steps
            is_finite, lost, right, *of_val = figures[j]
            if not is_finite:
                record.diverged = True
                continue
            val_loss, val_accuracy = of_val or (None, None)
            assert config.lr is not None
            epoch = Epoch(self._epoch, lost, right, val_loss, val_accuracy, config.lr * factor)
            record.trace.append(epoch)
            if record.improved(epoch, self._data.val_metric):
                record.best = epoch
                record.tensors = {name: p[j].clone() for name, p in parameters.items()}
            tell(k, epoch)
            assert record.best is not None
            if config.patience is None or self._epoch - record.best.epoch < config.patience:
                stay.append(j)
        self._keep(stay)

    def _keep(self, stay: list[int]) -> None:
        if len(stay) == len(self.alive):
            return
        places = on_device(torch.tensor(stay, dtype=torch.int64), self._data.device)
        self.alive = [self.alive[j] for j in stay]
        for name in ("_lr", "_decay", "_no_decay", "_smoothing"):
            setattr(self, name, getattr(self, name)[places])
        self._heads.parameters = {name: p[places] for name, p in self._heads.parameters.items()}
        for update in self._updates.values():
            update.keep(places)
        self._noise.keep(stay)

    def _score(self, split: Labelled) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean cross-entropy (K,) float64 and accuracy (K,) of the heads over all rows of a split."""
        first = next(iter(self._heads.parameters.values()))
        loss = torch.zeros(len(first), dtype=torch.float64, device=self._data.device)
        hits = torch.zeros_like(loss)
        widest = max(p.shape[1] for p in self._heads.parameters.values())
        logits_bytes = GPU_LOGITS_BYTES if on_gpu(self._data.device) else LOGITS_BYTES
        at_once = max(1, logits_bytes // (4 * len(first) * max(widest, self._data.n_classes)))
        for start, piece in split.rows.chunks():
            labels = split.y[start : start + len(piece)]
            for x, y in zip(torch.split(piece, at_once), torch.split(labels, at_once), strict=True):
                logits = self._heads.forward(x)
                hits += _hits(logits, y).sum(dim=1)
                at_label = torch.log_softmax(logits, dim=1).gather(1, y.expand(len(first), 1, len(y)))
                loss -= at_label.sum(dim=(1, 2), dtype=torch.float64)
        return loss / len(split.rows), hits / len(split.rows)

    @arithmetic()
    def results(self) -> list[FitResult]:
        """What each config has reached, its tensors for raw rows; the pass ends with this."""
        began, records = time.perf_counter(), self._records
        self._heads.parameters = {name: torch.stack([r.tensors[name] for r in records]) for name in records[0].tensors}
        accuracy = self._score(self._data.train)[1].tolist()
        arrays = {name: stacked.cpu().numpy() for name, stacked in self._heads.parameters.items()}
        seconds = self._seconds + time.perf_counter() - began
        return [
            FitResult(
                config=config,
                tensors=self._kind.folded(
                    {name: stacked[k].copy() for name, stacked in arrays.items()}, self._data.standardization
                ),
                trace=record.trace,
                best_epoch=record.best.epoch if record.best is not None else 0,
                val_accuracy=record.best.val_accuracy if record.best is not None else None,
                train_accuracy=accuracy[k],
                seconds=seconds,
                diverged=record.diverged,
                n_iter=record.n_iter,
            )
            for k, (config, record) in enumerate(zip(self.configs, records, strict=True))
        ]


def shared(config: MinibatchConfig) -> tuple[object, ...]:
    """What heads of one pass have in common."""
    c = config
    return (c.kind, kind_of(c.kind).hidden(c), c.epochs, c.batch_size, c.solver, c.schedule, c.order)


def _labellings(y: torch.Tensor, weight: torch.Tensor, mix: Mix | None) -> list[Labelling]:
    if mix is None:
        return [Labelling(y, weight)]
    return [
        Labelling(y, weight, mix.share),
        Labelling(y[mix.partner], weight[mix.partner], 1 - mix.share),
    ]
