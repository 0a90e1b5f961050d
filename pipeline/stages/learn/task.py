"""What stage two works on: a cache's train and val rows, the settings, and the desk; one object for all its verbs.

Test rows are not in it: what fits and chooses is handed nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ConfigError, HeadError
from pipeline.base.machine import resolve_device
from pipeline.base.memory import memory_share
from pipeline.base.spelling import option
from pipeline.base.words import many, size
from pipeline.base.workspace import Workspace
from pipeline.heads.exact.path import ExactFit, Step, fit_exact
from pipeline.heads.exact.room import held_bytes
from pipeline.heads.problem import Problem, Split
from pipeline.runs import folder as runs
from pipeline.runs import remarks
from pipeline.runs.pixels import labelled
from pipeline.runs.recipe import require_ours
from pipeline.stages.learn.settings import HeadSettings
from pipeline.store import Cache
from pipeline.store.find import find_cache
from pipeline.store.rows import Rows, load_rows, with_views

S = TypeVar("S", bound=HeadSettings)


@dataclass(frozen=True, eq=False)
class Task(Generic[S]):
    """The labelled good rows of a cache to learn from (``train``) and to choose by (``val``, perhaps none)."""

    cache: Cache
    own: Rows  # train rows, and val rows below them
    train: Rows  # a view of them; with augmented views of its images a copy
    val: Rows
    settings: S
    desk: Workspace

    @functools.cached_property
    def both(self) -> Rows:
        """Train and val rows together."""
        if not self.settings.views:
            return self.own
        if not len(self.val):
            return self.train
        return Rows(*(np.concatenate(pair) for pair in ((self.train.X, self.val.X), (self.train.y, self.val.y))))

    @property
    def device(self) -> str:
        """Where heads are fitted."""
        return device_of_heads(self.settings.device)

    @functools.cached_property
    def images(self) -> NDArray[np.int64]:
        """The number (n,) of each row's image among the different ones of ``both``; a view's is its image's."""
        train, val = (self.cache.digests[labelled(self.cache, split)] for split in ("train", "val"))
        views = len(self.train) // len(train) if len(train) else 1
        digests = np.concatenate([*[train] * views, val])
        return np.unique(np.ascontiguousarray(digests).view("V32").ravel(), return_inverse=True)[1]

    @property
    def is_view(self) -> NDArray[np.bool_]:
        """Which rows (n,) of ``both`` are augmented views."""
        place = np.arange(len(self.train) + len(self.val))
        return (place >= len(labelled(self.cache, "train"))) & (place < len(self.train))

    def problem(self, rows: Rows, *, val: Rows | None = None, folds: NDArray[np.int64] | None = None) -> Problem:
        """What the solvers are handed: ``rows`` to learn from, and val rows to watch where there are any.

        Raises:
            HeadError: rows that cannot be learned from.
            ConfigError: a device that is not there.
        """
        return Problem(
            rows.X,
            rows.y,
            len(self.cache.classes),
            class_names=self.cache.classes,
            class_weight=self.settings.weighting,
            folds=folds,
            val=Split(val.X, val.y) if val is not None and len(val) else None,
            val_metric=self.settings.val_metric,
            device=self.device,
            memory=self.settings.memory_bytes,
        )

    def exact(
        self,
        rows: Rows,
        Cs: Sequence[float],
        *,
        folds: NDArray[np.int64] | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> list[ExactFit]:
        """The exact heads of ``rows``; where memory does not allow what would be faster, it is said."""
        problem = self.problem(rows, folds=folds)
        self.say_if_not_held(held_bytes(problem, len(Cs) * (1 + problem.n_folds)))
        return fit_exact(problem, Cs, on_step=on_step)

    @property
    def memory(self) -> int:
        """Bytes of the device that rows may be held in.

        Raises:
            ConfigError: a device that is not there.
        """
        told = self.settings.memory_bytes
        return memory_share(self.device) if told is None else told

    def say_if_not_held(self, needed: int) -> None:
        """Say that rows which take so many bytes are read for each pass, where there is less memory for them."""
        if needed > self.memory:
            self.desk.watch.say(
                f"the rows are read anew for each pass: held they take {size(needed)}, and "
                f"{option('memory')} allows {size(self.memory)}"
            )


def device_of_heads(requested: str) -> str:
    """The device that heads are fitted on.

    Raises:
        ConfigError: one that is not there, or that has no float64.
    """
    found = resolve_device(requested)
    if found == "mps":
        raise ConfigError(
            f"{option('device', found)} runs a trunk alone: heads are fitted in float64 as well, which it does not "
            f"have; give {option('device', 'cpu')}"
        )
    return found


def task_of(settings: S, desk: Workspace) -> Task[S]:
    """The rows that the settings name, checked before long work.

    Raises:
        CacheError: no such cache, or a damaged one.
        HeadError: no train rows, or a folder that cannot be written.
        ConfigError: a device that is not there.
    """
    device_of_heads(settings.device)
    cache = find_cache(settings.cache, desk)
    require_ours(cache)
    runs.require_writable(desk)
    # Loaded together: where an image failed, rows are a copy, and both splits and the two joined are then one of it.
    own, n = load_rows(cache, "train", "val"), len(labelled(cache, "train"))
    train, val = Rows(own.X[:n], own.y[:n]), Rows(own.X[n:], own.y[n:])
    if settings.views:
        train = with_views(cache, train, settings.views)
    if not len(train):
        raise HeadError(
            f"{cache.path.name} has no labelled train rows: name another cache, or extract a source with train images"
        )
    remarks.random_features(cache.about, desk.watch)
    remarks.left_out(cache, ("none", "train", "val"), desk.watch, to_learn=True)
    desk.watch.say(
        f"{cache.path.name}: {many(len(train), 'train row')}, {many(len(val), 'val row')}, "
        f"{many(cache.dim, 'feature')}, {many(len(cache.classes), 'class')}"
    )
    return Task(cache, own, train, val, settings, desk)
