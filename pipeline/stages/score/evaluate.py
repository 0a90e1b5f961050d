"""Stage two, after the choice: a run's figures on the test split, taken once; or on another cache of the same key.

The only stage that reads test rows. Nothing here chooses or fits, and a run's test figures are taken once, counted
before they are taken (``ledger``), and kept beside it with the logits that they were made from::

    evaluation.safetensors   logits (n, C) float32; rows (n,) int64, their places in the cache; y (n,) int64
    evaluation.json          the figures, written last
    evaluation-NAME.json     figures on another cache, NAME.h5
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict, cast

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from pipeline.base.errors import CacheError, HeadError
from pipeline.base.files import try_writing, write_bytes, write_json, writing
from pipeline.base.items import SPLITS
from pipeline.base.machine import resolve_device
from pipeline.base.records import read_file, read_record
from pipeline.base.schema import Count, Malformed, NotNegative, Positive, Rule, Share, Size
from pipeline.base.workspace import Workspace
from pipeline.heads.artifact import match_classes, require_key
from pipeline.heads.scores.calibration import calibrated, expected_calibration_error
from pipeline.heads.scores.intervals import score_intervals
from pipeline.heads.scores.metrics import classification_report, softmax
from pipeline.runs import folder as runs
from pipeline.runs.folder import cache_of
from pipeline.runs.folder import require_key as require_run_key
from pipeline.runs.network import head_of, logits_of_split, temperature_of
from pipeline.stages.score import ledger, words
from pipeline.stages.score.ledger import Scorer
from pipeline.stages.score.settings import EvaluateSettings
from pipeline.store import Cache
from pipeline.store.find import find_cache
from pipeline.store.rows import load_rows

EVALUATION = "evaluation.json"
LOGITS = "evaluation.safetensors"
# Logits (n, C) float32 of the labelled good rows of a split, ascending.
LogitsOf = Callable[[str], NDArray[np.float32]]


class ClassFigures(TypedDict):
    """Figures of one class."""

    name: str
    precision: Share
    recall: Share
    f1: Share
    support: Count
    auroc: NotRequired[float | None]


class CalibratedFigures(TypedDict):
    """What the run's temperature makes of the figures."""

    temperature: Positive
    log_loss: float
    ece: float
    ece_expected: NotRequired[float]


_KNOWN = Rule(f"an object of {', '.join(words.SHARES)}", lambda intervals: intervals.keys() <= words.SHARES.keys())
_Interval = Annotated[list[float], Rule("a list of 2 numbers", lambda ends: len(ends) == 2)]
_Intervals = Annotated[dict[str, _Interval | None], _KNOWN]


class Figures(TypedDict):
    """A split's figures; those that came later are not in files from before."""

    n: Size
    accuracy: Share
    balanced_accuracy: NotRequired[float | None]
    macro_f1: Share
    log_loss: NotNegative
    top5: NotRequired[float | None]
    auroc: NotRequired[float | None]
    ece: NotRequired[float | None]
    ece_expected: NotRequired[float | None]
    per_class: list[ClassFigures]
    confusion: list[list[int]]
    intervals: NotRequired[_Intervals | None]
    calibrated: NotRequired[CalibratedFigures | None]


def _square(test: Figures) -> bool:
    classes, counts = len(test["per_class"]), test["confusion"]
    return len(counts) == classes and all(len(row) == classes and min(row) >= 0 for row in counts)


class Evaluation(TypedDict):
    """What stands in ``evaluation.json``: an :class:`EvaluateResult` but for its run."""

    test: Annotated[Figures, Rule("a confusion of as many rows and columns as per_class has classes", _square)]
    seconds: NotNegative
    scored: str
    split: NotRequired[str]
    cache: NotRequired[str | None]
    scored_before: NotRequired[Count | None]


@dataclass(frozen=True)
class EvaluateResult:
    """A run's figures; ``test`` has at least accuracy, macro_f1 and n; ``cache`` is another one's name, if it was.

    ``scored_before``: how many other runs of the workspace had been scored on these test rows then; None where no test
    rows were scored, or where that was before they were counted.
    """

    run: Path
    test: Figures
    seconds: float
    scored: str
    split: str = "test"
    cache: str | None = None
    scored_before: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "run": str(self.run)}

    @property
    def file(self) -> Path:
        """Where the figures are kept."""
        return self.run / (EVALUATION if self.cache is None else f"evaluation-{self.cache}.json")


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """A run's ``logits`` (n, C) float32 of cache ``rows`` (n,) int64 with labels ``y`` (n,) int64, the head's."""

    logits: NDArray[np.float32]
    rows: NDArray[np.int64]
    y: NDArray[np.int64]

    def fits(self) -> bool:
        """Whether these are tensors of such types and shapes; what is read from a file need not be."""
        flat = all(a.dtype == np.int64 and a.shape == self.logits.shape[:1] for a in (self.rows, self.y))
        return flat and self.logits.dtype == np.float32 and self.logits.ndim == 2


