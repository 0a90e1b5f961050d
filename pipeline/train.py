"""Stage two: store + heads -> run. Trains a head on cached features, or searches for the best of many.

Selection sees train and val only: the functions here that fit and choose are never handed a test row (S6); the test
split is read by ``pipeline.evaluate`` alone.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import runs
from pipeline import settings as st
from pipeline.errors import CacheError, HeadError
from pipeline.heads.config import MinibatchConfig
from pipeline.report.trace import TraceRow, observe
from pipeline.report.watch import Watch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.heads.minibatch import Epoch, FitResult
    from pipeline.store import Cache

CACHE_HELP = "a feature cache: its path, its name (or the beginning of it), or `latest`"
VIEWS_HELP = "learn from so many augmented views of each train image, too (made by `pipeline extract --views`)"
ROOT_HELP = "folder for features, runs, weights and downloaded data"


@dataclass(frozen=True)
class HeadSettings:
    """What one head and a search for the best one have in common."""

    cache: str = st.argument(CACHE_HELP, default=runs.LATEST)
    solver: str = st.option(MinibatchConfig.solver, "how a head is fitted", choices=("adamw", "sgd"))
    epochs: int = st.option(MinibatchConfig.epochs, "passes over the train rows", minimum=1)
    batch_size: int = st.option(MinibatchConfig.batch_size, "rows in one step", minimum=1)
    class_weight: str = st.option("none", "balanced weighs each class by 1 / its share", choices=("none", "balanced"))
    views: int = st.option(0, VIEWS_HELP, minimum=0)
    seed: int = st.option(MinibatchConfig.seed, "seed of the order of the rows", minimum=0)
    device: str = st.option("cpu", "where a head is fitted", choices=("cpu", "cuda"))
    cache_root: Path = st.option(Path("cache"), ROOT_HELP)

    def __post_init__(self) -> None:
        st.check(self)


@dataclass(frozen=True)
class TrainSettings(HeadSettings):
    """Settings of one head."""

    lr: float = st.option(MinibatchConfig.lr, "learning rate at the start", above=0)
    weight_decay: float = st.option(
        MinibatchConfig.weight_decay, "decoupled decay of the weights (not the bias)", minimum=0
    )


@dataclass(frozen=True)
class SearchSettings(HeadSettings):
    """Settings of a search: every learning rate with every weight decay, all in one pass."""

    lrs: tuple[float, ...] = st.option((1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2), "learning rates to try", above=0)
    weight_decays: tuple[float, ...] = st.option((0.0, 1e-3, 1e-2, 1e-1, 1.0), "weight decays to try", minimum=0)


@dataclass(frozen=True)
class TrainResult:
    """A trained head: its run's folder, accuracies on val (None without val rows) and train, and seconds of fitting."""

    run: Path
    solver: str
    val: float | None
    train: float
    seconds: float
    best_epoch: int
    trials: int = 1

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "run": str(self.run)}


@dataclass(frozen=True)
class Rows:
    """The labelled good rows of one split: ``X`` (n, D) float16 or float32, perhaps a memory map; ``y`` (n,) int64."""

    X: NDArray[np.floating[Any]]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)


def train(cache: str | Path = runs.LATEST, *, watch: Watch | None = None, **options: Any) -> TrainResult:
    """Train one linear head on the cache's train rows; the best epoch on val is kept. Test rows are not read.

    ``options`` are the fields of :class:`TrainSettings`.

    Raises:
        ConfigError, CacheError, HeadError
    """
    return run_train(st.build(TrainSettings, {"cache": cache, **options}), watch or Watch())


def search(cache: str | Path = runs.LATEST, *, watch: Watch | None = None, **options: Any) -> TrainResult:
    """Train a head for every learning rate × weight decay and keep the best on val. Test rows are not read.

    ``options`` are the fields of :class:`SearchSettings`.

    Raises:
        ConfigError, CacheError, HeadError: among them a cache without val rows, on which nothing can be chosen.
    """
    return run_search(st.build(SearchSettings, {"cache": cache, **options}), watch or Watch())


def find_cache(spec: str, *, cache_root: Path) -> Cache:
    """Open the cache at a path, of a name under ``cache_root``/features, or the ``latest`` one there.

    Raises:
        CacheError: there is none, or it cannot be read.
    """
    from pipeline.store import open_cache

    folder = cache_root / "features"
    if spec == runs.LATEST:
        made = sorted((p for p in folder.glob("*.h5") if not is_view(p)), key=lambda p: p.stat().st_mtime_ns)
        if not made:
            raise CacheError(f"no feature cache in {folder} yet: make one with `pipeline extract SOURCE`")
        return open_cache(made[-1])
    if Path(spec).exists() or "/" in spec:
        return open_cache(spec)
    there = sorted(p for p in folder.glob("*.h5") if not is_view(p))
    exact = [p for p in there if p.name in (spec, spec + ".h5")]
    found = exact or [p for p in there if p.name.startswith(spec)]
    if len(found) == 1:
        return open_cache(found[0])
    shown = ", ".join(p.name for p in (found or there)[-5:]) or "none yet: make one with `pipeline extract SOURCE`"
    what = "fits several caches" if found else "is no cache"
    raise CacheError(f"{spec!r} {what}: give a path, a name or its beginning, or {runs.LATEST!r}; in {folder}: {shown}")


