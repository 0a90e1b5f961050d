"""`pipeline audit`: what a cache's images say against training on them.

Copies of one image in two splits or under two labels, near copies and labels that look wrong on request, tiny and empty
classes, failed images, class balance. Finding is reading: only ``--drop-leaks`` changes a cache, and only what is told.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ConfigError, DataError
from pipeline.base.files import write_bytes, writing
from pipeline.base.items import GOOD, NONE, ROW_COLUMNS, SPLITS, STATE_NAMES, TEST, TRAIN, VAL
from pipeline.base.spelling import option
from pipeline.base.words import csv_text, many
from pipeline.base.workspace import Workspace
from pipeline.runs.recipe import rebased
from pipeline.runs.remarks import tell_of_outdated
from pipeline.stages.score.wrong import require_places
from pipeline.stages.upkeep import audit_words, near
from pipeline.stages.upkeep.labels import labels
from pipeline.stages.upkeep.results import AuditReport, Copies, Labels, Near, Place
from pipeline.stages.upkeep.settings import AuditSettings
from pipeline.store import Cache, failures_path, read_failures
from pipeline.store.find import find_cache
from pipeline.store.rewrite import kept, locked, rewrite

NEAR_KEPT = 1000  # pairs with the highest cosines that are named; the others are counted
SUSPECT_COLUMNS = ("given", "self_confidence", "margin", "alike", "alike_class", "cosine")
FEW_TILES = 50  # of a search that is over before one would read how long it takes


def audit(settings: AuditSettings, desk: Workspace) -> AuditReport:
    """Audit with settings made."""
    cache = find_cache(settings.cache, desk)
    dropped: list[str] = []
    require_places(settings.suspects)
    if settings.drop_leaks:
        cache, dropped = _drop_leaks(cache, settings, desk)
    report = _report(cache, settings, dropped, desk)
    if report.labels is not None and settings.suspects is not None:
        _write_suspects(report.labels, settings.suspects)
    for told in audit_words.audited(report):
        desk.watch.result(told)
    for finding in report.findings:
        desk.watch.warn(finding)
    if not report.findings:
        desk.watch.result(f"{cache.path}: nothing found")
    if report.findings and settings.strict:
        raise DataError(f"{cache.path}: {many(len(report.findings), 'finding')}; the first: {report.findings[0]}")
    return report


def _report(cache: Cache, settings: AuditSettings, dropped: list[str], desk: Workspace) -> AuditReport:
    of_split = cache.counts()
    splits = [SPLITS[s] for s in (TRAIN, VAL, TEST) if of_split[SPLITS[s]]] or [SPLITS[NONE]]
    counts = {name: {split: per[split] for split in splits} for name, per in cache.class_counts().items()}
    train: list[int] = [n[splits[0]] for n in counts.values()]
    report = AuditReport(
        cache=cache.path,
        rows=len(cache),
        classes=counts,
        unlabelled=cache.unlabelled(),
        imbalance=max(train) / min(train) if all(train) and train else None,
        copies=_copies(cache),
        empty=_small(counts, 0, 0),
        tiny=_small(counts, 1, settings.tiny - 1),
        failed=_failed(cache),
        near=_near(cache, settings.near, desk) if settings.near is not None else None,
        dropped=dropped,
        findings=[],
        labels=labels(cache, settings, desk) if settings.labels else None,
        suspects=settings.suspects,
    )
    return dataclasses.replace(report, findings=audit_words.findings(report, settings))


def _write_suspects(found: Labels, file: Path) -> None:
    """The suspected rows as a table that ``pipeline relabel`` takes: by id, ``class`` the one that is proposed.

    ``label`` is the number of the class that the cache has, which tells relabel that the class is the new one.

    Raises:
        ConfigError: the file cannot be written.
    """
    suspects = [*found.suspects, *([] if found.test is None else found.test.suspects)]
    lines: list[tuple[object, ...]] = [(*ROW_COLUMNS, *SUSPECT_COLUMNS)]
    for one in suspects:
        figures = (f"{one.self_confidence:.6f}", f"{one.margin:.6f}")
        alike = ("", "", "") if one.alike is None else (one.alike.path, one.alike.label, f"{one.alike.cosine:.6f}")
        lines.append((one.path, one.number, one.proposed, one.split, one.label, *figures, *alike))
    with writing(file.parent, ConfigError, f"give another {option('suspects')}"):
        write_bytes(file, csv_text(lines).encode("utf-8", "surrogateescape"))  # a path's bytes come out as they were


def _good(cache: Cache) -> NDArray[np.bool_]:
    good: NDArray[np.bool_] = cache.states == GOOD
    return good


def _small(counts: dict[str, dict[str, int]], low: int, high: int) -> dict[str, list[str]]:
    """split -> classes that have between ``low`` and ``high`` images there; splits without any are left out."""
    splits = next(iter(counts.values()), {})
    found = {split: [name for name, n in counts.items() if low <= n[split] <= high] for split in splits}
    return {split: names for split, names in found.items() if names}


def _failed(cache: Cache) -> dict[str, str]:
    """Path -> kind and reason of each failed image."""
    told = read_failures(failures_path(cache.path))
    found = {}
    for row in np.flatnonzero(~_good(cache)).tolist():
        item = cache.ids[row]
        reason = f" ({told[item].reason})" if item in told else ""
        found[os.fsdecode(item)] = f"{STATE_NAMES[int(cache.states[row])]}{reason}"
    return found


def _place(cache: Cache, row: int) -> Place:
    label = int(cache.labels[row])
    name = cache.classes[label] if label >= 0 else ""
    return SPLITS[int(cache.splits[row])], name, os.fsdecode(cache.ids[row])


# -- the very same image ----------------------------------------------------------------------------------------------


def _content(cache: Cache) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The good rows (n,), and for each a number (n,) that rows with the same bytes share."""
    rows = np.flatnonzero(_good(cache))
    whole = np.ascontiguousarray(cache.digests[rows]).view("V32").ravel()
    return rows, np.unique(whole, return_inverse=True)[1].astype(np.int64).ravel()


