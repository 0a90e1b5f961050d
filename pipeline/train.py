"""Stage two: store + heads -> run. Trains one head on cached features.

The functions here that fit are never handed a test row; the test split is read by ``pipeline.stages.score`` alone.
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
from pipeline.base.settings import CACHE_HELP, LATEST, ROOT_HELP
from pipeline.base.watch import TraceRow, Watch
from pipeline.heads.minibatch.config import KINDS, SCHEDULES, SOLVERS, MinibatchConfig
from pipeline.runs import folder as runs
from pipeline.runs.folder import cache_record
from pipeline.show.trace import observe
from pipeline.store.find import find_cache
from pipeline.store.rows import Rows, load_rows, with_views

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.heads.artifact import Head
    from pipeline.heads.minibatch.passes import Epoch
    from pipeline.store import Cache

EXACT = "exact"
DEFAULT_C = 0.01  # the README says on which figures
SHOWN_STEPS = 20  # of an exact head's iterations; all of them are kept
_MINIBATCH = {f.name for f in dataclasses.fields(MinibatchConfig)}
VIEWS_HELP = "learn from so many augmented views of each train image, too (made by `pipeline extract --views`)"


@dataclass(frozen=True)
class HeadSettings:
    """What one head and a search for the best one have in common."""

    cache: str = st.argument(CACHE_HELP, default=LATEST)
    class_weight: str = st.option("none", "balanced weighs each class by 1 / its share", choices=("none", "balanced"))
    views: int = st.option(0, VIEWS_HELP, minimum=0)
    seed: int = st.option(MinibatchConfig.seed, "seed of all that is drawn at random", minimum=0)
    device: str = st.option("cpu", "where a head is fitted", choices=("cpu", "cuda"))
    cache_root: Path = st.option(Path("cache"), ROOT_HELP)

    def __post_init__(self) -> None:
        st.check(self)

    @property
    def weighting(self) -> Any:
        """The solvers' ``class_weight``."""
        return None if self.class_weight == "none" else self.class_weight


@dataclass(frozen=True)
class TrainSettings(HeadSettings):
    """Settings of one head. C is of the exact solver; what follows it, of the minibatch ones."""

    solver: str = st.option(
        EXACT, "exact: the optimum of penalised logistic regression; adamw, sgd: minibatches", choices=(EXACT, *SOLVERS)
    )
    C: float = st.option(DEFAULT_C, "exact: inverse of the penalty, as scikit-learn's", above=0)
    kind: str = st.option(MinibatchConfig.kind, "minibatch: the head", choices=KINDS)
    lr: float = st.option(MinibatchConfig.lr, "minibatch: learning rate at the start", above=0)
    weight_decay: float = st.option(
        MinibatchConfig.weight_decay, "minibatch: decoupled decay of weights, not of biases", minimum=0
    )
    epochs: int = st.option(MinibatchConfig.epochs, "minibatch: passes over the train rows", minimum=1)
    batch_size: int = st.option(MinibatchConfig.batch_size, "minibatch: rows in one step", minimum=1)
    schedule: str = st.option(MinibatchConfig.schedule, "minibatch: of the learning rate", choices=SCHEDULES)
    momentum: float = st.option(MinibatchConfig.momentum, "sgd: momentum", minimum=0, below=1)
    label_smoothing: float = st.option(
        MinibatchConfig.label_smoothing, "minibatch: share of each label spread over all classes", minimum=0, below=1
    )
    mixup: float = st.option(MinibatchConfig.mixup, "minibatch: alpha of mixed rows, 0 = off", minimum=0)
    width: int = st.option(MinibatchConfig.width, "mlp: units of a hidden layer", minimum=1)
    depth: int = st.option(MinibatchConfig.depth, "mlp: hidden layers", minimum=1)
    dropout: float = st.option(MinibatchConfig.dropout, "mlp: share of hidden units dropped", minimum=0, below=1)
    patience: int | None = st.option(
        MinibatchConfig.patience, "minibatch: epochs without a better val figure before it stops", minimum=1
    )

    def __post_init__(self) -> None:
        st.check(self)
        of_minibatch = {f.name for f in dataclasses.fields(TrainSettings)} & _MINIBATCH - {"solver", "seed"}
        mine, solvers = (of_minibatch, "adamw or sgd") if self.solver == EXACT else ({"C"}, EXACT)
        for field in dataclasses.fields(self):
            if field.name in mine and getattr(self, field.name) != field.default:
                raise ConfigError(
                    f"{st.flag_name(field.name)} says nothing to --solver {self.solver}: leave it out, or give "
                    f"--solver {solvers}"
                )
        if self.solver != EXACT:
            self.config()

    def config(self) -> MinibatchConfig:
        """The minibatch head's settings.

        Raises:
            ConfigError: values that do not go together.
        """
        names = {f.name for f in dataclasses.fields(self)} & _MINIBATCH
        return MinibatchConfig(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class TrainResult:
    """A trained head: its run's folder, accuracies on val (None without val rows) and train, and seconds of fitting.

    ``steps`` are the iterations of an exact head, the epoch that was kept of a minibatch one; ``converged`` is None
    for a minibatch head.
    """

    run: Path
    solver: str
    val: float | None
    train: float
    seconds: float
    steps: int
    converged: bool | None
    trials: int = 1

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "run": str(self.run)}