def load_rows(cache: Cache, split: str) -> Rows:
    """The labelled good rows of a split, their checksums verified: no damaged or empty row reaches a head (H3).

    Raises:
        CacheError: a block is damaged.
    """
    features = cache.split(split)
    cache.verify(features.rows)
    labelled = features.y >= 0
    return Rows(features.X, features.y) if labelled.all() else Rows(features.X[labelled], features.y[labelled])


def is_view(path: Path) -> bool:
    """Whether a cache's name says that it holds augmented views of another one's train images."""
    return bool(re.search(r"\.view[0-9]+\.h5$", path.name))


def with_views(cache: Cache, rows: Rows, views: int) -> Rows:
    """The train rows, and below them those of so many augmented views of the same images.

    Raises:
        CacheError: a view is missing, or is of other images, labels or settings than ``cache``.
    """
    import numpy as np

    from pipeline.extract import view_path
    from pipeline.store import difference, open_cache

    train = cache.split("train")
    parts = [rows]
    for number in range(1, views + 1):
        path = view_path(cache.path, number)
        if not path.exists():
            raise CacheError(f"no view {number} of {cache.path.name}: make it with `pipeline extract --views {views}`")
        view = open_cache(path)
        other = [name for name, _, _ in difference(cache.provenance, view.provenance) if not name.startswith("view.")]
        same_images = view.split("train").ids == train.ids and (view.split("train").y == train.y).all()
        if other or not same_images:
            why = f"other settings ({', '.join(other)})" if other else "other images or labels"
            raise CacheError(f"{path.name} is of {why} than {cache.path.name}: run `pipeline extract --views {views}`")
        parts.append(load_rows(view, "train"))
    return Rows(np.concatenate([p.X for p in parts]), np.concatenate([p.y for p in parts]))


def run_train(settings: TrainSettings, watch: Watch) -> TrainResult:
    """Train one head with settings made; see :func:`train`."""
    cache = find_cache(settings.cache, cache_root=settings.cache_root)
    config = MinibatchConfig(
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        solver=settings.solver,  # type: ignore[arg-type]  # its choices are checked
        seed=settings.seed,
    )
    rows: list[TraceRow] = []

    def tell(_: int, epoch: Epoch) -> None:
        row = trace_row(epoch)
        rows.append(dataclasses.replace(row, observation=observe([*rows, row], len(cache.classes))))
        watch.trace(rows[-1])

    fit, seconds = _fit(cache, [config], settings, watch, tell)
    watch.end_trace()
    best = fit[0]
    if best.diverged:
        raise HeadError(
            f"training diverged at epoch {best.n_iter}: --lr {settings.lr:g} is too high; try {settings.lr / 10:g}"
        )
    return _save(cache, "train", settings, best, seconds, watch, trace=[dataclasses.asdict(r) for r in rows])


def run_search(settings: SearchSettings, watch: Watch) -> TrainResult:
    """Search with settings made; see :func:`search`."""
    from pipeline.report.tables import Trial, search_table

    cache = find_cache(settings.cache, cache_root=settings.cache_root)
    if not len(cache.rows("val")):
        raise HeadError(f"{cache.path.name} has no val rows to choose on: extract with --val-fraction above 0")
    configs = [
        MinibatchConfig(
            lr=lr,
            weight_decay=decay,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            solver=settings.solver,  # type: ignore[arg-type]  # its choices are checked
            seed=settings.seed,
        )
        for lr in settings.lrs
        for decay in settings.weight_decays
    ]
    fits, seconds = _fit(cache, configs, settings, watch, None)
    ranked = sorted(fits, key=_rank)
    if ranked[0].diverged:
        raise HeadError(f"every head diverged: the lowest of --lrs {min(settings.lrs):g} is too high; add lower ones")
    trials = [
        Trial(
            {"lr": f.config.lr, "weight_decay": f.config.weight_decay},
            val=f.val_accuracy,
            train=f.train_accuracy,
            note="diverged" if f.diverged else "",
        )
        for f in ranked
    ]
    watch.show(search_table(trials, title=f"{len(trials)} heads in one pass, ranked by val accuracy, then val loss"))
    lines = [
        {
            "lr": f.config.lr,
            "weight_decay": f.config.weight_decay,
            "val": f.val_accuracy,
            "train": None if f.diverged else f.train_accuracy,
            "best_epoch": f.best_epoch,
            "diverged": f.diverged,
        }
        for f in ranked
    ]
    trace = [dataclasses.asdict(trace_row(e)) for e in ranked[0].trace]
    return _save(cache, "search", settings, ranked[0], seconds, watch, trace=trace, trials=lines)


