"""A run's answers on labelled rows, by the way that the run has: its head on features, or its network on images.

Looks at test rows go through here, and are counted before they are taken (``ledger``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import HeadError
from pipeline.base.files import try_writing, writing
from pipeline.base.items import SPLITS
from pipeline.base.machine import resolve_device
from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace
from pipeline.heads.artifact import require_key
from pipeline.heads.scores.calibration import calibrated, expected_calibration_error
from pipeline.heads.scores.intervals import score_intervals
from pipeline.heads.scores.metrics import classification_report
from pipeline.runs import folder as runs
from pipeline.runs.network import head_of, logits_of_split
from pipeline.runs.pixels import labelled
from pipeline.stages.score import ledger
from pipeline.stages.score.figures import Figures, ScoredRows
from pipeline.stages.score.ledger import Scorer
from pipeline.store import Cache
from pipeline.store.rows import load_rows

# Logits (n, C) float32 of the labelled good rows of a split, ascending.
LogitsOf = Callable[[str], NDArray[np.float32]]


def require_head(run: runs.Run) -> None:
    """Raises HeadError where a run has none."""
    if run.stage in ("baseline", "fewshot"):
        raise HeadError(
            f"{run.folder.name} is a {run.stage} run and holds no head: give one of train, search or finetune"
        )


def look(scorer: Scorer, folder: Path, cache: Cache, desk: Workspace) -> int:
    """Put a look at the cache's test rows on record before it is taken; gives how many others have been scored on them.

    Raises:
        HeadError: what is seen could not be kept in ``folder``, or the look cannot be put on record.
    """
    with writing(folder):
        try_writing(folder)
    return ledger.count(cache, scorer, desk)


def opened_rows(
    run: runs.Run | None, cache: Cache, asked: Collection[str] | None, desk: Workspace
) -> tuple[dict[str, NDArray[np.int64]], int | None]:
    """The good rows (n,) int64 of the splits asked for; without a word all, but of a run those of test.

    What a run says of test rows is a look at them: it is counted, and how many other runs had been scored on them is
    given, too.

    Raises:
        HeadError: the look cannot be put on record.
    """
    wanted = set(asked or SPLITS) if asked is None or "all" not in asked else set(SPLITS)
    if run is not None and asked is None:
        wanted.discard("test")
    found = {split: cache.rows(split) for split in SPLITS if split in wanted}
    before = None
    if run is not None and "test" in wanted and len(labelled(cache, "test")):
        before = look(Scorer.of(run.folder), run.folder, cache, desk)
    return {split: rows for split, rows in found.items() if len(rows)}, before


def by_run(run: runs.Run, cache: Cache, desk: Workspace, device: str) -> LogitsOf:
    """The run's way to logits: its network on the rows' images, or its head on their features; a head is read here.

    Raises:
        ConfigError: the network is to run on a device that is not there.
    """
    if run.stage == "finetune":
        place = resolve_device(device)  # before a look at test rows is put on record
        return lambda split: logits_of_split(run, cache, split, desk, device=place)
    head = head_of(run)
    require_key(head, cache.key, str(cache.path))
    return lambda split: head.logits(load_rows(cache, split).X)


def score_rows(cache: Cache, splits: tuple[str, ...], logits_of: LogitsOf) -> ScoredRows:
    """The labelled good rows of some splits, scored; labels as the cache numbers them.

    Raises:
        HeadError: there are no such rows.
    """
    parts = []
    for split in splits:
        rows = cache.rows(split)
        rows = rows[cache.labels[rows] >= 0]
        if not len(rows):
            cure = f"extract with {option(f'{split}_fraction')} above 0"
            raise HeadError(f"{cache.path.name} has no labelled {split} rows: {cure}")
        parts.append(ScoredRows(logits_of(split), rows, cache.labels[rows]))
    if len(parts) == 1:
        return parts[0]  # logits are the largest thing there is here: no second copy of them
    return ScoredRows(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(ScoredRows)))


def figures_of(scored: ScoredRows, classes: Sequence[str], temperature: float) -> Figures:
    """Every figure as plain JSON values, with its interval; ``calibrated``: None where the temperature is 1."""
    scores = classification_report(scored.y, scored.logits, classes)
    intervals = score_intervals(scores.confusion, scores.top5)
    after = None
    if temperature != 1:
        after = dataclasses.asdict(calibrated(scored.logits, scored.y, temperature))
    found = {
        **scores.to_json(),
        "ece_expected": expected_calibration_error(scores.confidence),
        "intervals": {name: None if ends is None else list(ends) for name, ends in intervals.items()},
        "calibrated": after,
    }
    return cast(Figures, found)
