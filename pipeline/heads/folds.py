"""Which rows are left out together: folds of images, stratified by class. Knows labels and groups of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedKFold

Numbers = npt.NDArray[np.int64]


def fewest_groups(y: Numbers, groups: npt.NDArray[Any]) -> int:
    """How many different groups (n,) the smallest class has; one under several labels (n,) counts for the first."""
    first = np.unique(groups, return_index=True)[1]
    return int(np.bincount(y[first], minlength=int(y.max()) + 1)[np.unique(y)].min())


def fold_numbers(y: Numbers, groups: npt.NDArray[Any], folds: int, seed: Any) -> Numbers:
    """Fold numbers (n,) of rows with labels (n,): groups (n,), such as copies of an image, are dealt out whole.

    Each goes by its first label, so that each fold holds groups of every class, and misses some, where the smallest
    class has as many as there are folds. ``seed`` is scikit-learn's ``random_state``.
    """
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    rows, place = np.unique(first[group], return_inverse=True)  # in the order of the rows, which decides the draw
    numbers = np.empty(len(rows), np.int64)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for number, (_, out) in enumerate(splitter.split(rows, y[rows])):
        numbers[out] = number
    return numbers[place]


def halves(y: Numbers, groups: npt.NDArray[Any], seed: Any) -> Numbers:
    """The half, 0 or 1, of each row (n,): groups (n,), such as copies of an image, whole, as equal of each class.

    Each goes by its first label. Of a class with an odd number of groups a half has one more, each half in turn; a
    class may have a single one.
    """
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(first))
    by_class = shuffled[np.argsort(y[first[shuffled]], kind="stable")]
    half = np.empty(len(first), np.int64)
    half[by_class] = np.arange(len(first)) % 2
    return half[group]