@dataclass(frozen=True, eq=False)
class Fitted:
    """A head as a solver gives it: tensors on raw features, the trace, and what the run's record says of it."""

    kind: str
    tensors: Mapping[str, NDArray[np.float32]]
    trace: Sequence[TraceRow]
    steps: int
    converged: bool | None
    record: Mapping[str, Any]


def train(cache: str | Path = LATEST, *, watch: Watch | None = None, **options: Any) -> TrainResult:
    """Train one head on the cache's train rows. Test rows are not read.

    ``options`` are the fields of :class:`TrainSettings`. Of a minibatch head the best epoch on val is kept.

    Raises:
        ConfigError, CacheError, HeadError
    """
    return run_train(st.build(TrainSettings, {"cache": cache, **options}), watch or Watch())


def run_train(settings: TrainSettings, watch: Watch) -> TrainResult:
    """Train one head with settings made; see :func:`train`."""
    cache = find_cache(settings.cache, cache_root=settings.cache_root)
    fitted, chosen = learning_rows(cache, settings, watch)
    began = time.perf_counter()
    fit = _exact if settings.solver == EXACT else _minibatch
    head = fit(cache, fitted, chosen, settings, watch)
    seconds = time.perf_counter() - began
    watch.end_trace()
    if head.converged is False:
        watch.warn(f"not converged: gradient {head.record['grad_norm']:.1e}; a lower --C converges sooner")
    return save(cache, "train", settings, head, fitted, chosen, seconds, watch)


def learning_rows(cache: Cache, settings: HeadSettings, watch: Watch) -> tuple[Rows, Rows]:
    """The train and val rows, checked before long work.

    Raises:
        HeadError: no train rows, or a folder that cannot be written.
    """
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
    return fitted, chosen


def _exact(cache: Cache, fitted: Rows, chosen: Rows, settings: TrainSettings, watch: Watch) -> Fitted:
    from pipeline.heads.exact.path import Step, fit_exact

    rows: list[TraceRow] = []

    def tell(step: Step) -> None:
        val_loss, val_accuracy = None, None
        if len(chosen):
            weight, bias = step.head()
            val_loss, val_accuracy = loss_and_accuracy(linear_logits(chosen.X, weight, bias), chosen.y)
        rows.append(
            TraceRow(step.n_iter, step.objective, step.accuracy, val_accuracy, observation="", val_loss=val_loss)
        )

    fit = fit_exact(
        fitted.X,
        fitted.y,
        n_classes=len(cache.classes),
        Cs=[settings.C],
        class_weight=settings.weighting,
        class_names=cache.classes,
        device=settings.device,
        on_step=tell,
    )[0]
    rows = observed(rows, len(cache.classes), "iteration")
    for row in thinned(rows):
        watch.trace(row, step="Iteration")
    return exact_head(fit, rows)


def exact_head(fit: Any, trace: Sequence[TraceRow] = ()) -> Fitted:
    """An exact fit as what a run keeps."""
    names = ("C", "objective", "loss", "grad_norm", "n_iter", "n_evals", "converged")
    record = {"solver": EXACT, **{name: getattr(fit, name) for name in names}}
    return Fitted("linear", {"weight": fit.weight, "bias": fit.bias}, trace, fit.n_iter, fit.converged, record)


def observed(rows: Sequence[TraceRow], n_classes: int, step: str = "epoch") -> list[TraceRow]:
    """The rows with what their numbers say, each judged by those before it."""
    return [dataclasses.replace(row, observation=observe(rows[: i + 1], n_classes, step)) for i, row in enumerate(rows)]


def thinned(rows: Sequence[TraceRow]) -> list[TraceRow]:
    """At most SHOWN_STEPS of the rows, evenly spaced, the first and the last among them."""
    if len(rows) <= SHOWN_STEPS:
        return list(rows)
    places = sorted({round(i * (len(rows) - 1) / (SHOWN_STEPS - 1)) for i in range(SHOWN_STEPS)})
    return [rows[i] for i in places]


