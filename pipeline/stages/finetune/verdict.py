"""Was fine-tuning worth it? A few words, each from measured figures.

Runs when everything is chosen and fixed: this is where a fine-tuning's test rows are read, once, through
``pipeline.stages.score``, which keeps the figures. Test alone says whether it was worth it: val chose, so that its
figures are better than they would be on new images. What to do next is said from train and val alone, so that whoever
follows it has not chosen by test.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.base.spelling import option
from pipeline.base.words import percent, points, points_between
from pipeline.base.workspace import Workspace
from pipeline.heads.scores.paired import Word, paired_difference, word
from pipeline.runs.network import network_forward, network_logits
from pipeline.runs.pixels import pixel_batches
from pipeline.stages.finetune.mixtures import Choice
from pipeline.stages.finetune.start import Attached
from pipeline.stages.finetune.state import Progress
from pipeline.stages.finetune.task import Task
from pipeline.stages.score.evaluate import evaluated_network, scored_rows
from pipeline.stages.score.words import changed

DRIFT_ROWS = 256  # of each split: the mean of so many cosines is known to a hundredth of their spread
FAR = 0.9  # features this far from the cached ones (mean cosine) have been made anew
SATURATED = 0.999  # of the train images right: nothing is left to learn from them


@dataclass(frozen=True)
class Change:
    """Accuracy on ``n`` images of a split before and after; the difference with its 95 % interval, and McNemar's test.

    ``b`` images were right before alone, ``c`` are after alone: see :mod:`pipeline.heads.scores.paired`.
    """

    split: str
    n: int
    before: float
    after: float
    difference: float
    low: float
    high: float
    b: int
    c: int
    p: float

    @property
    def word(self) -> Word:
        """What after is beside before."""
        return word(self.low, self.high)


@dataclass(frozen=True)
class Verdict:
    """Accuracies, seconds and features before and after, whether it was worth it, and what to do next.

    ``factor`` is seconds of fine-tuning ÷ those of training the head; ``drift`` the mean cosine of cached and new
    features on train and val, of ``drift_rows`` images at most. ``val`` is the best of ``candidates``.
    """

    val: Change
    test: Change | None
    seconds: float
    head_seconds: float | None
    factor: float | None
    drift: dict[str, float]
    drift_rows: int
    candidates: int
    worth_it: str
    next: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "next": list(self.next)}


@dataclass(frozen=True)
class Course:
    """What a verdict needs to know of a training: epochs, the one kept (0: none), the last epoch's accuracy on train,
    between how many networks val chose, how many test rows there are, and whether the loss stopped being finite.
    """

    epochs: int
    kept: int
    accuracy: float
    interpolated: bool
    train: str
    candidates: int
    test_rows: int
    diverged: bool = False


def reach(
    task: Task,
    progress: Progress,
    choice: Choice,
    val_logits: NDArray[np.float32],
    temperature: float,
    folder: Path,
) -> Verdict:
    """The verdict on what was chosen, which the network is now.

    Test is read here, once; ``val_logits`` (n, C) and ``temperature`` are the network's, and its test figures are kept
    in ``folder``.
    """
    attached, settings = task.attached, task.settings
    y = attached.cache.labels[attached.val]
    before, after = (x.argmax(axis=1) == y for x in (attached.cached_logits(attached.val), val_logits))
    moved = {}
    if settings.train != "head":
        moved = drift(attached, workers=settings.threads, desk=task.desk)
    return judge(
        change("val", before, after),
        change_on_test(attached, temperature, folder, task.desk) if settings.evaluate and choice.epoch else None,
        seconds=progress.seconds,
        head_seconds=attached.run.metrics.get("seconds"),
        drift=moved,
        course=Course(
            settings.epochs,
            choice.epoch,
            progress.rows[-1].accuracy,
            choice.share is not None,
            settings.train,
            candidates=_candidates(progress, choice),
            test_rows=len(attached.test),
            diverged=progress.epoch <= settings.epochs,
        ),
    )


def _candidates(progress: Progress, choice: Choice) -> int:
    """Between how many networks val chose: the start, each epoch, and what lies between the start and the best."""
    return len(progress.rows) + sum(0 < m.share < 1 for m in choice.mixtures)


def change(split: str, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Change:
    """The change from which rows (n,) were right before and after."""
    d = paired_difference(before, after)
    return Change(split, d.n, float(before.mean()), float(after.mean()), d.value, d.low, d.high, d.b, d.c, d.p)


def change_on_test(attached: Attached, temperature: float, folder: Path, desk: Workspace) -> Change | None:
    """The change on the test split, both sides scored once and kept; None where there are no test rows.

    The head's figures are kept with its run, the network's in ``folder``.
    """
    if not len(attached.test):
        return None
    # As a run's network lies in memory: its figures are then, to the last bit, those that the run would give.
    network = attached.network.to(memory_format=torch.contiguous_format)

    def logits_of(split: str) -> NDArray[np.float32]:
        return network_logits(network, attached.recipe, attached.cache, split, desk)

    head = scored_rows(attached.run, desk, device=attached.device)
    tuned = evaluated_network(folder, attached.cache, logits_of, temperature, desk)
    before, after = (s.logits.argmax(axis=1) == s.y for s in (head, tuned))
    return change("test", before, after)


def drift(attached: Attached, *, workers: int, desk: Workspace) -> dict[str, float]:
    """Mean cosine of the cached features and the network's as it is now, on train and val, of rows spread over each.

    Of test none: advice follows from it.
    """
    found = {}
    for split in ("train", "val"):
        rows = attached.rows(split)
        if not len(rows):
            continue
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, DRIFT_ROWS).round().astype(int))]
        total = 0.0
        geometry, classifier = attached.recipe.geometry(), attached.network.get_submodule(attached.anatomy.classifier)
        batches = pixel_batches(attached.cache, rows.tolist(), geometry=geometry, size=32, workers=workers)
        with desk.watch.track(f"features of {split}", len(rows)) as tracker:
            for part, pixels in batches:
                new, _ = network_forward(attached.network, classifier, pixels, attached.recipe.trunk.info)
                new = new.astype(np.float64)
                old = np.asarray(attached.cache.features[part], np.float64)
                lengths = np.linalg.norm(new, axis=1) * np.linalg.norm(old, axis=1)
                total += float(((new * old).sum(axis=1) / lengths.clip(min=1e-12)).sum())
                tracker.advance(len(part))
        found[split] = total / len(rows)
    return found


def judge(
    val: Change,
    test: Change | None,
    *,
    seconds: float,
    head_seconds: float | None,
    drift: dict[str, float],
    course: Course,
) -> Verdict:
    """The verdict from figures alone."""
    factor = seconds / head_seconds if head_seconds else None
    return Verdict(
        val=val,
        test=test,
        seconds=seconds,
        head_seconds=head_seconds,
        factor=factor,
        drift=drift,
        drift_rows=DRIFT_ROWS,
        candidates=course.candidates,
        worth_it=_worth(val, test, course),
        next=tuple(_next(val, drift, course)),
    )


def _worth(val: Change, test: Change | None, course: Course) -> str:
    if course.kept == 0:
        why = ", and the loss did not stay finite" if course.diverged else ""
        return f"no: no epoch was better on val than the start, which is kept as it was{why}"
    if test is None:
        how = "`pipeline compare` the head's run with this one: that scores both on the test images"
        if not course.test_rows:
            how = f"extract with {option('test_fraction')} above 0, and train and fine-tune again"
        return (
            f"not tested: val chose the epoch, so its figures are no proof ({percent(val.before)} before, "
            f"{percent(val.after)} after); to know, {how}"
        )
    if not test.b + test.c:
        return f"no difference: the same test images are right as before ({test.n:,})"
    ends = (
        f"95 % interval {points_between(test.low, test.high)} points, {changed(test.c, test.b)} of {test.n:,} images, "
        f"McNemar's mid-p = {test.p:.2g}"
    )
    size = points(abs(test.difference)).removeprefix("+")
    if test.word == "better":
        return f"yes: test is better by {size} ({ends})"
    if test.word == "worse":
        though = ", though val, which chose, is not" if val.word != "worse" else ""
        return f"no: test is worse by {size} ({ends}){though}"
    return f"not proven: the difference on test, {points(test.difference)}, may be chance ({ends})"


def _next(val: Change, drift: dict[str, float], course: Course) -> list[str]:
    """What a user would do next, the most promising first; from train and val alone."""
    advice = []
    augment, mixup, interpolate = option("augment"), option("mixup"), option("interpolate", True)
    lr_trunk = option("lr_trunk")
    if course.diverged:
        return [f"lower {lr_trunk} and {option('lr_head')}: the loss did not stay finite"]
    if course.kept == 0:
        if course.accuracy >= SATURATED:
            advice.append(f"every train image is right already: more images, {augment} or {mixup} give more to learn")
        advice.append(
            f"try other learning rates ({lr_trunk}, {option('lr_head')}), or leave it at the head: it costs nothing"
        )
        if course.train == "all":
            advice.append(f"{option('train', 'last')} moves less and costs less")
        return advice
    if val.word == "worse":
        return [
            f"keep the head: val is worse than with it; lower {lr_trunk} or try {interpolate} before training again"
        ]
    if course.kept == course.epochs:
        advice.append(f"the last epoch was the best: more {option('epochs')} may give more")
    if course.accuracy >= SATURATED:
        advice.append(f"every train image is right: {augment} or {mixup}, or more images")
    if drift and min(drift.values()) < FAR and not course.interpolated:
        advice.append(f"features moved far from the cached ones: {interpolate} may give the better of both")
    if val.word == "not told":
        advice.append("so small a difference on val takes more images to tell; until then the head is the cheaper")
    if not advice:
        advice.append("nothing stands out: `pipeline predict` and `pipeline export` take this run, or the head's")
    return advice
