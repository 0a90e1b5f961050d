"""Stage three: trunk + head + data -> run. Puts the trained head back on the trunk and trains end to end.

Starts where the head left off: first the certificate (the reattached network gives the logits that the head gives on
the cached rows), then training; step 0 is a candidate like every epoch, and the best on val is kept. The test split is
read by the verdict alone, when all is chosen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ConfigError
from pipeline.base.interrupt import stop_requests
from pipeline.base.ranks import Ranks
from pipeline.base.schema import made
from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace
from pipeline.heads.scores.calibration import fit_temperature
from pipeline.runs.folder import kept_from, new_run, result_of
from pipeline.runs.network import temperature_of, within_memory
from pipeline.stages.finetune import publish, scoring, verdict, words
from pipeline.stages.finetune.checkpoint import Checkpoint, state_folder
from pipeline.stages.finetune.feeds import CachedFeatures, Maps, images_of
from pipeline.stages.finetune.groups import frozen_counts, stages
from pipeline.stages.finetune.loop import Loop, tell
from pipeline.stages.finetune.mixtures import Choice, choose
from pipeline.stages.finetune.scoring import Score
from pipeline.stages.finetune.settings import FinetuneSettings
from pipeline.stages.finetune.start import Attached, Certificate, attach, to_random_head
from pipeline.stages.finetune.state import Clock, State
from pipeline.stages.finetune.task import Task


@dataclass(frozen=True)
class FinetuneResult:
    """Val accuracy of the head (``before``), at step 0 and of what is kept (``after``), and what it cost.

    ``best_epoch`` is 0 where no epoch was better than step 0; ``share`` how far the kept weights are from before (0) to
    after (1), with ``--interpolate``. ``temperature`` is what the network's logits are divided by before probabilities
    are made of them, and ``temperature_from`` what gave it. The certificate is the largest logit difference before
    training. ``verdict`` is :class:`pipeline.stages.finetune.verdict.Verdict` as JSON values.
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
    verdict: dict[str, Any]
    temperature: float
    temperature_from: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "run": str(self.run)}


def finetune(settings: FinetuneSettings, desk: Workspace) -> FinetuneResult:
    """Fine-tune with settings made. Under ``torchrun`` every process calls it."""
    ranks = Ranks()
    if ranks.world > 1 and settings.bn == "train":
        raise ConfigError(
            f"{option('bn', 'train')} with {ranks.world} processes: each would learn statistics of its own; "
            "leave it out, or train "
            "in one process"
        )
    with ranks.joined(settings.device):
        return _finetune(settings, ranks, desk if ranks.first else desk.silent())


def _finetune(settings: FinetuneSettings, ranks: Ranks, desk: Workspace) -> FinetuneResult:
    attached = attach(settings, desk)
    if settings.train == "last" and "layer4" in stages(attached.anatomy):
        settings = dataclasses.replace(settings, train="layer4")  # the same, by the word that its state is kept under
    if "val" in attached.learned_from:
        desk.watch.warn(words.seen_val(attached.run.folder))
    checkpoint = Checkpoint(state_folder(desk, attached.identity(settings)))
    with _held(checkpoint, ranks, desk, fresh=settings.fresh) as kept:
        if kept is not None:
            desk.watch.result(words.kept_before(kept.run))
            return kept
        clock = Clock()
        task = Task.of(settings, attached, ranks, desk)
        with within_memory(attached.device):
            state = State(attached.network, attached.anatomy, settings)
        certificate, step0 = _begin(task, state)
        if state.resume(checkpoint):
            for row in state.progress.rows:
                desk.watch.trace(row, of=settings.epochs + 1)
            desk.watch.say(words.going_on(state.progress, task.schedule))
        else:
            state.progress.seconds = clock.seconds
            tell(task, state.progress, 0, _score_on_train(task), step0)
        with stop_requests() as stop:
            Loop(task, state).run(checkpoint, stop)
        choice = choose(task, state, step0)
        if choice.share is not None:
            desk.watch.say(words.between(choice))
        state.load(choice.tensors)
        return _publish(task, state, (certificate, step0), choice, checkpoint)


