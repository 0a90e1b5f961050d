"""Stage three: trunk + head + data -> run. Puts the trained head back on the trunk and trains end to end.

Starts where the head left off: first the certificate (the reattached network gives the logits that the head gives on
the cached rows), then training; step 0 is a candidate like every epoch, and the best on val is kept (P4). The test
split is read by the verdict alone, when all is chosen.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base import settings as st
from pipeline.base.errors import ConfigError
from pipeline.base.interrupt import stop_requests
from pipeline.base.ranks import Ranks
from pipeline.base.words import percent
from pipeline.base.workspace import Workspace
from pipeline.runs import folder as runs
from pipeline.show.tuning_tables import GroupRow, groups_table
from pipeline.stages.finetune.checkpoint import Checkpoint, state_folder
from pipeline.stages.finetune.feeds import CachedFeatures, Maps, _images, inputs_of
from pipeline.stages.finetune.groups import frozen_counts
from pipeline.stages.finetune.loop import Tensors, Tuning
from pipeline.stages.finetune.mixtures import Mixture, best_mixture, between, score_mixtures
from pipeline.stages.finetune.publish import Outcome
from pipeline.stages.finetune.settings import FinetuneSettings
from pipeline.stages.finetune.start import Attached, attach, to_random_head


@dataclass(frozen=True)
class FinetuneResult:
    """Val accuracy of the head (``before``), at step 0 and of what is kept (``after``), and what it cost.

    ``best_epoch`` is 0 where no epoch was better than step 0; ``share`` how far the kept weights are from before (0) to
    after (1), with ``--interpolate``. The certificate is the largest logit difference before training. ``verdict`` is
    :class:`pipeline.stages.finetune.verdict.Verdict` as JSON values.
    """

    run: Path
    before: float
    step0: float
    after: float
    best_epoch: int
    share: float | None
    certificate_max_abs: float
    certificate_tolerance: float
    seconds: float
    steps: int
    verdict: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "run": str(self.run)}


def finetune(settings: FinetuneSettings, desk: Workspace) -> FinetuneResult:
    """Fine-tune with settings made. Under ``torchrun`` every process calls it."""
    ranks = Ranks()
    if ranks.world > 1 and settings.bn == "train":
        raise ConfigError(
            f"--bn train with {ranks.world} processes: each would learn statistics of its own; leave it out, or train "
            "in one process"
        )
    ranks.join()
    try:
        return _finetune(settings, ranks, desk if ranks.first else desk.silent())
    finally:
        ranks.leave()


def _finetune(settings: FinetuneSettings, ranks: Ranks, desk: Workspace) -> FinetuneResult:
    attached = attach(settings, desk)
    checkpoint = Checkpoint(state_folder(desk, _identity(settings, attached)))
    with _held(checkpoint, ranks, fresh=settings.fresh):
        began = time.perf_counter()
        tuning = Tuning(attached, inputs_of(settings, attached, ranks, desk), settings, ranks, desk)
        certificate, logits = _certificate(tuning)
        if settings.head == "random":
            to_random_head(attached.network, settings.seed)
            tuning.begin_here()
            logits = tuning.logits(attached.val, "step 0")
        _show_groups(tuning)
        step0 = tuning.scores(attached.val, logits)
        preparation = time.perf_counter() - began
        if tuning.resume(checkpoint):
            desk.watch.say(
                f"going on from an interrupted training: {tuning.progress.step} of {tuning.total_steps} steps done"
            )
        else:
            tuning.progress.seconds = preparation
            tuning.tell(0, *_train_scores(tuning), step0[1], step0[0])
        with stop_requests() as stop:
            tuning.train(checkpoint, stop)
        chosen = _choose(tuning, step0)
        result = FinetuneResult(
            run=Path(),
            before=tuning.scores(attached.val, attached.cached_logits(attached.val))[1],
            step0=step0[1],
            after=chosen.val,
            best_epoch=chosen.epoch,
            share=chosen.share,
            certificate_max_abs=certificate[0],
            certificate_tolerance=certificate[1],
            seconds=tuning.progress.seconds,
            steps=tuning.progress.step,
        )
        return _publish(tuning, chosen, result, checkpoint)


@contextmanager
def _held(checkpoint: Checkpoint, ranks: Ranks, *, fresh: bool) -> Iterator[None]:
    """The state's folder for this job alone; the others begin when the first process has it."""
    if not ranks.first:
        ranks.told()
        yield
        return
    with ranks.leading() as announce, checkpoint.held():
        if fresh:
            checkpoint.clear()
        announce({})
        yield


def _identity(settings: FinetuneSettings, attached: Attached) -> dict[str, Any]:
    """Everything that decides the weights that training gives, as plain JSON values."""
    tensors = attached.head.tensors
    head = hashlib.sha256(b"".join(tensors[name].tobytes() for name in sorted(tensors))).hexdigest()
    return {
        "settings": st.identity(settings),
        "key": attached.cache.key,
        "content": attached.cache.content,
        "head": head,
        "device": attached.device,
    }


