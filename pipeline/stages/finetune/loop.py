"""The loop of stage three: batches in, the best weights on val out, from any moment at which it was interrupted.

Nothing here draws from a global random state: the order of an epoch, flips, crops and mixing come from the seed, the
epoch and the row. A global batch is cut into shares for the processes and those into pieces for memory, the loss of
each weighed by its rows: every image counts once in an epoch, whatever the number of processes or pieces (E5).
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.base.errors import ConfigError, Interrupted
from pipeline.base.interrupt import StopRequest
from pipeline.base.ranks import Ranks
from pipeline.base.watch import TraceRow
from pipeline.base.workspace import Workspace
from pipeline.heads.scores.metrics import log_softmax
from pipeline.show.trace import observe
from pipeline.stages.finetune.checkpoint import Checkpoint
from pipeline.stages.finetune.feeds import ORDER, Inputs, chunks, draw, mixed, share
from pipeline.stages.finetune.groups import batch_norms, learnt_tensors, parameter_groups
from pipeline.stages.finetune.settings import FinetuneSettings
from pipeline.stages.finetune.start import Attached
from pipeline.trunk.engines.base import is_out_of_memory

EVAL_BATCH = 64
Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass
class Progress:
    """How far a training is, as plain JSON values; ``hits`` and ``loss_sum`` are of the epoch in work so far.

    ``best`` is the best epoch on val: ``{"epoch": ..., "val": ..., "loss": ...}``.
    """

    epoch: int = 1
    done: int = 0  # steps of the epoch in work
    step: int = 0  # steps in all
    loss_sum: float = 0.0
    hits: float = 0.0
    seen: float = 0.0
    seconds: float = 0.0
    ended: bool = False
    best: dict[str, float] | None = None
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class Tuning:
    """One fine-tuning: what learns, its optimiser, how far it is.

    Attributes:
        groups: the parameter groups; everything else is frozen.
        learnt: what training may change, by name: live views of the network.
        start: the same as it was before the first step.
        best: the same as it scored best on val after an epoch (averaged, with ``--ema``); None before the first.
        progress: how far it is.
    """

    def __init__(
        self, attached: Attached, inputs: Inputs, settings: FinetuneSettings, ranks: Ranks, desk: Workspace
    ) -> None:
        self.attached, self.inputs, self.settings, self.ranks, self.desk = attached, inputs, settings, ranks, desk
        if settings.bn == "train":
            check_pieces(len(attached.train), settings.batch_size, settings.accumulate)
        network = attached.network.to(memory_format=torch.channels_last)
        self.groups = parameter_groups(network, settings)
        self.parameters = [p for group in self.groups for p in group.parameters]
        self.learnt = learnt_tensors(network, settings)
        self.start = {name: tensor.clone() for name, tensor in self.learnt.items()}
        self.average = {n: t.clone() for n, t in self.learnt.items()} if settings.ema is not None else None
        self.best: Tensors | None = None
        self.norms = [m for _, m in batch_norms(network, settings.train)] if settings.bn == "train" else []
        self.optimizer = make_optimizer(self.groups, settings)
        self.progress = Progress()
        self.steps_per_epoch = math.ceil(len(attached.train) / settings.batch_size)
        self.warm_steps = warm_steps(settings.warmup, self.total_steps)
        self._module = self._distributed(inputs.module)

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.settings.epochs * self.steps_per_epoch

    def begin_here(self) -> None:
        """Take the network as it is now for the start."""
        for kept in (self.start, self.average or {}):
            for name, tensor in kept.items():
                tensor.copy_(self.learnt[name])

    def _distributed(self, module: nn.Module) -> nn.Module:
        if self.ranks.world == 1:
            return module

        # Statistics of BatchNorm are frozen here, so there are no buffers to keep the same.
        new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # torch 2.13
        options: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
        return DistributedDataParallel(module, **options)

    # -- scoring ------------------------------------------------------------------------------------------------------

    def logits(self, rows: NDArray[np.int64], what: str, inputs: Inputs | None = None) -> NDArray[np.float32]:
        """Logits (n, C) float32 of cache rows by the network as it is, in eval mode; each process does its share."""
        inputs = inputs or self.inputs
        found = np.zeros((len(rows), len(self.attached.cache.classes)), np.float32)
        places = np.arange(len(rows))[self.ranks.rank :: self.ranks.world]
        at = 0
        with self._evaluating(), torch.inference_mode(), self.desk.watch.track(what, len(places)) as tracker:
            for part, x in inputs.batches(chunks(rows[places].tolist(), EVAL_BATCH), None):
                found[places[at : at + len(part)]] = inputs.module(x).float().cpu().numpy()
                at += len(part)
                tracker.advance(len(part))
        return self.ranks.added(found).astype(np.float32)

    def scores(self, rows: NDArray[np.int64], logits: NDArray[np.float32]) -> tuple[float, float]:
        """Mean cross-entropy and accuracy of logits (n, C) of cache rows (n,)."""
        y = self.attached.cache.labels[rows]
        loss = -float(log_softmax(logits)[np.arange(len(y)), y].mean())
        return loss, float((logits.argmax(axis=1) == y).mean())

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        for module in self.norms:
            module.training = False
        try:
            yield
        finally:
            for module in self.norms:
                module.training = True

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Make ``tensors`` (by name) what the network is, in place."""
        for name, tensor in self.learnt.items():
            tensor.copy_(tensors[name])

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The network as its average over the steps, where there is one; afterwards as it was, to the last bit."""
        if self.average is None:
            yield
            return
        now = {name: tensor.clone() for name, tensor in self.learnt.items()}
        self.load(self.average)
        try:
            yield
        finally:
            self.load(now)

    # -- training -----------------------------------------------------------------------------------------------------

    def train(self, checkpoint: Checkpoint | None, stop: StopRequest) -> None:
        """Train from where ``progress`` stands to the end; each process with the same result.

        Raises:
            Interrupted: a stop was asked for; the state is kept.
            DataError: an image is gone or has changed.
        """
        for module in self.norms:
            module.training = True
        # cuDNN chooses among algorithms, some of which add in another order each time.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            self._train(checkpoint, stop)
        for module in self.norms:
            module.training = False
        self.desk.watch.end_trace()

    def _train(self, checkpoint: Checkpoint | None, stop: StopRequest) -> None:
        while not self.progress.ended:
            began = time.perf_counter()
            finite = self.epoch(checkpoint, stop)
            if finite:
                self._end_epoch()
                fresh = self.progress.best is not None and self.progress.best["epoch"] == self.progress.epoch - 1
            else:
                fresh = False
                self.desk.watch.warn(
                    f"epoch {self.progress.epoch}: the loss is not finite: stopped; lower the learning rates"
                )
                self.progress.ended = True
            self.progress.seconds += time.perf_counter() - began
            self._write(checkpoint, best=fresh)

    def epoch(self, checkpoint: Checkpoint | None, stop: StopRequest) -> bool:
        """The rest of the epoch in work; whether its losses were finite."""
        p, s = self.progress, self.settings
        order = draw(ORDER, s.seed, p.epoch).permutation(self.attached.train).tolist()
        steps = [self._pieces(batch) for batch in chunks(order, s.batch_size)[p.done :]]
        batches = self.inputs.batches([rows for pieces in steps for rows, _ in pieces], p.epoch)
        written = began = time.perf_counter()
        with self.desk.watch.track(f"epoch {p.epoch}", len(order), done=p.done * s.batch_size) as tracker:
            for pieces in steps:
                loss, hits, seen, asked = self.ranks.added(
                    np.array([*self._step(pieces, batches), float(stop.signal != 0)])
                ).tolist()
                p.loss_sum, p.hits, p.seen = p.loss_sum + loss, p.hits + hits, p.seen + seen
                p.done, p.step = p.done + 1, p.step + 1
                tracker.advance(int(seen))
                if not math.isfinite(loss):
                    return False
                due = time.perf_counter() - written >= s.checkpoint_seconds
                if asked or (due and p.done < self.steps_per_epoch):
                    seconds = p.seconds
                    p.seconds += time.perf_counter() - began
                    self._write(checkpoint, best=False)
                    if asked:
                        raise Interrupted(
                            f"stopped in epoch {p.epoch} after {p.done} of {self.steps_per_epoch} steps; its state is "
                            "kept: the same command goes on from there",
                            signal=stop.signal or 15,
                        )
                    p.seconds, written = seconds, time.perf_counter()
        return True

    def _pieces(self, batch: Sequence[int]) -> list[tuple[list[int], float]]:
        """This process's part of a batch in pieces: rows, and the weight of each one's loss."""
        mine = share(batch, self.ranks.rank, self.ranks.world)
        pieces = [share(mine, i, self.settings.accumulate) for i in range(self.settings.accumulate)]
        weight = self.ranks.world / len(batch)  # DistributedDataParallel takes the mean over processes
        # With nothing to do this process still takes part in the exchange of gradients: one row, without weight.
        return [(piece, weight) for piece in pieces if piece] or [(list(batch[:1]), 0.0)]

    def _step(
        self, pieces: Sequence[tuple[list[int], float]], batches: Iterator[tuple[list[int], torch.Tensor]]
    ) -> tuple[float, float, float]:
        """One step of the optimiser; summed loss, right answers and rows of this process's share."""
        s, loss_sum, hits, seen = self.settings, 0.0, 0.0, 0.0
        factor = schedule(self.progress.step, self.warm_steps, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.zero_grad(set_to_none=True)
        for number, (_, weight) in enumerate(pieces, start=1):
            rows, x = next(batches)
            last = number == len(pieces)
            with nullcontext() if last or self.ranks.world == 1 else self._module.no_sync():  # type: ignore[operator]
                losses, right = self._computed(rows, x, weight)
            if weight:
                loss_sum += float(losses.sum())
                hits += right
                seen += len(rows)
        if s.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, s.clip)
        self.optimizer.step()
        if self.average is not None and s.ema is not None:
            for name, tensor in self.learnt.items():
                if tensor.is_floating_point():
                    self.average[name].lerp_(tensor, 1 - s.ema)
                else:
                    self.average[name].copy_(tensor)
        return loss_sum, hits, seen

    def _computed(self, rows: list[int], x: torch.Tensor, weight: float) -> tuple[torch.Tensor, float]:
        """Forward and backward of a piece; each row's loss (n,), and how many were right.

        Raises:
            ConfigError: out of memory.
        """
        try:
            losses, right = self._losses(rows, x)
            (losses.sum() * weight).backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            s = self.settings
            raise ConfigError(
                f"out of memory in a step of {s.batch_size} images: give --accumulate {2 * s.accumulate} (the step in "
                "so many pieces: the same figures), or a smaller --batch-size"
            ) from error
        return losses.detach(), right

    def _losses(self, rows: list[int], x: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Each row's loss (n,), and how many were right (by a mixed row's larger part)."""
        s, device = self.settings, self.attached.device
        y = torch.from_numpy(self.attached.cache.labels[rows]).to(device)
        partner, own = None, None
        if s.mixup:
            x, partner, own = mixed(x, rows, alpha=s.mixup, seed=s.seed, epoch=self.progress.epoch)
        with torch.autocast(device, torch.bfloat16, enabled=s.precision == "bfloat16"):
            logits = self._module(x)
        logits = logits.float()

        def against(labels: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(
                logits, labels, reduction="none", label_smoothing=s.label_smoothing
            )

        losses = against(y) if own is None else own * against(y) + (1 - own) * against(y[partner])
        return losses, float((logits.detach().argmax(dim=1) == y).sum())

    def _end_epoch(self) -> None:
        """Score the epoch on val, keep it where it is the best so far, and go to the next."""
        p = self.progress
        with self._averaged():
            val_loss, val = self.scores(self.attached.val, self.logits(self.attached.val, "val"))
            if p.best is None or (val, -val_loss) > (p.best["val"], -p.best["loss"]):
                p.best = {"epoch": p.epoch, "val": val, "loss": val_loss}
                self.best = {name: tensor.clone() for name, tensor in self.learnt.items()}
        self.tell(p.epoch, p.loss_sum / p.seen, p.hits / p.seen, val, val_loss)
        p.epoch, p.done, p.loss_sum, p.hits, p.seen = p.epoch + 1, 0, 0.0, 0.0, 0.0
        p.ended = p.epoch > self.settings.epochs

    def tell(self, epoch: int, loss: float, accuracy: float, val: float, val_loss: float) -> None:
        """Add a row to the trace and show it."""
        row = TraceRow(epoch=epoch, loss=loss, accuracy=accuracy, val_accuracy=val, val_loss=val_loss)
        before = [TraceRow(**r) for r in self.progress.rows]
        row = dataclasses.replace(row, observation=observe([*before, row], len(self.attached.cache.classes)))
        self.progress.rows.append(dataclasses.asdict(row))
        self.desk.watch.trace(row)

    # -- state --------------------------------------------------------------------------------------------------------

    def _write(self, checkpoint: Checkpoint | None, *, best: bool) -> None:
        if checkpoint is not None and self.ranks.first:
            checkpoint.write(dataclasses.asdict(self.progress), self.state(), self.best if best else None)

    def state(self) -> Tensors:
        """Everything that decides the next step, by name: what learns, its average, the optimiser's memory."""
        tensors = {f"now/{name}": tensor for name, tensor in self.learnt.items()}
        tensors |= {f"average/{name}": tensor for name, tensor in (self.average or {}).items()}
        for name, parameter in self._named():
            for what, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer/{what}/{name}"] = value
        return tensors

    def resume(self, checkpoint: Checkpoint) -> bool:
        """Go to the state that is kept, if one is; whether there was one.

        Raises:
            HeadError: it is damaged.
        """
        found = checkpoint.read()
        if found is None:
            return False
        names = {f.name for f in dataclasses.fields(Progress)}
        self.progress = Progress(**{k: v for k, v in found.items() if k in names})
        tensors = checkpoint.tensors("last")
        self.load({name: tensors[f"now/{name}"] for name in self.learnt})
        for name in self.average or {}:
            assert self.average is not None
            self.average[name].copy_(tensors[f"average/{name}"])
        parameters = dict(self._named())
        for key, value in tensors.items():
            kind, what, name = [*key.split("/", 2), ""][:3]
            if kind == "optimizer":
                like = parameters[name]
                # In the parameter's own memory layout, so that the next step does what it would have done.
                kept = torch.empty_like(like) if value.shape == like.shape else torch.empty_like(value)
                self.optimizer.state[like][what] = kept.copy_(value)
        if self.progress.best is not None:
            saved = checkpoint.tensors("best")
            self.best = {n: torch.empty_like(t).copy_(saved[n]) for n, t in self.learnt.items()}
        for row in self.progress.rows:
            self.desk.watch.trace(TraceRow(**row))
        return True

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for group in self.groups:
            yield from zip(group.names, group.parameters, strict=True)


