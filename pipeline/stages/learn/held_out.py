"""What heads say of rows that they did not learn from: out-of-fold logits, and the temperature that they give.

A head that is refitted on train + val leaves no row that could tell how sure it may be. So heads with the same settings
are fitted without a fifth of the images each, and score those. Copies of an image (and its augmented views) are left
out together: a head that has learned an image's copy knows the image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.base.arithmetic import arithmetic
from pipeline.base.errors import HeadError
from pipeline.base.spelling import option
from pipeline.heads import folds as dealt
from pipeline.runs.held_out import HeldOut
from pipeline.runs.pixels import labelled
from pipeline.stages.learn.task import Task

FOLDS = 5
REFERENCES = 8192  # rows at most among which a row's nearest is looked for
PIECE = 2048  # rows that are compared with them at once


def of_folds(task: Task[Any], logits: NDArray[np.float32], folds: NDArray[np.int64]) -> HeldOut:
    """Of train and val rows, views left out; ``logits`` (n, C) and ``folds`` (n,) are of ``task.both``."""
    own = np.flatnonzero(~task.is_view)
    fold, distance = folds[own], np.empty(len(own), np.float32)
    for number in np.unique(fold):
        out = fold == number
        distance[out] = nearest(task.both.X, own[out], own[~out], seed=task.settings.seed)
    rows = np.concatenate([labelled(task.cache, split) for split in ("train", "val")])
    return HeldOut(logits[own], rows, task.both.y[own], fold, distance)


def of_val(task: Task[Any], logits: NDArray[np.float32]) -> HeldOut:
    """Of the val rows, by a head that learned from train; ``logits`` (n, C)."""
    train, val = np.arange(len(task.train)), np.arange(len(task.train), len(task.both))
    distance = nearest(task.both.X, val, train, seed=task.settings.seed)
    return HeldOut(logits, labelled(task.cache, "val"), task.val.y, np.zeros(len(val), np.int64), distance)


def fold_numbers(task: Task[Any], folds: int) -> NDArray[np.int64]:
    """The fold (n,) that each row of ``task.both`` is left out in, stratified by class; all of an image in one.

    Raises:
        HeadError: a class has fewer different images than there are folds.
    """
    y, images = task.both.y, task.images
    fewest = dealt.fewest_groups(y, images)
    if fewest < 2:
        raise HeadError(
            f"{option('cv', folds)}: a class has fewer than 2 images of its own, and no fold may leave out all "
            "of them: add "
            f"images of it, or leave out {option('cv')}"
        )
    if fewest < folds:
        raise HeadError(
            f"{option('cv', folds)}: the smallest class has {fewest} different images; give at most {fewest} folds"
        )
    return dealt.fold_numbers(y, images, folds, task.settings.seed)


def refit_folds(task: Task[Any]) -> NDArray[np.int64] | None:
    """The folds (n,) of ``task.both`` beside a refit; None where a class has too few images for one to be left out."""
    fewest = dealt.fewest_groups(task.both.y, task.images)
    if fewest < 2:
        task.desk.watch.say(
            "a class has fewer than 2 images of its own: no temperature can be fitted, probabilities are as they are"
        )
        return None
    return dealt.fold_numbers(task.both.y, task.images, min(FOLDS, fewest), task.settings.seed)


@arithmetic()
def nearest(X: NDArray[Any], at: NDArray[np.int64], known: NDArray[np.int64], *, seed: int) -> NDArray[np.float32]:
    """1 - cosine of each row ``at`` (n,) of X and the nearest of the rows ``known`` (m,); REFERENCES at most of these
    are looked at.
    """
    if len(known) > REFERENCES:
        known = known[np.sort(np.random.default_rng(seed).permutation(len(known))[:REFERENCES])]
    unit = torch.nn.functional.normalize(torch.from_numpy(np.array(X[known], np.float32)))
    found = np.empty(len(at), np.float32)
    for start in range(0, len(at), PIECE):
        piece = torch.from_numpy(np.array(X[at[start : start + PIECE]], np.float32))
        found[start : start + len(piece)] = 1 - (torch.nn.functional.normalize(piece) @ unit.T).amax(dim=1).numpy()
    return found