def _certificate(tuning: Tuning) -> tuple[tuple[float, float], NDArray[np.float32]]:
    """The certificate, and the logits of the val images that it is about.

    Through what training goes by; where that is the cached features, through the images.
    """
    attached, inputs = tuning.attached, tuning.inputs
    way = _images(tuning.settings, attached) if isinstance(inputs, CachedFeatures) else inputs
    logits = tuning.logits(attached.val, "certificate", way)
    return attached.certificate(logits, maps=isinstance(inputs, Maps), desk=tuning.desk), logits


def _train_scores(tuning: Tuning) -> tuple[float, float]:
    """Loss and accuracy on train before the first step, by the cached features: no image is read for it."""
    attached = tuning.attached
    cached = CachedFeatures(attached.network, attached.cache, attached.device)
    return tuning.scores(attached.train, tuning.logits(attached.train, "train", cached))


def _show_groups(tuning: Tuning) -> None:
    s = tuning.settings
    rows = [GroupRow(g.name, g.count, g.lr, g.weight_decay) for g in tuning.groups]
    rows += [GroupRow(stage, number) for stage, number in frozen_counts(tuning.attached.network).items()]
    norms = "learnt where it is trained" if s.bn == "train" else "frozen"
    augment = (
        s.augment
        if s.augment != "flip" or s.train != "layer4" or not s.prefix
        else ("flip (maps are mirrored: nearly, not exactly, the maps of a mirrored image)")
    )
    words = [
        f"BatchNorm's means and variances: {norms}; learns from {tuning.inputs.description}",
        f"augmentation: {augment}{' and RandAugment' if s.randaugment else ''}, mixup {s.mixup:g}; {s.solver}, "
        f"{tuning.total_steps} steps of {s.batch_size} images: {tuning.warm_steps} of rising rates, then a cosine to 0",
    ]
    tuning.desk.watch.show(groups_table(rows, title="What learns", caption="\n".join(words)))


@dataclass(frozen=True, eq=False)
class _Choice:
    """What is kept: its tensors, its val accuracy, the epoch (0: the start), and how far it is from the start."""

    tensors: Tensors
    val: float
    epoch: int
    share: float | None
    mixtures: tuple[Mixture, ...] = ()


def _choose(tuning: Tuning, step0: tuple[float, float]) -> _Choice:
    """The best on val of step 0, the epochs and, with ``--interpolate``, what lies between; loads it."""
    best = tuning.progress.best
    if best is None or tuning.best is None:
        choice = _Choice(tuning.start, step0[1], 0, None)
    elif tuning.settings.interpolate:
        mixtures = score_mixtures(tuning, step0, (best["loss"], best["val"]))
        found = best_mixture(mixtures)
        tuning.desk.watch.say(
            f"between before (0) and after (1): best on val at {found.share:.1f}, {percent(found.val)}"
        )
        tensors = between(tuning.start, tuning.best, found.share)
        epoch = int(best["epoch"]) if found.share else 0
        choice = _Choice(tensors, found.val, epoch, found.share, tuple(mixtures))
    elif (best["val"], -best["loss"]) > (step0[1], -step0[0]):
        choice = _Choice(tuning.best, best["val"], int(best["epoch"]), None)
    else:
        choice = _Choice(tuning.start, step0[1], 0, None)
    tuning.load(choice.tensors)
    return choice


def _publish(tuning: Tuning, choice: _Choice, result: FinetuneResult, checkpoint: Checkpoint) -> FinetuneResult:
    """The run's folder, with the verdict in it; the first process writes, the others are told the result."""
    attached, ranks = tuning.attached, tuning.ranks
    val_logits = tuning.logits(attached.val, "val")
    if not ranks.first:
        told = ranks.told()
        return FinetuneResult(**{**told, "run": Path(told["run"])})
    outcome = Outcome(tuning, checkpoint.folder / "chosen")
    verdict = outcome.verdict(val_logits, kept=choice.epoch, share=choice.share)
    with runs.new_run(
        tuning.desk,
        stage="finetune",
        name=attached.cache.path.name.removesuffix(".h5"),
        settings=st.record(tuning.settings),
        about=attached.record,
    ) as (draft, folder):
        result = dataclasses.replace(result, run=folder, verdict=verdict.to_json())
        outcome.move_to(draft.folder)
        draft.write_lines("trace.jsonl", tuning.progress.rows)
        if choice.mixtures:
            outcome.write_mixtures(draft, choice.mixtures, choice.share or 0.0)
        draft.write_json("metrics.json", {**result.to_json(), "model_sha256": outcome.sha256})
    checkpoint.remove()
    with ranks.leading() as announce:
        announce(result.to_json())
    outcome.tell(verdict, result.run)
    return result
