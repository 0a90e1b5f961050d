"""Stage two: the best of many heads, chosen on val or by cross-validation, refitted on train + val, then tested once.

The functions that fit and choose are handed train and val rows and nothing else (S6): the test split is read by
``pipeline.stages.score.evaluate`` alone, once, when the head is fixed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base import settings as st
from pipeline.base.errors import ConfigError, HeadError
from pipeline.base.settings import LATEST
from pipeline.base.watch import Watch
from pipeline.heads.minibatch.config import PENALTIES, MinibatchConfig
from pipeline.store.find import find_cache
from pipeline.store.rows import Rows
from pipeline.train import EXACT, Fitted, HeadSettings, TrainResult, exact_head, learning_rows, linear_logits, save

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.fewshot import FewShotResult
    from pipeline.heads.exact.path import ExactFit
    from pipeline.store import Cache

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")
PATH_PICTURE = "path.svg"
CV_HELP = "choose by cross-validation over train + val with so many folds; 0 chooses on val"
SPACE_HELP = "exact: the penalties --Cs; mlp: minibatch heads with a hidden layer; or a TOML file of settings"


@dataclass(frozen=True)
class SearchSettings(HeadSettings):
    """Settings of a search."""

    space: str = st.option(EXACT, SPACE_HELP, metavar="SPACE")
    Cs: tuple[float, ...] | None = st.option(
        None, "exact: inverse penalties to try; by default 45 from 1e-6 to 1e5", above=0
    )
    metric: str = st.option("accuracy", "what is chosen by", choices=METRICS)
    cv: int = st.option(0, CV_HELP, minimum=0)
    trials: int = st.option(54, "minibatch: configurations to try, with --optuna by all processes together", minimum=1)
    epochs: int = st.option(MinibatchConfig.epochs, "minibatch: epochs that the best ones get", minimum=1)
    budget: float | None = st.option(None, "minibatch: seconds after which no more are tried", above=0)
    optuna: Path | None = st.option(
        None,
        "minibatch: adaptive search by Optuna, its journal in FILE, which several processes or machines may share",
        metavar="FILE",
    )
    refit: bool = st.option(True, "learn from train + val once the choice is made")
    evaluate: bool = st.option(True, "score the chosen head on test, once")
    shots: tuple[int, ...] | None = st.option(
        None, "few-shot: learn from so many images of each class instead, drawn --draws times", minimum=1
    )
    draws: int = st.option(5, "few-shot: how often", minimum=1)

    def __post_init__(self) -> None:
        st.check(self)
        if self.cv == 1:
            raise ConfigError("--cv is 1: it must be 0 (choose on val) or at least 2 folds")
        if self.space != EXACT:
            for name, value in (("--cv", self.cv), ("--Cs", self.Cs), ("--shots", self.shots)):
                if value:
                    raise ConfigError(f"{name} is for the exact heads: leave it out, or give --space {EXACT}")
        else:
            fields = {f.name: f.default for f in dataclasses.fields(self)}
            for name in ("optuna", "budget", "trials", "epochs"):
                if getattr(self, name) != fields[name]:
                    raise ConfigError(
                        f"{st.flag_name(name)} is for minibatch heads: give --space mlp or a .toml file with it"
                    )
        if self.shots and (self.cv or self.views):
            raise ConfigError("--shots draws from the train images: leave out --cv and --views")
        if self.cv and self.views:
            raise ConfigError("--cv would learn from views of the images that it holds out: leave out --cv or --views")

    @property
    def penalties(self) -> tuple[float, ...]:
        """The values of C to try, ascending, each once."""
        return tuple(sorted(set(self.Cs))) if self.Cs else PENALTIES


@dataclass(frozen=True, eq=False)
class Trial:
    """One candidate: its settings, its figures on train and on what it is chosen by, and what else is recorded."""

    settings: Mapping[str, Any]
    val: Mapping[str, float]  # by metric
    train: Mapping[str, float]
    note: str = ""
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def rank(self, metric: str) -> tuple[float, float]:
        """Lower is better; equal figures go to the lower log-loss."""
        value = self.val[metric]
        return (value if metric == "log_loss" else -value), self.val["log_loss"]

    def line(self) -> dict[str, Any]:
        """One line of trials.jsonl."""
        return {**self.settings, "val": self.val, "train": self.train, "note": self.note, **self.record}


def search(cache: str | Path = LATEST, *, watch: Watch | None = None, **options: Any) -> TrainResult | FewShotResult:
    """Try many heads on train, choose on val (or by cross-validation), refit on both, and score the head on test once.

    With ``shots`` mean and deviation over draws of so many images of each class instead. ``options`` are the fields of
    :class:`SearchSettings`.

    Raises:
        ConfigError, CacheError, HeadError: among them a cache without val rows, on which nothing can be chosen.
    """
    return run_search(st.build(SearchSettings, {"cache": cache, **options}), watch or Watch())


def run_search(settings: SearchSettings, watch: Watch) -> TrainResult | FewShotResult:
    """Search with settings made; see :func:`search`."""
    cache = find_cache(settings.cache, cache_root=settings.cache_root)
    if settings.shots:
        from pipeline.fewshot import run_few_shot

        return run_few_shot(cache, settings, watch)
    fitted, chosen = learning_rows(cache, settings, watch)
    if not len(chosen) and not settings.cv:
        raise HeadError(
            f"{cache.path.name} has no val rows to choose on: extract with --val-fraction above 0, or give --cv 5"
        )
    began = time.perf_counter()
    if settings.space == EXACT:
        trials, best, files = _exact_search(cache, fitted, chosen, settings)
    else:
        from pipeline.minibatch_search import minibatch_search

        trials, best, files = minibatch_search(cache, fitted, chosen, settings, watch)
    seconds = time.perf_counter() - began
    show_ranking(trials, settings, watch)
    learned = both(fitted, chosen) if settings.refit or settings.cv else fitted
    result = save(
        cache,
        "search",
        settings,
        best,
        learned,
        chosen,
        seconds,
        watch,
        trials=[t.line() for t in trials],
        val=trials[0].val["accuracy"],
        learned_from=("train", "val") if len(learned) > len(fitted) else ("train",),
        files=files,
    )
    if settings.evaluate and len(cache.rows("test")):
        from pipeline.stages.score.evaluate import run_evaluate
        from pipeline.stages.score.settings import EvaluateSettings

        run_evaluate(EvaluateSettings(run=str(result.run), cache_root=settings.cache_root), watch)
    return result


def _exact_search(
    cache: Cache, fitted: Rows, chosen: Rows, settings: SearchSettings
) -> tuple[list[Trial], Fitted, dict[str, str]]:
    """The path of penalties, ranked, the chosen head, and the picture of the path."""
    from pipeline.heads.exact.path import fit_exact
    from pipeline.show.path_picture import path_picture

    options: dict[str, Any] = {
        "n_classes": len(cache.classes),
        "class_weight": settings.weighting,
        "class_names": cache.classes,
        "device": settings.device,
    }
    if settings.cv:
        rows = both(fitted, chosen)
        folds = fold_numbers(rows.y, settings.cv, settings.seed)
        fits = fit_exact(rows.X, rows.y, Cs=settings.penalties, folds=folds, **options)
        trials = [_cross_validated(C, fits, rows, folds, cache) for C in settings.penalties]
    else:
        rows = fitted
        fits = fit_exact(fitted.X, fitted.y, Cs=settings.penalties, **options)
        trials = [exact_trial(fit, fitted, chosen, cache) for fit in fits]
    # Equal figures go to the stronger penalty: the simpler head.
    ranked = sorted(trials, key=lambda t: (*t.rank(settings.metric), t.settings["C"]))
    best_C = ranked[0].settings["C"]
    best = next(fit for fit in fits if fit.fold < 0 and best_C == fit.C)
    if settings.refit and not settings.cv:  # with cross-validation it has learned from both already
        rows = both(fitted, chosen)
        best = fit_exact(rows.X, rows.y, Cs=[best_C], **options)[0]
    curves = {name: [getattr(t, name)[settings.metric] for t in trials] for name in ("train", "val")}
    picture = path_picture(list(settings.penalties), curves, chosen=best_C, metric=settings.metric.replace("_", " "))
    return ranked, exact_head(best), {PATH_PICTURE: picture}


def exact_trial(fit: ExactFit, fitted: Rows, chosen: Rows, cache: Cache) -> Trial:
    """An exact head with its figures on train and val."""
    val, train = (figures(linear_logits(r.X, fit.weight, fit.bias), r.y, cache.classes) for r in (chosen, fitted))
    note = "" if fit.converged else "not converged"
    return Trial({"C": fit.C}, val, train, note, {"n_iter": fit.n_iter, "grad_norm": fit.grad_norm})


def _cross_validated(C: float, fits: Sequence[ExactFit], rows: Rows, folds: NDArray[np.int64], cache: Cache) -> Trial:
    """Figures of each row by the head that was fitted without its fold."""
    import numpy as np

    held_out = np.empty((len(rows), len(cache.classes)), np.float32)
    used = [fit for fit in fits if fit.C == C]
    for fit in used:
        if fit.fold >= 0:
            out = folds == fit.fold
            held_out[out] = linear_logits(rows.X[out], fit.weight, fit.bias)
    whole = next(fit for fit in used if fit.fold < 0)
    train = figures(linear_logits(rows.X, whole.weight, whole.bias), rows.y, cache.classes)
    note = "" if all(fit.converged for fit in used) else "not converged"
    record = {"n_iter": sum(fit.n_iter for fit in used), "grad_norm": max(fit.grad_norm for fit in used)}
    return Trial({"C": C}, figures(held_out, rows.y, cache.classes), train, note, record)


def figures(logits: NDArray[np.float32], y: NDArray[np.int64], classes: Sequence[str]) -> dict[str, float]:
    """The metrics that can be chosen by."""
    from pipeline.heads.scores.metrics import classification_report

    scores = classification_report(y, logits, classes)
    return {name: getattr(scores, name) for name in METRICS}


def fold_numbers(y: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold (n,) that each row is left out in, stratified by class.

    Raises:
        HeadError: a class has fewer rows than there are folds.
    """
    import numpy as np
    from sklearn.model_selection import StratifiedKFold

    fewest = int(np.bincount(y)[np.unique(y)].min())
    if fewest < folds:
        raise HeadError(f"--cv {folds}: the smallest class has {fewest} rows; give at most {fewest} folds")
    numbers = np.empty(len(y), np.int64)
    split = StratifiedKFold(folds, shuffle=True, random_state=seed).split(np.zeros((len(y), 1)), y)
    for number, (_, out) in enumerate(split):
        numbers[out] = number
    return numbers


def both(fitted: Rows, chosen: Rows) -> Rows:
    """Train and val rows together."""
    import numpy as np

    if not len(chosen):
        return fitted
    return Rows(np.concatenate([fitted.X, chosen.X]), np.concatenate([fitted.y, chosen.y]))


def show_ranking(trials: Sequence[Trial], settings: SearchSettings, watch: Watch) -> None:
    """The ranked table."""
    from pipeline.show import tables

    lines = [
        tables.Trial(
            {n: float(f"{v:.3g}") if isinstance(v, float) else v for n, v in t.settings.items()},
            val=t.val[settings.metric],
            train=t.train[settings.metric],
            note=t.note,
        )
        for t in trials
    ]
    by = f"{settings.cv} folds" if settings.cv else "val"
    metric = settings.metric.replace("_", " ")
    title = f"{len(trials)} heads, ranked by {metric} on {by}, then log-loss"
    watch.show(tables.search_table(lines, title=title, share=settings.metric != "log_loss"))
