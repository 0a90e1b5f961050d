"""Stage two, after the choice: scores on the test split, and baselines on the same rows.

The only stage that reads test rows. Nothing here chooses: a baseline has fixed settings, and a run's test figures are
taken once and kept beside it (S6).
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import runs
from pipeline import settings as st
from pipeline.errors import CacheError, HeadError
from pipeline.report.watch import Watch
from pipeline.train import CACHE_HELP, ROOT_HELP, cache_record, find_cache, load_rows

if TYPE_CHECKING:
    from pipeline.heads.metrics import Scores
    from pipeline.store import Cache

RUN_HELP = "a run's folder, name or number, or `latest`"
EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of the test."""

    run: str = st.argument(RUN_HELP, default=runs.LATEST)
    cache_root: Path = st.option(Path("cache"), ROOT_HELP)

    def __post_init__(self) -> None:
        st.check(self)


@dataclass(frozen=True)
class BaselineSettings:
    """Settings of the baselines."""

    cache: str = st.argument(CACHE_HELP, default=runs.LATEST)
    names: tuple[str, ...] = st.option(
        ("majority", "centroid", "knn", "logreg"), "which baselines", choices=("majority", "centroid", "knn", "logreg")
    )
    max_iter: int = st.option(1000, "iterations that the logistic regression may take", minimum=1)
    cache_root: Path = st.option(Path("cache"), ROOT_HELP)

    def __post_init__(self) -> None:
        st.check(self)


@dataclass(frozen=True)
class EvaluateResult:
    """A run's test figures; ``test`` has at least accuracy, macro_f1 and n."""

    run: Path
    test: dict[str, Any]
    seconds: float
    scored: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "run": str(self.run)}


@dataclass(frozen=True)
class BaselineReport:
    """The baselines' figures: a list of ``name val test macro_f1 seconds converged note``."""

    run: Path
    results: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"run": str(self.run), "results": self.results}


def evaluate(run: str | Path = runs.LATEST, *, watch: Watch | None = None, **options: Any) -> EvaluateResult:
    """Score a run on the test split, once; asked again, the recorded figures are given.

    Raises:
        HeadError, CacheError: no test rows, or a cache that is not the one the run learned from.
    """
    return run_evaluate(st.build(EvaluateSettings, {"run": run, **options}), watch or Watch())


def baseline(cache: str | Path = runs.LATEST, *, watch: Watch | None = None, **options: Any) -> BaselineReport:
    """Fit scikit-learn's baselines on train and score them on val and test.

    Raises:
        HeadError, CacheError: a cache without labelled train rows.
    """
    return run_baseline(st.build(BaselineSettings, {"cache": cache, **options}), watch or Watch())


def cache_of(run: runs.Run) -> Cache:
    """The cache that a run learned from, opened and shown to be the same.

    Raises:
        CacheError: it is gone, has another key, or other rows, labels or splits.
    """
    from pipeline.store import difference, open_cache

    recorded = run.config["cache"]
    cache = open_cache(recorded["path"])
    if cache.key != recorded["key"]:
        fields = "; ".join(f"{n}: {a!r} -> {b!r}" for n, a, b in difference(run.config["provenance"], cache.provenance))
        raise CacheError(f"{cache.path} is not the cache that {run.folder.name} learned from ({fields}): train again")
    if cache.content != recorded["content"]:
        raise CacheError(f"{cache.path}: images, labels or splits have changed since {run.folder.name}: train again")
    return cache