@contextmanager
def _held(checkpoint: Checkpoint, ranks: Ranks, desk: Workspace, *, fresh: bool) -> Iterator[FinetuneResult | None]:
    """The state's folder for this job alone; the others begin when the first process has it.

    Gives the result of the run that came of the state before, where the job was killed before it could tidy up.
    """
    if not ranks.first:
        told = ranks.told()["kept"]
        yield None if told is None else made(told, FinetuneResult)
        return
    with ranks.leading() as announce, checkpoint.held():
        if fresh:
            checkpoint.clear()
        run = kept_from(checkpoint.digest(), desk)
        kept = None if run is None else result_of(run, FinetuneResult)
        if kept is not None:
            checkpoint.remove()
        announce({"kept": None if kept is None else kept.to_json()})
        yield kept


def _begin(task: Task, state: State) -> tuple[Certificate, Score]:
    """The certificate, and the score on val before the first step; ``state`` is then where training starts.

    The certificate is of what training goes by; where that is the cached features, of the images.
    """
    attached, settings, watch = task.attached, task.settings, task.desk.watch
    way = images_of(settings, attached) if isinstance(task.inputs, CachedFeatures) else task.inputs
    logits = scoring.logits(task, attached.val, "check of the logits", way)
    rounding = partial(scoring.rounding, task, attached.val, logits, way)
    certificate = attached.certificate(logits, maps=isinstance(way, Maps), rounding=rounding)
    watch.say(words.certified(certificate))
    if settings.head == "random":
        to_random_head(attached.network, attached.anatomy, settings.seed)
        state.begin_here()
        logits = scoring.logits(task, attached.val, "step 0")
    watch.show(words.what_learns(task, state.groups, frozen_counts(attached.network, attached.anatomy)))
    return certificate, scoring.score(task, attached.val, logits)


def _score_on_train(task: Task) -> Score:
    """The score before the first step, by the cached features: no image is read for it."""
    attached = task.attached
    cached = CachedFeatures(attached.network, attached.anatomy, attached.cache, attached.device)
    return scoring.score(task, attached.train, scoring.logits(task, attached.train, "train", cached))


def _temperature(attached: Attached, val_logits: NDArray[np.float32]) -> tuple[float, str]:
    """The temperature and what gave it: val, or the head where that has learned from val."""
    if "val" in attached.learned_from:
        return temperature_of(attached.run), attached.run.folder.name
    return fit_temperature(val_logits, attached.cache.labels[attached.val]), "val"


def _publish(
    task: Task, state: State, beginning: tuple[Certificate, Score], choice: Choice, checkpoint: Checkpoint
) -> FinetuneResult:
    """The run's folder, with the verdict in it; the first process writes, the others are told the result."""
    attached, ranks, (certificate, step0) = task.attached, task.ranks, beginning
    val_logits = scoring.logits(task, attached.val, "val")
    if not ranks.first:
        told = ranks.told()
        return made(told, FinetuneResult)
    with ranks.leading() as announce:
        chosen = checkpoint.folder / "chosen"
        sha256 = publish.write_network(attached, chosen)
        temperature, source = _temperature(attached, val_logits)
        found = verdict.reach(task, state.progress, choice, val_logits, temperature, chosen)
        name = attached.cache.path.name.removesuffix(".h5")
        about = {**attached.record, "state_sha256": checkpoint.digest()}
        with new_run(
            task.desk, stage="finetune", name=name, settings=task.settings, about=about, run=attached.run.folder
        ) as (draft, folder):
            result = FinetuneResult(
                run=folder,
                before=scoring.score(task, attached.val, attached.cached_logits(attached.val)).accuracy,
                step0=step0.accuracy,
                after=choice.val,
                best_epoch=choice.epoch,
                share=choice.share,
                certificate_max_abs=certificate.difference,
                certificate_tolerance=certificate.tolerance,
                seconds=state.progress.seconds,
                steps=state.progress.step,
                verdict=found.to_json(),
                temperature=temperature,
                temperature_from=source,
            )
            publish.put_into(draft, chosen)
            draft.write_lines("trace.jsonl", [dataclasses.asdict(row) for row in state.progress.rows])
            if choice.mixtures:
                publish.write_mixtures(draft, choice)
            draft.write_json("metrics.json", {**result.to_json(), "model_sha256": sha256})
        checkpoint.remove()
        announce(result.to_json())
    task.desk.watch.result(words.worth_it(found))
    for line in words.ended(found, result.run):
        task.desk.watch.result(line)
    return result
