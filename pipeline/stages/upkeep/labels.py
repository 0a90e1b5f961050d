"""Labels that look wrong: exact heads by cross-validation say of each train and val row what it seems to be.

The penalty is the one whose heads say most of rows that they were fitted without. Copies of an image, and images of one
group, are left out together: a head that has learned an image's copy repeats its label. Test rows are judged on
request alone, by the head of train and val, and then that is a look at test that is counted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.base.errors import ConfigError, HeadError
from pipeline.base.items import SPLITS
from pipeline.base.spelling import option
from pipeline.base.words import many, named
from pipeline.base.workspace import Workspace
from pipeline.heads import folds as dealt
from pipeline.heads.choice import PENALTIES, order
from pipeline.heads.exact.path import ExactFit, fit_exact
from pipeline.heads.left_out import left_out_figures, left_out_logits, linear_logits
from pipeline.heads.problem import Problem
from pipeline.heads.scores.calibration import fit_temperature
from pipeline.heads.scores.label_noise import LabelNoise, label_noise
from pipeline.runs.pixels import labelled
from pipeline.runs.recipe import require_ours
from pipeline.runs.remarks import random_features
from pipeline.stages.score.ledger import Scorer
from pipeline.stages.score.sealed import open_test, require_test
from pipeline.stages.upkeep import near
from pipeline.stages.upkeep.results import Alike, Labels, Pair, Suspect, Trial
from pipeline.stages.upkeep.settings import AuditSettings
from pipeline.store import Cache
from pipeline.store.rows import Rows, load_rows

FOLDS = 5  # where nobody says, or as many as the smallest class allows
FLIPPED, FEWEST_FLIPPED = 0.02, 20  # of a trial: the share of all labels, but at least so many
FLIPPED_OF = 20  # rows that a class has at least which some are flipped of
PIECE = 512  # suspects that are compared with all rows at once


@dataclass(frozen=True, eq=False)
class _Judged:
    """Rows of a cache, their places ``at`` (n,) in it, the group (n,) that each is of, and classes that are judged."""

    cache: Cache
    rows: Rows
    at: NDArray[np.int64]
    groups: NDArray[np.int64]
    classes: NDArray[np.int64]  # (C,): the cache's numbers of them
    omitted: list[str]  # classes of which no fold can leave all out

    @property
    def y(self) -> NDArray[np.int64]:
        """(n,): labels, 0 ... C - 1."""
        return np.searchsorted(self.classes, self.rows.y)


def labels(cache: Cache, settings: AuditSettings, desk: Workspace) -> Labels:
    """Judge the labels of a cache's train and val rows, on request of its test rows.

    Raises:
        HeadError: no rows, one class only, or folds that the smallest class has too few images for.
        ConfigError: no such column of groups.
    """
    require_ours(cache)
    random_features(cache.about, desk.watch)
    if settings.test:
        require_test(cache)
    judged = _judged(cache, settings)
    folds = _folds(judged, settings)
    Cs = PENALTIES if settings.C is None else (settings.C,)
    with desk.watch.track("labels", len(Cs) * (2 + int(folds.max())), unit="heads") as bar:
        names = [cache.classes[c] for c in judged.classes.tolist()]
        problem = Problem(judged.rows.X, judged.y, len(names), class_names=names, folds=folds)
        fits = fit_exact(problem, Cs)
        bar.advance(len(fits))
    figures = left_out_figures(fits, judged.rows.X, judged.y, folds)
    C = min(figures, key=lambda one: order(figures[one], C=one))
    logits = left_out_logits(fits, C, judged.rows.X, folds)
    temperature = fit_temperature(logits, judged.y)
    noise = label_noise(logits, judged.y, temperature, seed=settings.seed)
    whole = next(fit for fit in fits if fit.C == C and fit.fold < 0)
    trial = _trial(problem, C, folds, settings.seed)
    return Labels(
        rows=len(judged.at),
        folds=int(folds.max()) + 1,
        C=C,
        chosen_from=len(Cs),
        accuracy=figures[C]["accuracy"],
        share=noise.share,
        interval=noise.interval,
        suspects=_suspects(judged, judged, noise),
        pairs=_pairs(judged, noise),
        omitted=judged.omitted,
        trial=trial,
        test=_of_test(judged, whole, temperature, settings, desk) if settings.test else None,
    )


def _judged(cache: Cache, settings: AuditSettings) -> _Judged:
    """The labelled train and val rows, without classes that have but one image."""
    at = np.concatenate([labelled(cache, split) for split in ("train", "val")])
    if not len(at):
        raise HeadError(
            f"{cache.path.name} has no labelled train or val rows to judge: name another cache, or extract a source "
            "with labels"
        )
    rows, groups = load_rows(cache, "train", "val"), _groups(cache, at, settings)
    first = np.unique(groups, return_index=True)[1]
    several = np.bincount(rows.y[first], minlength=len(cache.classes)) > 1
    there = np.bincount(rows.y, minlength=len(cache.classes)) > 0
    kept = several[rows.y]
    omitted = [cache.classes[c] for c in np.flatnonzero(there & ~several).tolist()]
    classes = np.flatnonzero(several)
    if len(classes) < 2:
        raise HeadError(
            f"{cache.path.name} has {many(len(classes), 'class')} of two or more images: labels are judged against "
            "each other, and at least 2 are needed"
        )
    if not kept.all():
        rows, at, groups = Rows(rows.X[kept], rows.y[kept]), at[kept], groups[kept]
    return _Judged(cache, rows, at, groups, classes, omitted)


def _groups(cache: Cache, at: NDArray[np.int64], settings: AuditSettings) -> NDArray[np.int64]:
    """A number (n,) for each of the rows that rows share which are copies, or of one group."""
    content = np.unique(np.ascontiguousarray(cache.digests[at]).view("V32").ravel(), return_inverse=True)[1]
    if settings.groups is None:
        return content.astype(np.int64)
    if settings.groups not in cache.columns:
        there = named(list(cache.columns)) if cache.columns else "none"
        raise ConfigError(
            f"{option('groups', settings.groups)}: the columns that {cache.path.name} has kept of its manifest: {there}"
        )
    cells = cache.columns[settings.groups]
    texts = [cells[row] for row in at.tolist()]
    group = np.unique(texts, return_inverse=True)[1].astype(np.int64)
    alone = np.array([not text for text in texts])  # an empty cell is no group
    group[alone] = group.max() + 1 + np.arange(alone.sum())
    # A row ties its image to its group, and so may tie one group to another.
    n = int(content.max()) + 1
    edges = (np.ones(len(at), bool), (content, n + group))
    size = n + int(group.max()) + 1
    found: NDArray[np.int64] = connected_components(coo_array(edges, shape=(size, size)), directed=False)[1][content]
    return found


def _folds(judged: _Judged, settings: AuditSettings) -> NDArray[np.int64]:
    fewest = dealt.fewest_groups(judged.y, judged.groups)
    if settings.folds is not None and settings.folds > fewest:
        what = "groups of images" if settings.groups else "different images"
        raise HeadError(
            f"{option('folds', settings.folds)}: the smallest class has {fewest} {what}; give at most {fewest} folds"
        )
    return dealt.fold_numbers(judged.y, judged.groups, settings.folds or min(FOLDS, fewest), settings.seed)


def _trial(problem: Problem, C: float, folds: NDArray[np.int64], seed: int) -> Trial | None:
    """How labels that are wrong for certain would be found: some are flipped, and the same is done again at that C.

    Each gets another class, all equally likely. None where no class has rows enough to lose some.
    """
    rng, n, y = np.random.default_rng(seed), len(problem.y), np.array(problem.y)
    able = np.flatnonzero(np.bincount(y, minlength=problem.n_classes)[y] >= FLIPPED_OF)
    flipped = rng.permutation(able)[: min(max(round(FLIPPED * n), FEWEST_FLIPPED), len(able) // 10)]
    if not len(flipped):
        return None
    y[flipped] = (y[flipped] + rng.integers(1, problem.n_classes, len(flipped))) % problem.n_classes
    fits = fit_exact(dataclasses.replace(problem, y=y), [C])
    logits = left_out_logits(fits, C, problem.X, folds)
    noise = label_noise(logits, y, fit_temperature(logits, y), seed=seed)
    first = noise.order[: len(flipped)]
    return Trial(
        flipped=len(flipped),
        found=int(np.isin(flipped, noise.order).sum()),
        listed=len(noise.order),
        among_first=int(np.isin(first, flipped).sum()),
    )


def _of_test(judged: _Judged, fit: ExactFit, temperature: float, settings: AuditSettings, desk: Workspace) -> Labels:
    """The same of test rows, by the head of train and val; of their classes those that it knows.

    A head repeats the label of an image that it has learned, so copies of train and val rows, and rows of their groups,
    are not judged.
    """
    cache = judged.cache
    mark = hashlib.sha256(fit.weight.tobytes() + fit.bias.tobytes()).hexdigest()
    opened = open_test(cache, Scorer(f"audit-{cache.path.name.removesuffix('.h5')}", mark), desk)
    known = np.isin(opened.rows.y, judged.classes)
    omitted = sorted({cache.classes[c] for c in opened.rows.y[~known].tolist()})
    mine, groups = np.split(_groups(cache, np.concatenate([judged.at, opened.at]), settings), [len(judged.at)])
    seen = np.isin(groups, mine)
    kept = known & ~seen
    if not kept.any():
        raise HeadError(
            f"{cache.path.name}: no test label can be judged: {many(int(seen.sum()), 'test row')} of {len(seen)} also "
            "in train or val, the others of classes that have too few images"
        )
    rows = Rows(opened.rows.X[kept], opened.rows.y[kept])
    test = _Judged(cache, rows, opened.at[kept], groups[kept], judged.classes, omitted)
    logits = linear_logits(rows.X, fit.weight, fit.bias)
    noise = label_noise(logits, test.y, temperature, seed=settings.seed)
    return Labels(
        rows=len(test.at),
        folds=0,
        C=fit.C,
        chosen_from=1,
        accuracy=float((logits.argmax(axis=1) == test.y).mean()),
        share=noise.share,
        interval=noise.interval,
        suspects=_suspects(test, judged, noise),
        pairs=_pairs(test, noise),
        omitted=omitted,
        seen=int(seen.sum()),
        scored_before=opened.scored_before,
    )


def _pairs(judged: _Judged, noise: LabelNoise) -> list[Pair]:
    names = [judged.cache.classes[c] for c in judged.classes.tolist()]
    return [Pair(names[label], names[other], n, estimated) for label, other, n, estimated in noise.pairs()]


def _suspects(judged: _Judged, among: _Judged, noise: LabelNoise) -> list[Suspect]:
    """The suspected rows, the most suspect first, each with the most alike row that has another label."""
    cache, places = judged.cache, noise.order
    alike = _alike(judged, places, among)
    ids, classes = cache.ids, cache.classes
    found = []
    for row, place in enumerate(places.tolist()):
        at = int(judged.at[place])
        found.append(
            Suspect(
                path=os.fsdecode(ids[at]),
                split=SPLITS[int(cache.splits[at])],
                number=int(cache.labels[at]),
                label=classes[int(cache.labels[at])],
                proposed=classes[int(judged.classes[noise.predicted[place]])],
                self_confidence=float(noise.self_confidence[place]),
                margin=float(noise.margin[place]),
                alike=alike[row],
            )
        )
    return found


def _alike(judged: _Judged, places: NDArray[np.int64], among: _Judged) -> list[Alike | None]:
    """Of each place the row of ``among`` with other bytes and the highest cosine, where its label is another."""
    cache, found = judged.cache, list[Alike | None]()
    mine = np.ascontiguousarray(cache.digests[judged.at[places]]).view("V32").ravel()
    theirs = np.ascontiguousarray(cache.digests[among.at]).view("V32").ravel()
    unit, n = near.unit(cache, judged.at[places]), len(places)
    best, where = np.full(n, -2.0, np.float32), np.zeros(n, np.int64)
    for first in range(0, len(among.at), near.TILE):
        part = slice(first, first + near.TILE)
        others = near.unit(cache, among.at[part]).T
        for start in range(0, n, PIECE):
            piece = slice(start, start + PIECE)
            cosines = unit[piece] @ others
            cosines[mine[piece, None] == theirs[part]] = -2
            at = cosines.argmax(axis=1)
            value = cosines[np.arange(len(at)), at]
            where[piece] = np.where(value > best[piece], first + at, where[piece])
            best[piece] = np.maximum(best[piece], value)
    for value, place, label in zip(best.tolist(), where.tolist(), judged.rows.y[places].tolist(), strict=True):
        row = int(among.at[place])
        other = Alike(os.fsdecode(cache.ids[row]), cache.classes[int(cache.labels[row])], min(1.0, value))
        found.append(other if value > -2 and among.rows.y[place] != label else None)
    return found
