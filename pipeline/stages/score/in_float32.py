"""A head that learned from features of another precision, on the network in float32, which predict and export run.

The same test rows, their images once through the network: what the head is worth as it will be used, beside what it is
worth on the features that it was trained on. Chooses nothing.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pipeline.base.errors import CacheError, DataError, WeightsError
from pipeline.base.machine import cores
from pipeline.base.workspace import Workspace
from pipeline.heads.scores.metrics import classification_report
from pipeline.heads.scores.paired import paired_difference
from pipeline.runs import folder as runs
from pipeline.runs.folder import cache_of
from pipeline.runs.network import load_classifier
from pipeline.runs.pixels import pixel_batches
from pipeline.stages.score import words
from pipeline.stages.score.figures import EvaluateResult, InFloat32, ScoredRows


def wanted(run: runs.Run, known: EvaluateResult) -> bool:
    """Whether the run's head is used on another network than its figures are of, and that is not scored yet."""
    return run.learned_in is not None and known.float32 is None


def with_float32(
    run: runs.Run, known: EvaluateResult, scored: ScoredRows, desk: Workspace, *, device: str
) -> EvaluateResult:
    """The run's test figures, and recorded with them those of the network in float32 on the same rows ``scored``.

    Where the images or the weights are not to be had, that is told and the figures are what they were.
    """
    try:
        found = _in_float32(run, scored, desk, device)
    except (CacheError, DataError, WeightsError) as error:
        desk.watch.warn(words.not_in_float32(str(error)))
        return known
    return dataclasses.replace(known, float32=found).recorded()


def _in_float32(run: runs.Run, scored: ScoredRows, desk: Workspace, device: str) -> InFloat32:
    classifier = load_classifier(run, desk, images=len(scored.rows), device=device)
    logits = np.empty_like(scored.logits)
    batches = pixel_batches(
        cache_of(run), scored.rows.tolist(), geometry=classifier.geometry, size=classifier.batch, workers=cores()
    )
    at = 0
    with desk.watch.track("test images in float32", len(scored.rows)) as bar:
        for rows, pixels in batches:
            logits[at : at + len(rows)] = classifier(pixels).logits
            at += len(rows)
            bar.advance(len(rows))
    scores = classification_report(scored.y, logits, run.config["classes"], areas=False)
    difference = paired_difference(*(one.argmax(axis=1) == scored.y for one in (scored.logits, logits)))
    return InFloat32(accuracy=scores.accuracy, log_loss=scores.log_loss, difference=difference)