def check_pieces(images: int, batch_size: int, accumulate: int) -> None:
    """Refuse pieces of one image, of which BatchNorm can learn no variance.

    Raises:
        ConfigError: an epoch's batches, or their pieces, leave one.
    """

    def leaves_one(size: int) -> bool:
        batches = {min(size, images), images % size or size}
        return any(len(share(range(n), i, accumulate)) == 1 for n in batches for i in range(accumulate))

    if leaves_one(batch_size):
        larger = next((size for size in range(batch_size + 1, images + 1) if not leaves_one(size)), None)
        cure = "--accumulate 1" if larger is None else f"--batch-size {larger}"
        raise ConfigError(
            f"--bn train with --batch-size {batch_size} and --accumulate {accumulate}: {images:,} train images leave a "
            f"piece of one, which has no variance; give {cure}, or leave out --bn train"
        )


def make_optimizer(groups: Sequence[Any], settings: FinetuneSettings) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum, in PyTorch's fused form."""
    options = [group.options() for group in groups]
    if settings.solver == "adamw":
        return torch.optim.AdamW(options, fused=True)
    return torch.optim.SGD(options, momentum=settings.momentum, fused=True)


def warm_steps(warmup: float, total: int) -> int:
    """Steps of the warm-up: a share of all below 1, a number of steps from 1 on.

    Raises:
        ConfigError: as many as there are steps, or more.
    """
    steps = int(warmup) if warmup >= 1 else round(warmup * total)
    if steps >= total and warmup >= 1:
        raise ConfigError(f"--warmup {warmup:g} is not below the {total} steps of this training: lower it")
    return steps


def schedule(step: int, warm: int, total: int) -> float:
    """The share of the highest learning rate: a straight line up over ``warm`` steps, then half a cosine to zero."""
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
