"""What stage three says: results in, lines and tables out. Does nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.base.spelling import option
from pipeline.base.values import Column, Curve, Part, Table, figures
from pipeline.base.watch import TraceRow
from pipeline.base.words import ABSENT, count, percent, points, seconds, setting
from pipeline.show.tables import before_and_after
from pipeline.show.trace import observe
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
        f"search with {option('refit', False)} for a head to fine-tune"
    )


def certified(certificate: Certificate) -> str:
    """The certificate holds."""
    return (
        f"checked: the reattached network gives the same logits as the head on cached features{certificate.way} "
        f"({certificate.figures})"
    )


def what_learns(task: Task, groups: Sequence[ParameterGroup], frozen: Mapping[str, int]) -> Table:
    """The table of all parameters, learning or ``frozen`` (by stage), and below it how they will learn."""
    s, schedule = task.settings, task.schedule
    norms = "learnt where it is trained" if s.bn == "train" else "frozen"
    rising = f"{schedule.total} steps of {s.batch_size} images: {schedule.warm} of rising rates, then a cosine to 0"
    below = (
        f"BatchNorm's means and variances: {norms}; learns from {task.inputs.description}",
        f"augmentation: {_augmentation(s)}, mixup {s.mixup:g}; {s.solver}, {rising}",
    )
    return parameters(groups, frozen, "\n".join(below))


def parameters(groups: Sequence[ParameterGroup], frozen: Mapping[str, int], caption: str = "") -> Table:
    """Each group with its parameters, its highest learning rate, its weight decay; then what is ``frozen``, dim."""
    rows: list[list[str | Part]] = [
        [g.name, count(g.count), setting(g.lr), setting(g.weight_decay), "trained"] for g in groups
    ]
    for stage, number in frozen.items():
        rows.append([Part(cell, "dim") for cell in (stage, count(number), ABSENT, ABSENT, "frozen")])
    columns = [Column("Group"), *figures("Parameters", "Learning rate", "Weight decay"), Column()]
    return Table(columns, rows, "What learns", caption)


def _augmentation(s: FinetuneSettings) -> str:
    of_maps = s.augment == "flip" and s.by_maps
    how = " (maps are mirrored: nearly, not exactly, the maps of a mirrored image)" if of_maps else ""
    return f"{s.augment}{how}{' and RandAugment' if s.randaugment else ''}"


def trace_row(before: Sequence[TraceRow], epoch: int, train: Score, val: Score, *, n_classes: int) -> TraceRow:
    """An epoch's row of the trace, with what is to be observed in it after the rows ``before``."""
    row = TraceRow(epoch=epoch, loss=train.loss, accuracy=train.accuracy, val_accuracy=val.accuracy, val_loss=val.loss)
    return dataclasses.replace(row, observation=observe([*before, row], n_classes))


def going_on(progress: Progress, schedule: Schedule) -> str:
    """A training was interrupted, and is not begun anew."""
    return f"going on from an interrupted training: {progress.step} of {schedule.total} steps done"


def kept_before(run: Path) -> str:
    """The job was killed when all was done but for tidying up."""
    return f"{run} was kept before the job was stopped: nothing is left to do"


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


def mixtures(choice: Choice) -> Curve:
    """The way from the weights before training to those after it: accuracy on val at each share."""
    return Curve(
        {"val": [m.val for m in choice.mixtures]},
        x=[m.share for m in choice.mixtures],
        x_label="share of the way from before (0) to after (1)",
        y_label="val accuracy",
        title=f"val accuracy between before and after: chosen {choice.share:.1f}, {percent(choice.val)}",
        chosen=choice.share,
        shares=True,
    )


def worth_it(verdict: Verdict) -> Table:
    """Accuracy, time and features before and after."""
    return before_and_after(verdict.to_json())


def ended(verdict: Verdict, run: Path) -> list[str]:
    """The verdict, what to do next, and where the run is."""
    val = verdict.val
    change = f"val {percent(val.before)} -> {percent(val.after)} ({points(val.difference)})"
    return [
        f"worth it: {verdict.worth_it}",
        *(f"next: {advice}" for advice in verdict.next),
        f"{change}, in {seconds(verdict.seconds)} -> {run}",
    ]