def _minibatch(cache: Cache, fitted: Rows, chosen: Rows, settings: TrainSettings, watch: Watch) -> Fitted:
    from pipeline.heads.minibatch.fit import fit_minibatch

    rows: list[TraceRow] = []

    def tell(_: int, epoch: Epoch) -> None:
        row = trace_row(epoch)
        rows.append(dataclasses.replace(row, observation=observe([*rows, row], len(cache.classes))))
        watch.trace(rows[-1])

    fit = fit_minibatch(
        fitted.X,
        fitted.y,
        n_classes=len(cache.classes),
        configs=[settings.config()],
        X_val=chosen.X if len(chosen) else None,
        y_val=chosen.y if len(chosen) else None,
        class_weight=settings.weighting,
        class_names=cache.classes,
        device=settings.device,
        on_epoch=tell,
    )[0]
    if fit.diverged:
        watch.end_trace()
        raise HeadError(
            f"training diverged after {fit.n_iter} steps: --lr {settings.lr:g} is too high; try {settings.lr / 10:g}"
        )
    return minibatch_head(fit, rows)


def minibatch_head(fit: Any, trace: Sequence[TraceRow]) -> Fitted:
    """A minibatch fit as what a run keeps."""
    return Fitted(fit.config.kind, fit.tensors, trace, fit.best_epoch, None, dataclasses.asdict(fit.config))


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


def linear_logits(X: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any]) -> NDArray[np.float32]:
    """Logits (n, C) float32 of rows (n, D) by a linear head on raw features."""
    import numpy as np

    return np.asarray(X, np.float32) @ weight.T.astype(np.float32) + bias.astype(np.float32)


def loss_and_accuracy(logits: NDArray[np.float32], y: NDArray[np.int64]) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of logits (n, C)."""
    import numpy as np

    from pipeline.heads.scores.metrics import log_softmax

    loss = -log_softmax(logits)[np.arange(len(y)), y].mean()
    return float(loss), float((logits.argmax(axis=1) == y).mean())


def make_head(cache: Cache, fitted: Fitted) -> Head:
    """The artifact of a fitted head."""
    import numpy as np

    from pipeline.heads.artifact import Head

    return Head(
        kind=fitted.kind,  # type: ignore[arg-type]  # the kinds are the same
        tensors={name: np.asarray(tensor, np.float32) for name, tensor in fitted.tensors.items()},
        classes=cache.classes,
        key=cache.key,
        dim=cache.dim,
        meta={"solver": fitted.record["solver"], "pretrained": cache.about["pretrained"]},
    )


def save(
    cache: Cache,
    stage: str,
    settings: HeadSettings,
    fitted: Fitted,
    learned: Rows,
    chosen: Rows,
    seconds: float,
    watch: Watch,
    *,
    trials: Sequence[Mapping[str, Any]] = (),
    val: float | None = None,
    learned_from: Sequence[str] = ("train",),
    files: Mapping[str, str] | None = None,
) -> TrainResult:
    """Keep a head as a run; ``val`` is what it was chosen by, where it may have learned from val, too."""
    from pipeline.heads.artifact import save_head

    head = make_head(cache, fitted)
    if val is None and len(chosen):
        val = loss_and_accuracy(head.logits(chosen.X), chosen.y)[1]
    name = cache.path.name.removesuffix(".h5")
    about = {**cache_record(cache), "learned_from": list(learned_from)}
    with runs.new_run(settings.cache_root, stage=stage, name=name, settings=st.record(settings), about=about) as (
        draft,
        folder,
    ):
        result = TrainResult(
            run=folder,
            solver=str(fitted.record["solver"]),
            val=val,
            train=loss_and_accuracy(head.logits(learned.X), learned.y)[1],
            seconds=seconds,
            steps=fitted.steps,
            converged=fitted.converged,
            trials=max(1, len(trials)),
        )
        save_head(draft.folder, head)
        draft.write_lines("trace.jsonl", [dataclasses.asdict(row) for row in fitted.trace])
        if trials:
            draft.write_lines("trials.jsonl", trials)
        for file, text in (files or {}).items():
            (draft.folder / file).write_text(text, encoding="utf-8")
        draft.write_json("metrics.json", {**result.to_json(), "config": dict(fitted.record)})
    watch.say(_summary(result, fitted))
    return result


def _summary(result: TrainResult, fitted: Fitted) -> str:
    from pipeline.base.words import percent, seconds, setting

    what = f"best of {result.trials}" if result.trials > 1 else "head"
    r = fitted.record
    if fitted.converged is None:
        kind = "" if fitted.kind == "linear" else f"{fitted.kind}, "
        lr, decay = setting(r["lr"]), setting(r["weight_decay"])
        config = f"{kind}{r['solver']}, lr {lr}, weight decay {decay}; epoch {result.steps}"
    else:
        config = f"exact, C {r['C']:.3g}; {result.steps} iterations, gradient {r['grad_norm']:.0e}"
    val = f"val {percent(result.val)}, " if result.val is not None else ""
    return f"{what} ({config}): {val}train {percent(result.train)}, in {seconds(result.seconds)} -> {result.run}"