def evaluate(settings: EvaluateSettings, desk: Workspace) -> EvaluateResult:
    """Score with settings made."""
    run = runs.find_run(settings.run, desk)
    if settings.data is None:
        return score(run, desk, device=settings.device)
    result = _elsewhere(run, settings.data, settings, desk)
    _show(result, desk)
    return result


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
    _require_head(run)
    known = _known(run.folder, desk)
    if known is not None:
        return known
    cache = cache_of(run)
    logits_of = _by_run(run, cache, desk, device)
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
        logits_of = _by_run(run, cache, desk, device)
        _look(Scorer.of(run.folder), run.folder, cache, desk)
        _write_logits(run.folder, _score(cache, ("test",), logits_of))
    return _kept_logits(run.folder)


def recorded(folder: Path) -> EvaluateResult | None:
    """The test figures that are kept in a run's folder, if it has been scored.

    Raises:
        HeadError: they are damaged.
    """
    path = folder / EVALUATION
    if not path.exists():
        return None
    kept = read_record(path, Evaluation, HeadError, "bring it back from a copy, or train again")
    how = kept.get("split", "test"), kept.get("cache"), kept.get("scored_before")
    return EvaluateResult(folder, kept["test"], kept["seconds"], kept["scored"], *how)


def _known(folder: Path, desk: Workspace) -> EvaluateResult | None:
    """The test figures that are recorded in a folder."""
    known = recorded(folder)
    if known is None:
        return None
    which = words.as_which(known.scored_before)
    desk.watch.say(
        f"{folder.name} was scored on {known.scored}{which}: the test split is used once, these are its figures"
    )
    return known


def _look(scorer: Scorer, folder: Path, cache: Cache, desk: Workspace) -> int:
    """Put a look at the cache's test rows on record before it is taken; gives how many others have been scored on them.

    Raises:
        HeadError: what is seen could not be kept in ``folder``, or the look cannot be put on record.
    """
    with writing(folder):
        try_writing(folder)
    return ledger.count(cache, scorer, desk)


def _taken(
    scorer: Scorer, folder: Path, cache: Cache, logits_of: LogitsOf, temperature: float, desk: Workspace
) -> EvaluateResult:
    """The test figures, taken now and recorded with their logits."""
    began = time.perf_counter()
    before = _look(scorer, folder, cache, desk)
    scored = _score(cache, ("test",), logits_of)
    figures = _figures(scored, cache.classes, temperature)
    _write_logits(folder, scored)
    return _record(EvaluateResult(folder, figures, time.perf_counter() - began, _now(), scored_before=before))


def _kept_logits(folder: Path) -> ScoredRows:
    path = folder / LOGITS
    try:
        kept = ScoredRows(**safetensors.numpy.load(read_file(path, None)))
        if not kept.fits():
            raise Malformed("its tensors are not of one number of rows, or of other types")
    except (OSError, TypeError, Malformed, safetensors.SafetensorError) as error:
        raise HeadError(f"{path} is damaged ({error}): delete it, and its rows are scored again") from error
    return kept


def _require_head(run: runs.Run) -> None:
    if run.stage in ("baseline", "fewshot"):
        raise HeadError(
            f"{run.folder.name} is a {run.stage} run and holds no head: give one of train, search or finetune"
        )


