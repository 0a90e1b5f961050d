"""All that is known of a run, gathered once: its records, its cache where it is still there, its answers.

Reads; says nothing. What cannot be had is a part that the page does not have, with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar

from pipeline.base.errors import CacheError, DataError, HeadError, WeightsError
from pipeline.base.records import parse_lines, read_file, reason
from pipeline.base.schema import Count, Malformed, NotNegative, Positive, Share, made
from pipeline.base.watch import TraceRow
from pipeline.base.workspace import Workspace
from pipeline.heads.artifact import Head
from pipeline.runs import folder as runs
from pipeline.runs.folder import Run, cache_of
from pipeline.runs.network import head_of, temperature_of
from pipeline.stages.report.answers import Answers, answers_for
from pipeline.stages.report.results import Lacking
from pipeline.stages.score.answers import require_head
from pipeline.stages.score.evaluate import kept_rows
from pipeline.stages.score.figures import EvaluateResult, ScoredRows, recorded
from pipeline.store import Cache

T = TypeVar("T")


class ChangeRecord(TypedDict):
    """A split's accuracies before and after fine-tuning, as its verdict has them."""

    split: str
    n: Count
    before: Share
    after: Share
    low: float
    high: float


class VerdictRecord(TypedDict):
    """Whether fine-tuning was worth it, as its run has it."""

    val: ChangeRecord
    test: ChangeRecord | None
    seconds: NotNegative
    head_seconds: NotNegative | None
    factor: float | None
    drift: dict[str, float]
    candidates: Count
    worth_it: str
    next: list[str]


class MetricsRecord(TypedDict):
    """What a page tells of ``metrics.json``."""

    val: NotRequired[Share | None]
    train: NotRequired[Share | None]
    after: NotRequired[Share | None]
    seconds: NotRequired[NotNegative | None]
    chosen_by: NotRequired[str | None]
    chosen_from: NotRequired[Count]
    temperature: NotRequired[Positive]
    temperature_from: NotRequired[str | None]
    config: NotRequired[dict[str, Any]]
    solver: NotRequired[str]
    steps: NotRequired[Count]
    best_epoch: NotRequired[Count]
    verdict: NotRequired[VerdictRecord]


class ConfigRecord(TypedDict):
    """What a page tells of ``config.json`` besides what every reader of a run needs."""

    hardware: NotRequired[dict[str, Any]]
    started_from: NotRequired[str]


class TrialRecord(TypedDict):
    """A line of ``trials.jsonl``: the figures of a candidate, and of an exact one its C."""

    val: dict[str, float]
    train: dict[str, float]
    C: NotRequired[Positive]


@dataclass(frozen=True, eq=False)
class Story:
    """A run and what is known of it; ``cache`` and ``answers`` are None where they are not to be had.

    ``test`` are the recorded figures, None where the run was not scored, ``test_rows`` the logits behind them.
    """

    run: Run
    metrics: MetricsRecord
    config: ConfigRecord
    head: Head | None
    cache: Cache | None
    answers: Answers | None
    test: EvaluateResult | None
    test_rows: ScoredRows | None
    trace: tuple[TraceRow, ...]
    trials: tuple[TrialRecord, ...]
    lacking: tuple[Lacking, ...]

    @property
    def name(self) -> str:
        """The run's."""
        return self.run.folder.name

    @property
    def classes(self) -> list[str]:
        """The classes' names."""
        return self.run.config["classes"]

    @property
    def data(self) -> str:
        """The name of the cache that it learned from."""
        return Path(self.run.config["cache"]["path"]).name.removesuffix(".h5")

    @property
    def temperature(self) -> float:
        """What logits are divided by where a probability is meant."""
        return temperature_of(self.run) if self.head is None else self.head.temperature

    def image(self, row: int) -> str:
        """What the image of a cache row is called: its path below the source."""
        return f"row {row}" if self.cache is None else os.fsdecode(self.cache.ids[row])


def gather(spec: str, desk: Workspace, device: str) -> Story:
    """All that is known of the run that ``spec`` names.

    Raises:
        HeadError: there is none, it holds no head, or its records are damaged.
    """
    run = runs.find_run(spec, desk)
    require_head(run)
    lacking: list[Lacking] = []
    cache = _tried("the images, their groups and the map of features", lacking, lambda: cache_of(run))
    answers = _tried("its answers on val", lacking, lambda: answers_for(run, cache, desk, device))
    return Story(
        run=run,
        metrics=_made(run, "metrics.json", run.metrics, MetricsRecord),
        config=_made(run, "config.json", run.config, ConfigRecord),
        head=None if run.stage == "finetune" else head_of(run),
        cache=cache,
        answers=answers,
        test=recorded(run.folder),
        test_rows=kept_rows(run.folder),
        trace=tuple(_lines(run.folder / "trace.jsonl", TraceRow)),
        trials=tuple(_lines(run.folder / "trials.jsonl", TrialRecord)),
        lacking=tuple(lacking),
    )


def _tried(what: str, lacking: list[Lacking], work: Callable[[], T]) -> T | None:
    """What the work gives; where it is not to be had, that is noted."""
    try:
        return work()
    except (CacheError, DataError, HeadError, WeightsError) as error:
        lacking.append(Lacking(what, str(error)))
        return None


def _made(run: Run, file: str, told: Any, kind: type[T]) -> T:
    try:
        return made(told, kind)
    except Malformed as error:
        raise HeadError(f"{run.folder / file}: {error}; bring it back from a copy, or train again") from error


def _lines(path: Path, kind: type[T]) -> list[T]:
    try:
        return list(parse_lines(read_file(path), kind))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HeadError(f"{path}: {reason(error)}; bring it back from a copy, or train again") from error
