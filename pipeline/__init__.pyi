"""Made from the settings by `pytest tests/whole --write-stub`."""

from collections.abc import Sequence
from os import PathLike

from pipeline.base.watch import Watch
from pipeline.stages.extract.results import ExtractResult
from pipeline.stages.finetune.job import FinetuneResult
from pipeline.stages.learn.baseline import BaselineReport
from pipeline.stages.learn.few_shot import FewShotResult
from pipeline.stages.learn.kept import TrainResult
from pipeline.stages.score.compare import CompareResult
from pipeline.stages.score.evaluate import EvaluateResult
from pipeline.stages.upkeep.results import AuditReport, InspectReport, RelabelResult, VerifyReport
from pipeline.stages.use.results import ExportResult, Predictions, TraceReport
from pipeline.store import Cache

__all__ = [
    "audit",
    "baseline",
    "compare",
    "evaluate",
    "export",
    "extract",
    "finetune",
    "inspect",
    "open_cache",
    "predict",
    "relabel",
    "search",
    "trace",
    "train",
    "verify",
]

def audit(
    cache: str | PathLike[str] = "latest",
    *,
    near: float | None = None,
    tiny: int = 5,
    drop_leaks: bool = False,
    out: str | PathLike[str] | None = None,
    strict: bool = False,
    workspace: str | PathLike[str] | None = None,
    watch: Watch | None = None,
) -> AuditReport: ...
def baseline(
    cache: str | PathLike[str] = "latest",
    *,
    names: str | PathLike[str] | Sequence[str | PathLike[str]] = (
        "majority",
        "centroid",
        "cosine-centroid",
        "knn10",
        "knn20",
        "knn100",
        "knn200",
        "ridge",
        "logreg",
    ),
    test: bool = False,
    floors: bool = False,
    max_iter: int = 1000,
    workspace: str | PathLike[str] | None = None,
    watch: Watch | None = None,
) -> BaselineReport: ...
def compare(
    first: str | PathLike[str],
    second: str | PathLike[str],
    *,
    device: str | PathLike[str] = "auto",
    workspace: str | PathLike[str] | None = None,
    watch: Watch | None = None,
) -> CompareResult: ...
def evaluate(
    run: str | PathLike[str] = "latest",
    *,
    data: str | PathLike[str] | None = None,
    split: str | PathLike[str] | None = None,
    device: str | PathLike[str] = "auto",
    workspace: str | PathLike[str] | None = None,
    watch: Watch | None = None,
) -> EvaluateResult: ...
def export(
    run: str | PathLike[str] = "latest",
    *,
    format: str | PathLike[str] = "onnx",
    out: str | PathLike[str] | None = None,
    workspace: str | PathLike[str] | None = None,
    watch: Watch | None = None,
) -> ExportResult: ...
def extract(
    source: str | PathLike[str],
    *,
    out: str | PathLike[str] | None = None,
    trunk: str | PathLike[str] = "resnet50",
    weights: str | PathLike[str] = "DEFAULT",
    preset: str | PathLike[str] | None = None,
    image_size: int | None = None,
    resize: int | None = None,
    crop: int | None = None,
    interpolation: str | PathLike[str] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    layer: str | PathLike[str] = "last",
    dtype: str | PathLike[str] = "float16",
    engine: str | PathLike[str] = "auto",
    precision: str | PathLike[str] = "float32",
    device: str | PathLike[str] = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    block_rows: int | None = None,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    split_seed: int = 0,
    views: int = 0,
    view_seed: int = 0,
    max_failures: float = 0.01,
    rehash: bool = False,
    workspace: str | PathLike[str] | None = None,
    watch: Watch | None = None,
) -> ExtractResult: ...
def finetune(
    run: str | PathLike[str] = "latest",
    *,
    train: str | PathLike[str] = "all",
    head: str | PathLike[str] = "trained",
    bn: str | PathLike[str] = "frozen",
    prefix: bool = True,
    yes: bool = False,
    epochs: int = 3,
    solver: str | PathLike[str] = "adamw",
    lr_trunk: float | None = None,
    lr_head: float | None = None,
    layer_decay: float | None = None,
    weight_decay: float = 0.01,
    momentum: float = 0.9,
    warmup: float = 0.1,
    batch_size: int = 32,
    accumulate: int = 1,
    clip: float | None = None,
    augment: str | PathLike[str] = "none",
    randaugment: bool = False,
    mixup: float = 0.0,
    label_smoothing: float = 0.0,
    ema: float | None = None,
    interpolate: bool = False,
    evaluate: bool = True,
    checkpoint_seconds: float = 300,
    fresh: bool = False,
    seed: int = 0,
    precision: str | PathLike[str] = "float32",
    device: str | PathLike[str] = "auto",
    workers: int | None = None,
    workspace: str | PathLike[str] | None = None,
    watch: Watch | None = None,
) -> FinetuneResult: ...
def inspect(
    caches: str | PathLike[str] | Sequence[str | PathLike[str]] = ("latest",),
    *,
    full: bool = False,
    workspace: str | PathLike[str] | None = None,
    watch: Watch | None = None,
) -> InspectReport: ...
def open_cache(
    path: str | PathLike[str],
    *,
    verify: bool = False,
) -> Cache: ...
def predict(
    run: str | PathLike[str],
    images: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    top: int = 5,
    threshold: float = 0.0,
    format: str | PathLike[str] = "table",
    trace: bool = False,
    device: str | PathLike[str] = "auto",
    workspace: str | PathLike[str] | None = None,
    watch: Watch | None = None,
) -> Predictions: ...
def relabel(
    cache: str | PathLike[str],
    source: str | PathLike[str],
    *,
    drop_missing: bool = False,
    out: str | PathLike[str] | None = None,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    split_seed: int = 0,
    workspace: str | PathLike[str] | None = None,
    watch: Watch | None = None,
) -> RelabelResult: ...
def search(
    cache: str | PathLike[str] = "latest",
    *,
    class_weight: str | PathLike[str] = "none",
    views: int = 0,
    seed: int = 0,
    device: str | PathLike[str] = "cpu",
    space: str | PathLike[str] = "exact",
    metric: str | PathLike[str] = "log_loss",
    refit: bool = True,
    evaluate: bool = True,
    Cs: float | Sequence[float] | None = None,
    cv: int = 0,
    shots: int | Sequence[int] | None = None,
    draws: int = 5,
    trials: int = 54,
    epochs: int = 30,
    budget: float | None = None,
    optuna: str | PathLike[str] | None = None,
    workspace: str | PathLike[str] | None = None,
    watch: Watch | None = None,
) -> TrainResult | FewShotResult: ...
def trace(
    target: str | PathLike[str] | None = None,
    *,
    trunk: str | PathLike[str] = "resnet50",
    classes: int = 10,
    image_size: int = 224,
    workspace: str | PathLike[str] | None = None,
    watch: Watch | None = None,
) -> TraceReport: ...
def train(
    cache: str | PathLike[str] = "latest",
    *,
    class_weight: str | PathLike[str] = "none",
    views: int = 0,
    seed: int = 0,
    device: str | PathLike[str] = "cpu",
    solver: str | PathLike[str] = "exact",
    C: float = 0.01,
    kind: str | PathLike[str] = "linear",
    lr: float | None = None,
    weight_decay: float = 0.01,
    epochs: int = 30,
    patience: int | None = None,
    batch_size: int = 256,
    schedule: str | PathLike[str] = "cosine",
    momentum: float = 0.9,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    width: int = 512,
    depth: int = 1,
    dropout: float = 0.0,
    workspace: str | PathLike[str] | None = None,
    watch: Watch | None = None,
) -> TrainResult: ...
def verify(
    cache: str | PathLike[str] = "latest",
    source: str | PathLike[str] | None = None,
    *,
    sample: int = 32,
    seed: int = 0,
    allow_changes: bool = False,
    workspace: str | PathLike[str] | None = None,
    watch: Watch | None = None,
) -> VerifyReport: ...
