"""A run's figures on other rows than its test split: another split, another cache of its key, new images."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline import images
from pipeline.base.errors import CacheError, DataError, HeadError
from pipeline.base.items import SPLITS, TEST
from pipeline.base.machine import cores
from pipeline.base.spelling import option
from pipeline.base.words import many
from pipeline.base.workspace import Workspace
from pipeline.heads.artifact import match_classes
from pipeline.images import Listing, Loaded
from pipeline.runs import folder as runs
from pipeline.runs import remarks
from pipeline.runs.folder import cache_of
from pipeline.runs.folder import require_key as require_run_key
from pipeline.runs.held_out import read_held_out
from pipeline.runs.network import Classifier, classified, load_classifier, temperature_of
from pipeline.runs.recipe import images_from
from pipeline.stages.score import ledger, words
from pipeline.stages.score.answers import by_run, figures_of, look, require_head, score_rows
from pipeline.stages.score.figures import EvaluateResult, ScoredRows, now
from pipeline.stages.score.ledger import Scorer
from pipeline.stages.score.settings import EvaluateSettings
from pipeline.store import Cache
from pipeline.store.find import find_cache


@dataclass(frozen=True, eq=False)
class Scored:
    """A result, and what it was made from: the rows' logits and labels, the head's; ``name`` says what a row is of."""

    result: EvaluateResult
    rows: ScoredRows
    name: Callable[[int], str]


def named_by(cache: Cache, desk: Workspace) -> Callable[[int], str]:
    """What a row of the cache is the image of: for a file its path."""
    found = images_from(cache)
    if not found.there():
        desk.watch.warn(f"the images of {cache.path.name} are not at {found.place} any more: paths are those of then")
    return lambda row: found.name(cache.ids[row])


def own_split(run: runs.Run, split: str, settings: EvaluateSettings, desk: Workspace) -> Scored:
    """The run's figures on rows of its own cache that are not its test split alone."""
    require_head(run)
    began, cache = time.perf_counter(), cache_of(run)
    _, chosen = splits_of(cache, split)
    scored, before = _of_cache(run, cache, chosen, settings, desk)
    learned = [name for name in run.config.get("learned_from", ["train"]) if name in chosen]
    scored, folds = _left_out(run, cache, learned, scored)
    if folds is not None:
        desk.watch.say(words.left_out(run.folder.name, learned, folds))
    elif learned:
        desk.watch.warn(words.learned(run.folder.name, learned, alone=len(learned) == len(chosen)))
    figures = figures_of(scored, cache.classes, temperature_of(run))
    took = time.perf_counter() - began
    result = EvaluateResult(run.folder, figures, took, now(), split, scored_before=before, folds=folds)
    return Scored(result, scored, named_by(cache, desk))


def _left_out(run: runs.Run, cache: Cache, learned: list[str], scored: ScoredRows) -> tuple[ScoredRows, int | None]:
    """The rows that the head has learned from, as heads say that left them out; and in how many folds, if it is known.

    Raises:
        HeadError: what is kept of it is damaged.
    """
    held = read_held_out(run.folder) if learned else None
    if held is None:
        return scored, None
    known = np.isin(cache.splits[scored.rows], [SPLITS.index(name) for name in learned])
    place = dict(zip(held.rows.tolist(), range(len(held.rows)), strict=True))
    at = [place.get(row, -1) for row in scored.rows[known].tolist()]
    if -1 in at or held.logits.shape[1] != scored.logits.shape[1]:
        return scored, None
    logits = scored.logits.copy()
    logits[known] = held.logits[at]
    return dataclasses.replace(scored, logits=logits), held.folds