def _rank(fit: FitResult) -> tuple[bool, float, float]:
    """Sound heads first, then by val accuracy; equal accuracies go to the lower val loss."""
    loss = next((e.val_loss for e in fit.trace if e.epoch == fit.best_epoch), None)
    return fit.diverged, -(fit.val_accuracy or 0.0), float("inf") if loss is None else loss


def trace_row(epoch: Epoch) -> TraceRow:
    """A minibatch epoch as a row of the training trace."""
    return TraceRow(
        epoch=epoch.epoch,
        loss=epoch.loss,
        accuracy=epoch.accuracy,
        val_accuracy=epoch.val_accuracy,
        lr=epoch.lr,
        val_loss=epoch.val_loss,
    )


def _fit(
    cache: Cache, configs: Sequence[MinibatchConfig], settings: HeadSettings, watch: Watch, tell: Any
) -> tuple[list[FitResult], float]:
    """Fit heads on train, choose their epochs on val; reads no other split."""
    from pipeline.heads.minibatch import fit_minibatch

    runs.require_writable(settings.cache_root)
    fitted, chosen = load_rows(cache, "train"), load_rows(cache, "val")
    if settings.views:
        fitted = with_views(cache, fitted, settings.views)
    if not len(fitted):
        raise HeadError(
            f"{cache.path.name} has no labelled train rows: name another cache, or extract a source with train images"
        )
    watch.say(
        f"{cache.path.name}: {len(fitted):,} train rows, {len(chosen):,} val rows, {cache.dim:,} features, "
        f"{len(cache.classes)} classes"
    )
    began = time.perf_counter()
    fits = fit_minibatch(
        fitted.X,
        fitted.y,
        n_classes=len(cache.classes),
        configs=configs,
        X_val=chosen.X if len(chosen) else None,
        y_val=chosen.y if len(chosen) else None,
        class_weight="balanced" if settings.class_weight == "balanced" else None,
        class_names=cache.classes,
        device=settings.device,
        on_epoch=tell,
    )
    return fits, time.perf_counter() - began


def cache_record(cache: Cache) -> dict[str, Any]:
    """What a run records of the cache that it learned from."""
    return {
        "cache": {
            "path": str(cache.path.resolve()),
            "key": cache.key,
            "content": cache.content,
            "rows": cache.counts(),
            "about": cache.about,
        },
        "provenance": cache.provenance,
        "classes": list(cache.classes),
    }


def _save(
    cache: Cache,
    stage: str,
    settings: HeadSettings,
    best: FitResult,
    seconds: float,
    watch: Watch,
    *,
    trace: list[dict[str, Any]],
    trials: list[dict[str, Any]] | None = None,
) -> TrainResult:
    from pipeline.heads.artifact import Head, save_head

    head = Head(
        kind="linear",
        tensors={"weight": best.weight, "bias": best.bias},
        classes=cache.classes,
        key=cache.key,
        dim=cache.dim,
        meta={"solver": best.config.solver, "pretrained": cache.about["pretrained"]},
    )
    name = cache.path.name.removesuffix(".h5")
    with runs.new_run(
        settings.cache_root, stage=stage, name=name, settings=st.record(settings), about=cache_record(cache)
    ) as (draft, folder):
        result = TrainResult(
            run=folder,
            solver=best.config.solver,
            val=best.val_accuracy,
            train=best.train_accuracy,
            seconds=seconds,
            best_epoch=best.best_epoch,
            trials=len(trials) if trials else 1,
        )
        save_head(draft.folder, head)
        draft.write_lines("trace.jsonl", trace)
        if trials:
            draft.write_lines("trials.jsonl", trials)
        draft.write_json("metrics.json", {**result.to_json(), "config": dataclasses.asdict(best.config)})
    watch.say(_summary(result, best))
    return result


def _summary(result: TrainResult, best: FitResult) -> str:
    from pipeline.report.numbers import percent, seconds, setting

    what = f"best of {result.trials}" if result.trials > 1 else "head"
    config = f"{best.config.solver}, lr {setting(best.config.lr)}, weight decay {setting(best.config.weight_decay)}"
    val = f"val {percent(result.val)}, " if result.val is not None else ""
    figures = f"{val}train {percent(result.train)}, in {seconds(result.seconds)}"
    return f"{what} ({config}; epoch {result.best_epoch}): {figures} -> {result.run}"
