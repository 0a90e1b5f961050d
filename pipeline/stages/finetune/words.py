"""What stage three says: results in, lines and tables out. Does nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.base.watch import TraceRow
from pipeline.base.words import percent, points, seconds
from pipeline.show.trace import observe
from pipeline.show.tuning_tables import ChangeRow, GroupRow, groups_table, verdict_table
from pipeline.stages.finetune.groups import ParameterGroup
from pipeline.stages.finetune.mixtures import Choice
from pipeline.stages.finetune.schedule import Schedule
from pipeline.stages.finetune.scoring import Score
from pipeline.stages.finetune.settings import FinetuneSettings
from pipeline.stages.finetune.start import Certificate
from pipeline.stages.finetune.state import Progress
from pipeline.stages.finetune.task import Task
from pipeline.stages.finetune.verdict import Verdict


def seen_val(run: Path) -> str:
    """Before and after are compared on images that the head knows."""
    return (
        f"the head of {run.name} has learned from val, too, on which before and after are compared: "
        "search with --no-refit for a head to fine-tune"
    )


def certified(certificate: Certificate) -> str:
    """The certificate holds."""
    return f"certificate: the reattached network gives the cached logits{certificate.way} ({certificate.figures})"


def what_learns(task: Task, groups: Sequence[ParameterGroup], frozen: Mapping[str, int]) -> Any:
    """The table of all parameters, learning or ``frozen`` (by stage), and below it how they will learn."""
    s, schedule = task.settings, task.schedule
    rows = [GroupRow(g.name, g.count, g.lr, g.weight_decay) for g in groups]
    rows += [GroupRow(stage, number) for stage, number in frozen.items()]
    norms = "learnt where it is trained" if s.bn == "train" else "frozen"
    rising = f"{schedule.total} steps of {s.batch_size} images: {schedule.warm} of rising rates, then a cosine to 0"
    below = (
        f"BatchNorm's means and variances: {norms}; learns from {task.inputs.description}",
        f"augmentation: {_augmentation(s)}, mixup {s.mixup:g}; {s.solver}, {rising}",
    )
    return groups_table(rows, title="What learns", caption="\n".join(below))


def _augmentation(s: FinetuneSettings) -> str:
    of_maps = s.augment == "flip" and s.train == "layer4" and s.prefix
    how = " (maps are mirrored: nearly, not exactly, the maps of a mirrored image)" if of_maps else ""
    return f"{s.augment}{how}{' and RandAugment' if s.randaugment else ''}"


def trace_row(before: Sequence[Mapping[str, Any]], epoch: int, train: Score, val: Score, *, n_classes: int) -> TraceRow:
    """An epoch's row of the trace, with what is to be observed in it after the rows ``before``."""
    row = TraceRow(epoch=epoch, loss=train.loss, accuracy=train.accuracy, val_accuracy=val.accuracy, val_loss=val.loss)
    return dataclasses.replace(row, observation=observe([*(TraceRow(**r) for r in before), row], n_classes))


def going_on(progress: Progress, schedule: Schedule) -> str:
    """A training was interrupted, and is not begun anew."""
    return f"going on from an interrupted training: {progress.step} of {schedule.total} steps done"


def not_finite(progress: Progress) -> str:
    """The training ends early."""
    return f"epoch {progress.epoch}: the loss is not finite: stopped; lower the learning rates"


def stopped(progress: Progress, schedule: Schedule) -> str:
    """The training was interrupted."""
    return (
        f"stopped in epoch {progress.epoch} after {progress.done} of {schedule.per_epoch} steps; its state is kept: "
        "the same command goes on from there"
    )


def between(choice: Choice) -> str:
    """The best weights between before and after."""
    return f"between before (0) and after (1): best on val at {choice.share:.1f}, {percent(choice.val)}"


def worth_it(verdict: Verdict) -> Any:
    """The table of before and after."""
    changes = [c for c in (verdict.val, verdict.test) if c is not None]
    return verdict_table(
        [ChangeRow(c.split, c.n, c.before, c.after, c.low, c.high) for c in changes],
        head_seconds=verdict.head_seconds,
        tuning_seconds=verdict.seconds,
        drift=verdict.drift,
        title="Was it worth it?",
    )


def ended(verdict: Verdict, run: Path) -> list[str]:
    """The verdict, what to do next, and where the run is."""
    val = verdict.val
    change = f"val {percent(val.before)} -> {percent(val.after)} ({points(val.difference)})"
    return [
        f"worth it: {verdict.worth_it}",
        *(f"next: {advice}" for advice in verdict.next),
        f"{change}, in {seconds(verdict.seconds)} -> {run}",
    ]