def other_cache(run: runs.Run, data: str, settings: EvaluateSettings, desk: Workspace) -> Scored | None:
    """The run's figures on rows of another cache; None where these are the run's own test rows."""
    require_head(run)
    began, cache = time.perf_counter(), find_cache(data, desk)
    bounds = ""
    if "calibration" in run.made_by:
        bounds = f", and {option('calibration', run.config['cache']['path'])}"
    cure = f"extract it with the run's settings{bounds}"
    require_run_key(run, cache, f"has another settings fingerprint than {run.folder.name}", cure)
    split, chosen = splits_of(cache, settings.split)
    if split == "test" and cache.content == run.config["cache"]["content"]:
        return None
    place = match_classes(run.config["classes"], cache.classes)
    scored, before = _of_cache(run, cache, chosen, settings, desk)
    scored = dataclasses.replace(scored, y=place[scored.y])
    own = _own(run, desk)
    shared = None if own is None else _count_shared(run, own, cache.digests[scored.rows], desk)
    figures, name = figures_of(scored, run.config["classes"], temperature_of(run)), cache.path.name.removesuffix(".h5")
    took = time.perf_counter() - began
    result = EvaluateResult(run.folder, figures, took, now(), split, name, before, shared=shared)
    return Scored(result, scored, named_by(cache, desk))


def _of_cache(
    run: runs.Run, cache: Cache, chosen: tuple[str, ...], settings: EvaluateSettings, desk: Workspace
) -> tuple[ScoredRows, int | None]:
    """The rows of some splits, and how many others had been scored on its test rows, if those are among them."""
    logits_of = by_run(run, cache, desk, settings.device)
    before = look(Scorer.of(run.folder), run.folder, cache, desk) if "test" in chosen else None
    remarks.left_out(cache, chosen if len(chosen) == 1 else SPLITS, desk.watch)
    return score_rows(cache, chosen, logits_of), before


def splits_of(cache: Cache, asked: str | None) -> tuple[str, tuple[str, ...]]:
    """What was asked for, or test, or all where nothing is split; and the cache's splits with such rows.

    Raises:
        HeadError: there are no such rows.
    """
    there = [name for name in SPLITS if (cache.labels[cache.rows(name)] >= 0).any()]
    split = asked or ("all" if len(there) == 1 else "test")  # one split alone holds nothing apart
    chosen = tuple(name for name in there if split in (name, "all"))
    if not chosen:
        raise HeadError(f"{cache.path.name} has no labelled {split} rows: {_cure(there)}")
    return split, chosen


def _cure(there: Collection[str]) -> str:
    legal = ", ".join([*(name for name in there if name != "none"), "all"]) if there else ""
    return f"choose {option('split')} from {legal}" if there else "extract it with labels"


def _own(run: runs.Run, desk: Workspace) -> Cache | None:
    """The cache that the run learned from, where it is still there; that it is not is told."""
    try:
        return cache_of(run)
    except CacheError as error:
        desk.watch.warn(f"no look for images that {run.folder.name} has learned from: {error}")
        return None


def _count_shared(run: runs.Run, own: Cache, digests: NDArray[np.uint8], desk: Workspace) -> int:
    """How many of the images are ones that the run was fitted or chosen on; it is said, where there are any."""
    seen = {digest.tobytes() for split in ("train", "val") for digest in own.digests[own.rows(split)]}
    shared = sum(digest.tobytes() in seen for digest in digests)
    if shared:
        desk.watch.warn(
            f"{shared:,} of these {len(digests):,} images are among the train and val images of {run.folder.name}: "
            "its figures on them are better than on new ones"
        )
    return shared


# -- new images -------------------------------------------------------------------------------------------------------


def new_images(run: runs.Run, source: str, settings: EvaluateSettings, desk: Workspace) -> Scored:
    """The run's figures on a source's labelled images, which go through its network once; no cache is written.

    Raises:
        DataError: the source has no labelled images of that split, or none that can be used.
        HeadError: a class that the head does not know.
    """
    require_head(run)
    began, listing = time.perf_counter(), images.list_source(source, desk, to_learn=False)
    _tell(listing, desk)
    split, items = _chosen(listing, settings.split, desk)
    meant = listing.splits == SPLITS.index(split) if split in SPLITS else np.ones(len(listing), bool)
    if bare := int((meant & (listing.labels < 0)).sum()):
        desk.watch.say(f"left out: {many(bare, 'image')} without a label")
    place = match_classes(run.config["classes"], listing.classes)
    classifier = load_classifier(run, desk, images=len(items), device=settings.device)
    ids = [listing.ids[item] for item in items.tolist()]
    digests = images.digest_many(listing.images, ids, workers=cores())
    names = [listing.classes[label] for label in listing.labels[items].tolist()]
    own = _own(run, desk)
    shared = None if own is None else _count_shared(run, own, digests, desk)
    before = _look_at_images(run, own, digests, names, listing.splits[items] == TEST, desk)
    at, logits = _answered(classifier, listing, ids, desk)
    scored = ScoredRows(logits, items[at], place[listing.labels[items[at]]])
    figures = figures_of(scored, run.config["classes"], temperature_of(run))
    took = time.perf_counter() - began
    result = EvaluateResult(
        run.folder, figures, took, now(), split, scored_before=before, images=listing.name, shared=shared
    )
    return Scored(result, scored, lambda item: listing.images.name(listing.ids[item]))