def _copies(cache: Cache) -> Copies:
    rows, content = _content(cache)
    several = np.bincount(content, minlength=1)[content] > 1  # of a million images few have a copy
    rows, content = rows[several], content[several]
    order = np.argsort(content, kind="stable")
    groups = np.split(rows[order], np.flatnonzero(np.diff(content[order])) + 1) if len(rows) else []
    leaks, conflicts, within, in_train = [], [], 0, 0
    for group in groups:
        splits, labels = cache.splits[group], cache.labels[group]
        within += len(group) - len(np.unique(splits))
        in_train += max(0, int((splits == TRAIN).sum()) - 1)
        if len(np.unique(splits[splits > 0])) > 1:
            leaks.append(group)
        if len(np.unique(labels[labels >= 0])) > 1:
            conflicts.append(group)
    named = [
        [[_place(cache, row) for row in group.tolist()] for group in sorted(found, key=lambda g: int(g[0]))]
        for found in (leaks, conflicts)
    ]
    return Copies(leaks=named[0], conflicts=named[1], within=within, in_train=in_train)


def _drop_leaks(found: Cache, settings: AuditSettings, desk: Workspace) -> tuple[Cache, list[str]]:
    """The cache without its leaking train rows, and their paths."""
    with locked(found, settings.out) as (cache, target):
        rows, content = _content(cache)
        held = np.isin(cache.splits[rows], (VAL, TEST))
        leaking = rows[(cache.splits[rows] == TRAIN) & np.isin(content, content[held])]
        if len(leaking) and len(leaking) == int((cache.splits[rows] == TRAIN).sum()):
            raise DataError(f"{cache.path}: every train image is also in val or test: nothing of train would be left")
        if not len(leaking) and settings.out is None:
            desk.watch.result(f"{cache.path}: no train image is also in val or test: nothing to drop")
            return cache, []
        names = [os.fsdecode(cache.ids[row]) for row in leaking.tolist()]
        keep = np.setdiff1d(np.arange(len(cache)), leaking)
        step = f"audit: {len(names)} train rows dropped whose image is also in val or test"
        contents = kept(cache, keep, step)
        about = rebased(contents.about, cache.path.parent, target.parent)
        contents = dataclasses.replace(contents, about=about)
        made = rewrite(cache, keep, contents, target, desk)
    desk.watch.result(
        f"{len(names):,} of {len(cache):,} rows dropped from train -> {target}; while the images lie in the source, "
        "the next `pipeline extract` of it brings them back"
    )
    tell_of_outdated(made, desk)
    return made, names


# -- nearly the same image --------------------------------------------------------------------------------------------


def _near(cache: Cache, threshold: float, desk: Workspace) -> Near:
    """Pairs of good rows with a cosine of ``threshold`` or more, the very same images left out.

    Their upper triangle is gone through in tiles; how long that will take is told first, where it is long.
    """
    rows, content = _content(cache)
    with desk.watch.track("verify", len(cache), unit="rows") as bar:
        cache.verify(rows, progress=bar.advance)
    search = near.search_of(cache, rows, content, threshold)
    tiles, counts = search.tiles(), np.zeros(3, np.int64)
    kept = np.zeros((0, 4))  # crosses splits, cosine, left row, right row
    if len(tiles) > FEW_TILES:
        desk.watch.say(audit_words.comparing(len(rows), search.dimensions, near.estimate(search)))
    with desk.watch.track("compare", len(tiles), unit="tiles") as bar:
        for tile in tiles:
            left, right, cosines = search.in_tile(*tile)
            bar.advance(1)
            if not len(left):
                continue
            crosses = (cache.splits[left] != cache.splits[right]) & (cache.splits[left] > 0) & (cache.splits[right] > 0)
            labels = cache.labels[left], cache.labels[right]
            conflict = (labels[0] != labels[1]) & (labels[0] >= 0) & (labels[1] >= 0)
            counts += (len(left), crosses.sum(), conflict.sum())
            kept = np.concatenate([kept, np.column_stack([crosses, cosines, left, right])])
            if len(kept) > NEAR_KEPT:
                kept = kept[np.lexsort((kept[:, 3], kept[:, 2], -kept[:, 1], -kept[:, 0]))[:NEAR_KEPT]]
    kept = kept[np.lexsort((kept[:, 3], kept[:, 2], -kept[:, 1], -kept[:, 0]))]
    pairs = [(min(1.0, float(k[1])), _place(cache, int(k[2])), _place(cache, int(k[3]))) for k in kept]
    return Near(threshold, int(counts[0]), int(counts[1]), int(counts[2]), pairs, search.dimensions)
