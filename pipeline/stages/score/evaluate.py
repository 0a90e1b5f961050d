"""Stage two, after the choice: a run's figures on the test split, taken once; or on other rows, asked for by name.

With ``sealed`` the only way to test rows. Nothing here chooses or fits, and a run's test figures are taken once,
counted before they are taken (``ledger``), and kept beside it with the logits that they were made from::

    evaluation.safetensors   logits (n, C) float32; rows (n,) int64, their places in the cache; y (n,) int64
    evaluation.json          the figures, written last
    evaluation-NAME.json     figures on another split, another cache, NAME.h5, or a new source of images
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import safetensors.numpy

from pipeline.base.files import write_bytes, writing
from pipeline.base.workspace import Workspace
from pipeline.runs import folder as runs
from pipeline.runs import remarks
from pipeline.runs.folder import cache_of
from pipeline.runs.network import temperature_of
from pipeline.runs.tensors import read_tensors
from pipeline.stages.score import in_float32, words
from pipeline.stages.score.answers import LogitsOf, by_run, figures_of, look, require_head, score_rows
from pipeline.stages.score.elsewhere import Scored, named_by, new_images, other_cache, own_split
from pipeline.stages.score.figures import EVALUATION, EvaluateResult, ScoredRows, now, recorded
from pipeline.stages.score.ledger import Scorer
from pipeline.stages.score.settings import EvaluateSettings
from pipeline.stages.score.wrong import require_places, write_confusion, write_errors, wrong_images
from pipeline.store import Cache

LOGITS = "evaluation.safetensors"


def evaluate(settings: EvaluateSettings, desk: Workspace) -> EvaluateResult:
    """Score with settings made."""
    run = runs.find_run(settings.run, desk)
    require_places(settings.errors, settings.confusion)
    if run.stage != "finetune":  # its trunk has learned
        remarks.random_features(run.config["cache"]["about"], desk.watch)
    if settings.images is not None:
        scored: Scored | None = new_images(run, settings.images, settings, desk)
    elif settings.data is not None:
        scored = other_cache(run, settings.data, settings, desk)
    elif settings.own_split != "test":
        scored = own_split(run, settings.own_split, settings, desk)
    else:
        scored = None
    result = evaluated(run, desk, device=settings.device) if scored is None else scored.result.recorded()
    if scored is None and in_float32.wanted(run, result):
        rows = scored_rows(run, desk.silent(), device=settings.device)
        result = in_float32.with_float32(run, result, rows, desk, device=settings.device)
    _show(result, desk)
    if result.float32 is not None:
        for line in words.beside_float32(run.made_by["precision"], result.float32):
            desk.watch.result(line)
    named = words.rows_of(result.split, result.elsewhere)
    if settings.errors is not None:
        scored = scored or _own_test(run, result, settings, desk)
        found = wrong_images(scored, run.config["classes"], temperature_of(run))
        write_errors(found, result.test["n"], named, settings.errors, desk)
        result = dataclasses.replace(result, errors=settings.errors, wrong=found)
    if settings.confusion is not None:
        write_confusion(result, named, settings.confusion, desk)
        result = dataclasses.replace(result, confusion=settings.confusion)
    return result


def _own_test(run: runs.Run, result: EvaluateResult, settings: EvaluateSettings, desk: Workspace) -> Scored:
    """The run's test rows behind figures that have been taken."""
    rows = scored_rows(run, desk.silent(), device=settings.device)
    return Scored(result, rows, named_by(cache_of(run), desk))


def score(run: runs.Run, desk: Workspace, *, device: str) -> EvaluateResult:
    """A run that is at hand on its own test split, once, and shown; ``device`` is where a fine-tuned network runs.

    Raises:
        HeadError, CacheError: see ``pipeline.evaluate``.
    """
    result = evaluated(run, desk, device=device)
    _show(result, desk)
    return result