def _tell(listing: Listing, desk: Workspace) -> None:
    if listing.skipped:
        desk.watch.say(images.skip_summary(listing.skipped))
    for warning in listing.warnings:
        desk.watch.warn(warning)


def _chosen(listing: Listing, asked: str | None, desk: Workspace) -> tuple[str, NDArray[np.int64]]:
    """The labelled images that are meant: those of one split, or all of them, whatever splits there are."""
    labelled = np.flatnonzero(listing.labels >= 0)
    there = [name for number, name in enumerate(SPLITS) if (listing.splits[labelled] == number).any()]
    split = asked or "all"
    if not there:
        raise DataError(f"{listing.source}: no labels: give class folders or a manifest with labels, or use predict")
    if split != "all" and split not in there:
        raise DataError(f"{listing.source} has no labelled {split} images: {_cure(there)}")
    if split != "all":
        return split, labelled[listing.splits[labelled] == SPLITS.index(split)]
    if len(there) > 1:
        named = " and ".join([", ".join(there[:-1]), there[-1]])
        desk.watch.say(f"{named} are taken together: {option('split')} names one of them")
    return split, labelled


def _look_at_images(
    run: runs.Run,
    own: Cache | None,
    digests: NDArray[np.uint8],
    names: list[str],
    is_test: NDArray[np.bool_],
    desk: Workspace,
) -> int | None:
    """Put on record what test rows are looked at: the source's own test images, and the run's, where some are here.

    Gives how many other runs had been scored on them; of two sets the larger number.
    """
    looked: dict[str, int] = {}
    if is_test.any():
        pairs = zip(digests[is_test], (name for name, yes in zip(names, is_test, strict=True) if yes), strict=True)
        looked[ledger.content_of_pairs(pairs)] = int(is_test.sum())
    if own is not None and (shared := ledger.shared(own, digests)):
        desk.watch.say(f"{shared:,} of these {len(digests):,} images are test images of {run.folder.name}")
        looked[ledger.content_of(own)] = len(ledger.places_of(own))
    if not looked:
        return None
    return max(ledger.count_content(content, n, Scorer.of(run.folder), desk) for content, n in looked.items())


def _answered(
    classifier: Classifier, listing: Listing, ids: list[bytes], desk: Workspace
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Which of the images could be used (m,) int64, and their logits (m, C) float32; of the others it is told."""
    good: list[int] = []
    parts: list[NDArray[np.float32]] = []
    bad: list[Loaded] = []
    loader = images.Loader(listing.images, classifier.geometry, workers=cores(), ahead=2 * classifier.batch)
    with loader, desk.watch.track("evaluate", len(ids)) as tracker:
        for batch, used, answer in classified(classifier, loader.load(enumerate(ids))):
            good += [batch[i].index for i in used]
            bad += [item for item in batch if item.failure is not None]
            if answer is not None:
                parts.append(answer.logits)
            tracker.advance(len(batch))
    if bad:
        assert bad[0].failure is not None
        first = f"{listing.images.name(ids[bad[0].index])!a}: {bad[0].failure.reason}"
        if not good:
            raise DataError(f"none of {many(len(ids), 'image')} can be used; the first, {first}")
        desk.watch.warn(f"left out: {len(bad):,} of {many(len(ids), 'image')} cannot be used; the first, {first}")
    return np.array(good, np.int64), np.concatenate(parts)
