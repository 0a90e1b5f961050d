"""The loop of stage three: batches in, the best weights on val out, from any moment at which it was interrupted.

Nothing here draws from a global random state: the order of an epoch, flips, crops and mixing come from the seed, the
epoch and the row. A global batch is cut into shares for the processes and those into pieces for memory; the loss is the
mean over the whole batch, and each process's gradients are added up when its pieces are done: every image counts once
in an epoch, whatever the number of processes or pieces. Nothing in a step waits for a GPU: its figures are read once in
several steps (``tally``), at steps that are fixed by their number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from typing import NamedTuple

import torch

from pipeline.base.arithmetic import arithmetic, ordered_attention
from pipeline.base.errors import ConfigError, HeadError, Interrupted
from pipeline.base.interrupt import StopRequest
from pipeline.base.machine import kind_of_device
from pipeline.base.memory import is_out_of_memory
from pipeline.base.spelling import option
from pipeline.base.transfer import uploaded
from pipeline.stages.finetune import scoring, words
from pipeline.stages.finetune.checkpoint import Checkpoint
from pipeline.stages.finetune.feeds import ORDER, chunks, draw, mixed, share
from pipeline.stages.finetune.groups import batch_norms
from pipeline.stages.finetune.scoring import Score
from pipeline.stages.finetune.state import Clock, Progress, State
from pipeline.stages.finetune.tally import Tally
from pipeline.stages.finetune.task import Task


class Piece(NamedTuple):
    """What is computed at once: the rows, what they are to the network, and their labels (n,) int64."""

    rows: list[int]
    x: torch.Tensor
    labels: torch.Tensor


class Loop:
    """The steps of a training; what they change is the ``state``."""

    def __init__(self, task: Task, state: State) -> None:
        self.task, self.state = task, state
        network, settings = task.attached.network, task.settings
        self._norms = (
            [m for _, m in batch_norms(network, task.attached.anatomy, settings.train)]
            if settings.bn == "train"
            else []
        )
        self._parameters = [p for group in state.groups for p in group.parameters]
        self._tally = Tally(task.attached.device)

    def run(self, checkpoint: Checkpoint, stop: StopRequest) -> None:
        """Train from where the state is to the end; each process with the same result.

        Raises:
            Interrupted: a stop was asked for; the state is kept.
            DataError: an image is gone or has changed.
            HeadError: the processes do not begin with the same numbers.
            PipelineError: another process stopped.
        """
        progress = self.state.progress
        if self.task.ranks.world > 1 and not self.task.ranks.alike(self.state.digest()):
            # Gradients alone travel: what they are added to must be the same everywhere.
            raise HeadError(
                "the processes of this fine-tuning do not begin with the same weights and state: give all of them one "
                f"{option('workspace')} that they share, and the same files"
            )
        with scoring.in_mode(self._norms, training=True), arithmetic(self.task.settings.precision):
            while not progress.ended:
                clock, best = Clock(progress.seconds), False
                if self._epoch(checkpoint, stop, clock):
                    best = self._end_epoch()
                else:
                    self.task.desk.watch.warn(words.not_finite(progress))
                    progress.ended = True
                self._keep(checkpoint, clock, best=best)
        self.task.desk.watch.end_trace()

    def _epoch(self, checkpoint: Checkpoint, stop: StopRequest, clock: Clock) -> bool:
        """The rest of the epoch in work, with a checkpoint now and then; whether its losses were finite."""
        progress, schedule = self.state.progress, self.task.schedule
        written = time.perf_counter()
        with closing(self.steps(stop)) as steps:
            for finite, asked in steps:
                if not finite:
                    return False
                due = time.perf_counter() - written >= self.task.settings.checkpoint_seconds
                if asked or (due and progress.done < schedule.per_epoch):
                    self._keep(checkpoint, clock, best=False)
                    written = time.perf_counter()
                if asked:
                    raise Interrupted(words.stopped(progress, schedule), signal=stop.signal or 15)
        return True

    def steps(self, stop: StopRequest) -> Generator[tuple[bool, bool], None, None]:
        """The rest of the epoch in work; at each reading of the figures whether the losses were finite, and whether any
        process was asked to stop.

        One process reads them at once when it is asked; several do so at the same steps.
        """
        progress, task = self.state.progress, self.task
        order = draw(ORDER, task.settings.seed, progress.epoch).permutation(task.attached.train).tolist()
        batches = chunks(order, task.settings.batch_size)
        todo = [(self._pieces(batch), len(batch)) for batch in batches[progress.done :]]
        coming = self._coming([rows for pieces, _ in todo for rows in pieces])
        what, done = f"epoch {progress.epoch}", progress.done * task.settings.batch_size
        with task.desk.watch.track(what, len(order), done=done) as tracker:
            for number, (pieces, images) in enumerate(todo, start=progress.done + 1):
                self._tally.begin(number, images)
                self._step(len(pieces), images, coming)
                tracker.advance(images)
                alone = stop.signal != 0 and task.ranks.world == 1
                if alone or number % self._tally.every == 0 or number == len(batches):
                    yield self._read(stop)

    def _read(self, stop: StopRequest) -> tuple[bool, bool]:
        """Count the steps up to now, or up to the first loss that is not finite: what came after is of no use."""
        steps, asked = self._tally.read(self.task.ranks, stop=stop.signal != 0)
        for step in steps:
            self.state.progress.count(*step)
            if not math.isfinite(step.loss):
                return False, asked
        return True, asked

    def _coming(self, pieces: list[list[int]]) -> Iterator[Piece]:
        """The pieces of rows one after another, their labels uploaded together."""
        attached, epoch = self.task.attached, self.state.progress.epoch
        flat = [row for rows in pieces for row in rows]
        labels = uploaded(torch.from_numpy(attached.cache.labels[flat]), attached.device)
        of_pieces = torch.split(labels, [len(rows) for rows in pieces])
        for (rows, x), y in zip(self.task.inputs.batches(pieces, epoch), of_pieces, strict=True):
            yield Piece(rows, x, y)

    def _pieces(self, batch: Sequence[int]) -> list[list[int]]:
        """This process's part of a batch in pieces; none where a small batch has nothing for it."""
        ranks, parts = self.task.ranks, self.task.settings.accumulate
        mine = share(batch, ranks.rank, ranks.world)
        return [piece for piece in (share(mine, i, parts) for i in range(parts)) if piece]

    def _step(self, pieces: int, images: int, coming: Iterator[Piece]) -> None:
        """One step of the optimiser, of so many pieces here and images in all.

        Raises:
            ConfigError: out of memory.
        """
        state, settings = self.state, self.task.settings
        factor = self.task.schedule.factor(state.progress.step + self._tally.unread - 1)
        for group in state.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        state.optimizer.zero_grad(set_to_none=True)
        try:
            for _ in range(pieces):
                losses, right = self._losses(next(coming))
                (losses.sum() * (1 / images)).backward()  # type: ignore[no-untyped-call]
                self._tally.add(losses.detach(), right)
            self._add_up_gradients()
            if settings.clip is not None:
                torch.nn.utils.clip_grad_norm_(self._parameters, settings.clip)
            state.optimizer.step()
            if state.average is not None:
                state.average.step()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise ConfigError(
                f"out of memory in a step of {settings.batch_size} images: give "
                f"{option('accumulate', 2 * settings.accumulate)} (the step in "
                f"so many pieces: the same figures), or a smaller {option('batch_size')}"
            ) from error

    def _add_up_gradients(self) -> None:
        """Every process has the sum of all; one with nothing to do in this step adds zeros."""
        if self.task.ranks.world == 1:
            return
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.task.ranks.add_up([p.grad for p in self._parameters if p.grad is not None])

    def _losses(self, piece: Piece) -> tuple[torch.Tensor, torch.Tensor]:
        """Each row's loss (n,), and whether it was right (n,) (by a mixed row's larger part)."""
        s, (rows, x, y) = self.task.settings, piece
        partner, own = None, None
        if s.mixup:
            x, partner, own = mixed(x, rows, alpha=s.mixup, seed=s.seed, epoch=self.state.progress.epoch)
        device, half = self.task.attached.device, s.precision == "bfloat16"
        with torch.autocast(kind_of_device(device), torch.bfloat16, enabled=half), ordered_attention(device):
            logits = self.task.inputs.module(x)
        logits = logits.float()

        def against(labels: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(
                logits, labels, reduction="none", label_smoothing=s.label_smoothing
            )

        losses = against(y) if own is None else own * against(y) + (1 - own) * against(y[partner])
        return losses, logits.detach().argmax(dim=1) == y

    def _end_epoch(self) -> bool:
        """Score the epoch on val and go to the next; whether it is the best so far, which is then kept."""
        state, progress, val = self.state, self.state.progress, self.task.attached.val
        with nullcontext() if state.average is None else state.average.in_place():
            found = scoring.score(self.task, val, scoring.logits(self.task, val, "val"))
            best = progress.best is None or found.order < Score(progress.best["loss"], progress.best["val"]).order
            if best:
                progress.best = {"epoch": progress.epoch, "val": found.accuracy, "loss": found.loss}
                state.keep_as_best()
        train = Score(progress.loss_sum / progress.seen, progress.hits / progress.seen)
        tell(self.task, progress, progress.epoch, train, found)
        progress.next_epoch()
        progress.ended = progress.epoch > self.task.settings.epochs
        return best

    def _keep(self, checkpoint: Checkpoint, clock: Clock, *, best: bool) -> None:
        self.state.progress.seconds = clock.seconds
        if self.task.ranks.first:
            self.state.keep(checkpoint, best=best)


def tell(task: Task, progress: Progress, epoch: int, train: Score, val: Score) -> None:
    """Add an epoch's row (0: the start's) to the trace, and show it."""
    row = words.trace_row(progress.rows, epoch, train, val, n_classes=len(task.attached.cache.classes))
    progress.rows.append(row)
    task.desk.watch.trace(row, of=task.settings.epochs + 1)
