"""What heads say of rows that they did not learn from: out-of-fold logits, and the temperature that they give.

A head that is refitted on train + val leaves no row that could tell how sure it may be. So heads with the same settings
are fitted without a fifth of the images each, and score those. Copies of an image (and its augmented views) are left
out together: a head that has learned an image's copy knows the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from pipeline.base.errors import HeadError
from pipeline.heads.scores.calibration import fit_temperature
from pipeline.runs.pixels import labelled
from pipeline.stages.learn.task import Task

FOLDS = 5
FILE = "held_out.safetensors"
REFERENCES = 8192  # rows at most among which a row's nearest is looked for


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Logits (n, C) float32 of rows by a head that did not learn from them; cache ``rows`` (n,) and labels ``y`` (n,).

    ``fold`` (n,) int64 is the fold that a row was left out in, 0 for all where one head scored them. ``distance`` (n,)
    float32 is 1 - the cosine of the raw features with those of the nearest row that the head did learn from.
    """

    logits: NDArray[np.float32]
    rows: NDArray[np.int64]
    y: NDArray[np.int64]
    fold: NDArray[np.int64]
    distance: NDArray[np.float32]

    @property
    def folds(self) -> int:
        """How many there are."""
        return int(self.fold.max()) + 1

    @property
    def temperature(self) -> float:
        """What the logits of such a head are to be divided by."""
        return fit_temperature(self.logits, self.y)

    def file(self) -> bytes:
        """As a safetensors file."""
        return safetensors.numpy.save({name: np.ascontiguousarray(tensor) for name, tensor in vars(self).items()})


def of_folds(task: Task[Any], logits: NDArray[np.float32], folds: NDArray[np.int64]) -> HeldOut:
    """Of train and val rows, views left out; ``logits`` (n, C) and ``folds`` (n,) are of ``task.both``."""
    own = ~task.is_view
    X, fold = task.both.X[own], folds[own]
    distance = np.empty(len(X), np.float32)
    for number in np.unique(fold):
        out = fold == number
        distance[out] = nearest(X[out], X[~out], seed=task.settings.seed)
    rows = np.concatenate([labelled(task.cache, split) for split in ("train", "val")])
    return HeldOut(logits[own], rows, task.both.y[own], fold, distance)


def of_val(task: Task[Any], logits: NDArray[np.float32]) -> HeldOut:
    """Of the val rows, by a head that learned from train; ``logits`` (n, C)."""
    val = task.val
    distance = nearest(val.X, task.train.X, seed=task.settings.seed)
    return HeldOut(logits, labelled(task.cache, "val"), val.y, np.zeros(len(val), np.int64), distance)


def fold_numbers(task: Task[Any], folds: int) -> NDArray[np.int64]:
    """The fold (n,) that each row of ``task.both`` is left out in, stratified by class; all of an image in one.

    Raises:
        HeadError: a class has fewer different images than there are folds.
    """
    y, images = task.both.y, task.images
    fewest = fewest_images(y, images)
    if fewest < 2:
        raise HeadError(
            f"--cv {folds}: a class has fewer than 2 images of its own, and no fold may leave out all of them: add "
            "images of it, or leave out --cv"
        )
    if fewest < folds:
        raise HeadError(f"--cv {folds}: the smallest class has {fewest} different images; give at most {fewest} folds")
    return numbered(y, images, folds, task.settings.seed)


def refit_folds(task: Task[Any]) -> NDArray[np.int64] | None:
    """The folds (n,) of ``task.both`` beside a refit; None where a class has too few images for one to be left out."""
    fewest = fewest_images(task.both.y, task.images)
    if fewest < 2:
        task.desk.watch.say(
            "a class has fewer than 2 images of its own: no temperature can be fitted, probabilities are as they are"
        )
        return None
    return numbered(task.both.y, task.images, min(FOLDS, fewest), task.settings.seed)


def fewest_images(y: NDArray[np.int64], images: NDArray[np.int64]) -> int:
    """How many different images (n,) the smallest class has; one under several labels (n,) counts for the first."""
    first = np.unique(images, return_index=True)[1]
    return int(np.bincount(y[first], minlength=int(y.max()) + 1)[np.unique(y)].min())


def numbered(y: NDArray[np.int64], images: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Fold numbers (n,) of rows with labels (n,) and image numbers (n,): images are dealt out, by their first label.

    So each fold holds images of every class, and misses some, where the smallest has as many as there are folds.
    """
    _, first, image = np.unique(images, return_index=True, return_inverse=True)
    rows, place = np.unique(first[image], return_inverse=True)  # in the order of the rows, which decides the draw
    numbers = np.empty(len(rows), np.int64)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for number, (_, out) in enumerate(splitter.split(rows, y[rows])):
        numbers[out] = number
    return numbers[place]


def nearest(X: NDArray[Any], known: NDArray[Any], *, seed: int) -> NDArray[np.float32]:
    """1 - cosine of each row (n, D) and the nearest of ``known`` (m, D), of which REFERENCES at most are looked at."""
    if len(known) > REFERENCES:
        known = known[np.sort(np.random.default_rng(seed).permutation(len(known))[:REFERENCES])]
    unit = torch.nn.functional.normalize(torch.from_numpy(np.array(known, np.float32)))
    found = np.empty(len(X), np.float32)
    for start in range(0, len(X), REFERENCES):
        piece = torch.from_numpy(np.array(X[start : start + REFERENCES], np.float32))
        found[start : start + len(piece)] = 1 - (torch.nn.functional.normalize(piece) @ unit.T).amax(dim=1).numpy()
    return found