def evaluated(run: runs.Run, desk: Workspace, *, device: str) -> EvaluateResult:
    """The run's test figures: those recorded, or taken now and recorded.

    Raises:
        HeadError, CacheError: see :func:`evaluate`.
    """
    require_head(run)
    known = _known(run.folder, desk)
    if known is not None:
        return known
    cache = cache_of(run)
    logits_of = by_run(run, cache, desk, device)
    return _taken(Scorer.of(run.folder), run.folder, cache, logits_of, temperature_of(run), desk)


def evaluated_network(
    folder: Path, cache: Cache, logits_of: LogitsOf, temperature: float, desk: Workspace
) -> ScoredRows:
    """The test rows as ``logits_of`` scores them: once; figures and logits are kept in ``folder``, to become a run's.

    ``temperature`` is what its logits are divided by. ``logits_of`` is asked for test; for nothing where ``folder``
    holds the figures already.

    Raises:
        HeadError: there are no test rows, the folder cannot be written, or what it holds is damaged.
    """
    if _known(folder, desk) is None:
        name = f"finetune-{cache.path.name.removesuffix('.h5')}"  # it has no number yet
        _taken(Scorer.of(folder, name), folder, cache, logits_of, temperature, desk)
    return _kept_logits(folder)


def scored_rows(run: runs.Run, desk: Workspace, *, device: str) -> ScoredRows:
    """The logits behind the run's test figures, which are taken first where they are not there yet.

    Raises:
        HeadError: the file is damaged; or see :func:`evaluate`.
    """
    evaluated(run, desk, device=device)
    if not (run.folder / LOGITS).exists():
        # Figures from before logits were kept: the same head on the same rows, and the figures stay as they are.
        cache = cache_of(run)
        logits_of = by_run(run, cache, desk, device)
        look(Scorer.of(run.folder), run.folder, cache, desk)
        _write_logits(run.folder, score_rows(cache, ("test",), logits_of))
    return _kept_logits(run.folder)


def kept_rows(folder: Path) -> ScoredRows | None:
    """The logits behind recorded test figures, where both are kept: no look at a test row.

    Raises:
        HeadError: they are damaged.
    """
    there = (folder / EVALUATION).exists() and (folder / LOGITS).exists()
    return _kept_logits(folder) if there else None


def _known(folder: Path, desk: Workspace) -> EvaluateResult | None:
    """The test figures that are recorded in a folder."""
    known = recorded(folder)
    if known is None:
        return None
    which = words.as_which(known.scored_before)
    desk.watch.result(
        f"{folder.name} was scored on {known.scored}{which}: the test split is used once, these are its figures"
    )
    return known


def _taken(
    scorer: Scorer, folder: Path, cache: Cache, logits_of: LogitsOf, temperature: float, desk: Workspace
) -> EvaluateResult:
    """The test figures, taken now and recorded with their logits."""
    began = time.perf_counter()
    before = look(scorer, folder, cache, desk)
    scored = score_rows(cache, ("test",), logits_of)
    remarks.left_out(cache, ("test",), desk.watch)
    figures = figures_of(scored, cache.classes, temperature)
    _write_logits(folder, scored)
    return EvaluateResult(folder, figures, time.perf_counter() - began, now(), scored_before=before).recorded()


def _kept_logits(folder: Path) -> ScoredRows:
    return read_tensors(folder / LOGITS, ScoredRows, "delete it, and its rows are scored again")


def _write_logits(folder: Path, scored: ScoredRows) -> None:
    with writing(folder):
        write_bytes(folder / LOGITS, safetensors.numpy.save(vars(scored)))


def _show(result: EvaluateResult, desk: Workspace) -> None:
    for value in words.classes_of(result.test, result.split, result.elsewhere):
        desk.watch.result(value)
    first, *others = words.figures_lines(result.test, words.rows_of(result.split, result.elsewhere))
    desk.watch.result(f"{first} -> {result.file}")
    for line in others:
        desk.watch.result(line)