def _elsewhere(run: runs.Run, data: str, settings: EvaluateSettings, desk: Workspace) -> EvaluateResult:
    """The run's figures on rows of another cache."""
    _require_head(run)
    began, cache = time.perf_counter(), find_cache(data, desk)
    require_run_key(run, cache, f"has another key than {run.folder.name}", "extract it with the run's settings")
    split, chosen = _splits(cache, settings.split)
    if split == "test" and cache.content == run.config["cache"]["content"]:
        return evaluated(run, desk, device=settings.device)  # the run's own test rows, under whatever name
    place = match_classes(run.config["classes"], cache.classes)
    logits_of = _by_run(run, cache, desk, settings.device)
    before = _look(Scorer.of(run.folder), run.folder, cache, desk) if "test" in chosen else None
    scored = _score(cache, chosen, logits_of)
    scored = dataclasses.replace(scored, y=place[scored.y])
    try:
        own = cache_of(run)
    except CacheError as error:
        desk.watch.warn(f"no look for images that {run.folder.name} has learned from: {error}")
    else:
        _warn_of_shared_images(run, own, cache, scored.rows, desk)
    figures = _figures(scored, run.config["classes"], temperature_of(run))
    name = cache.path.name.removesuffix(".h5")
    return _record(EvaluateResult(run.folder, figures, time.perf_counter() - began, _now(), split, name, before))


def _splits(cache: Cache, asked: str | None) -> tuple[str, tuple[str, ...]]:
    """What was asked for, or test, or all where nothing is split; and the cache's splits with such rows."""
    there = [name for name in SPLITS if (cache.labels[cache.rows(name)] >= 0).any()]
    split = asked or ("all" if len(there) == 1 else "test")  # one split alone holds nothing apart
    chosen = tuple(name for name in there if split in (name, "all"))
    if not chosen:
        legal = ", ".join([*(name for name in there if name != "none"), "all"]) if there else ""
        cure = f"choose --split from {legal}" if there else "extract it with labels"
        raise HeadError(f"{cache.path.name} has no labelled {split} rows: {cure}")
    return split, chosen


def _warn_of_shared_images(run: runs.Run, own: Cache, cache: Cache, rows: NDArray[np.int64], desk: Workspace) -> None:
    """Say how many of the rows are images that the run was fitted or chosen on."""
    seen = {own.digests[row].tobytes() for split in ("train", "val") for row in own.rows(split).tolist()}
    shared = sum(cache.digests[row].tobytes() in seen for row in rows.tolist())
    if shared:
        desk.watch.warn(
            f"{shared:,} of these {len(rows):,} images are among the train and val images of {run.folder.name}: "
            "its figures on them are better than on new ones"
        )


def _by_run(run: runs.Run, cache: Cache, desk: Workspace, device: str) -> LogitsOf:
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


def _score(cache: Cache, splits: tuple[str, ...], logits_of: LogitsOf) -> ScoredRows:
    """The labelled good rows of some splits, scored; labels as the cache numbers them.

    Raises:
        HeadError: there are no such rows.
    """
    parts = []
    for split in splits:
        rows = cache.rows(split)
        rows = rows[cache.labels[rows] >= 0]
        if not len(rows):
            raise HeadError(f"{cache.path.name} has no labelled {split} rows: extract with --{split}-fraction above 0")
        parts.append(ScoredRows(logits_of(split), rows, cache.labels[rows]))
    return ScoredRows(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(ScoredRows)))


def _figures(scored: ScoredRows, classes: Sequence[str], temperature: float) -> Figures:
    """Every figure as plain JSON values, with its interval; ``calibrated``: None where the temperature is 1."""
    scores = classification_report(scored.y, scored.logits, classes)
    intervals = score_intervals(scores.confusion, scores.top5)
    after = None
    if temperature != 1:
        after = dataclasses.asdict(calibrated(scored.logits, scored.y, temperature))
    found = {
        **scores.to_json(),
        "ece_expected": expected_calibration_error(softmax(scored.logits).max(axis=1)),
        "intervals": {name: None if ends is None else list(ends) for name, ends in intervals.items()},
        "calibrated": after,
    }
    return cast(Figures, found)


def _write_logits(folder: Path, scored: ScoredRows) -> None:
    with writing(folder):
        write_bytes(folder / LOGITS, safetensors.numpy.save(vars(scored)))


def _record(result: EvaluateResult) -> EvaluateResult:
    figures = result.to_json()
    del figures["run"]
    with writing(result.run):
        write_json(result.file, figures)
    return result


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _show(result: EvaluateResult, desk: Workspace) -> None:
    for value in words.classes_of(result.test, result.split, result.cache):
        desk.watch.show(value)
    what = result.split if result.cache is None else f"{result.cache}, {result.split}"
    first, *others = words.figures_lines(result.test, what)
    desk.watch.say(f"{first} -> {result.file}")
    for line in others:
        desk.watch.say(line)