def run_evaluate(settings: EvaluateSettings, watch: Watch) -> EvaluateResult:
    """Score with settings made; see :func:`evaluate`."""
    run = runs.find_run(settings.run, cache_root=settings.cache_root)
    if run.stage == "baseline":
        raise HeadError(f"{run.folder.name} is a baseline run, scored already: give one of train, search or finetune")
    recorded = run.folder / EVALUATION
    if recorded.exists():
        known = EvaluateResult(run=run.folder, **json.loads(recorded.read_text(encoding="utf-8")))
        watch.say(f"{run.folder.name} was scored on {known.scored}: the test split is used once, these are its figures")
        _show(known, watch)
        return known
    began = time.perf_counter()
    scores = _score(run, settings, watch)
    figures: dict[str, Any] = {
        "test": scores.to_json(),
        "seconds": time.perf_counter() - began,
        "scored": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    try:
        runs.write_json(recorded, figures)
    except OSError as error:
        raise runs.unwritable(run.folder, error) from error
    result = EvaluateResult(run=run.folder, **figures)
    _show(result, watch)
    return result


def _score(run: runs.Run, settings: EvaluateSettings, watch: Watch) -> Scores:
    from pipeline.heads.artifact import load_head, require_key
    from pipeline.heads.metrics import classification_report

    cache = cache_of(run)
    rows = load_rows(cache, "test")
    if not len(rows):
        raise HeadError(f"{cache.path.name} has no labelled test rows: extract with --test-fraction above 0")
    if run.stage == "finetune":
        from pipeline.finetune import logits_of_split

        logits = logits_of_split(run, cache, "test", cache_root=settings.cache_root, watch=watch)
    else:
        head = load_head(run.folder)
        require_key(head, cache.key, str(cache.path))
        logits = head.logits(rows.X)
    return classification_report(rows.y, logits, cache.classes)


def _show(result: EvaluateResult, watch: Watch) -> None:
    from pipeline.report.confusion import ConfusionMatrix
    from pipeline.report.numbers import count, percent, significant
    from pipeline.report.tables import per_class_table

    test = result.test
    watch.show(per_class_table(test["per_class"], title="Test split, class by class"))
    watch.show(ConfusionMatrix(test["confusion"], [c["name"] for c in test["per_class"]]))
    top5 = f", top-5 {percent(test['top5'])}" if test["top5"] is not None else ""
    watch.say(
        f"test: accuracy {percent(test['accuracy'])}, macro-F1 {percent(test['macro_f1'])}{top5}, log-loss "
        f"{significant(test['log_loss'])}, {count(test['n'])} images -> {result.run / EVALUATION}"
    )


def run_baseline(settings: BaselineSettings, watch: Watch) -> BaselineReport:
    """Baselines with settings made; see :func:`baseline`."""
    from pipeline.heads.baselines import BaselineResult, run_baselines
    from pipeline.report.tables import Result, results_table

    cache = find_cache(settings.cache, cache_root=settings.cache_root)
    splits = {name: load_rows(cache, name) for name in ("train", "val", "test")}
    if not len(splits["train"]):
        raise HeadError(f"{cache.path.name} has no labelled train rows: extract a source with train images")
    watch.say(f"{cache.path.name}: " + ", ".join(f"{len(rows):,} {name}" for name, rows in splits.items()) + " rows")
    with watch.track("baselines", len(settings.names), unit="fits") as tracker:

        def one_done(_: BaselineResult) -> None:
            tracker.advance()

        results = run_baselines(
            splits["train"].X,
            splits["train"].y,
            splits["val"].X,
            splits["val"].y,
            splits["test"].X,
            splits["test"].y,
            n_classes=len(cache.classes),
            names=settings.names,
            max_iter=settings.max_iter,
            class_names=cache.classes,
            on_result=one_done,
        )
    lines = [
        Result(r.name, val=r.val, test=r.test, macro_f1=r.macro_f1, seconds=r.seconds, note=r.note) for r in results
    ]
    watch.show(results_table(lines, title="Baselines, trained on the same rows"))
    name = cache.path.name.removesuffix(".h5")
    plain = [dataclasses.asdict(r) for r in results]
    with runs.new_run(
        settings.cache_root, stage="baseline", name=name, settings=st.record(settings), about=cache_record(cache)
    ) as (draft, folder):
        draft.write_json("metrics.json", {"results": plain})
    return BaselineReport(run=folder, results=plain)
