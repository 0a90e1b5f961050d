"""Stage three: trunk + head + data -> run. Puts the trained head back on the trunk and trains end to end.

Starts where the head left off: first the certificate (the reattached network gives the logits that the head gives on
the cached rows), then training; step 0 is a candidate like every epoch, and the best on val is kept (P4). The test
split is not read here.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import runs
from pipeline import settings as st
from pipeline.cached import ROOT_HELP, cache_record
from pipeline.errors import HeadError
from pipeline.evaluate import RUN_HELP, cache_of
from pipeline.report.trace import TraceRow, observe
from pipeline.report.watch import Watch

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from pipeline.frozen import TrunkSpec
    from pipeline.heads.artifact import Head
    from pipeline.store import Cache

# A stored feature is off by at most this share of itself (half a unit in the last place); the network's own arithmetic
# differs by about 1e-5 between two orders of summation.
STORAGE_ERROR = {"float16": 2.0**-11, "float32": 2.0**-24}
ARITHMETIC_ERROR = {"float32": 2e-5, "bfloat16": 2.0**-7}


@dataclass(frozen=True)
class FinetuneSettings:
    """Settings of fine-tuning. Learning rates are used as given: nothing scales them (P2)."""

    run: str = st.argument(RUN_HELP, default=runs.LATEST)
    epochs: int = st.option(3, "passes over the train images", minimum=1)
    train: str = st.option(
        "all", "which part of the trunk learns besides the head", choices=("all", "layer3+", "layer4", "head")
    )
    lr_trunk: float = st.option(1e-5, "highest learning rate of the trunk", above=0)
    lr_head: float = st.option(1e-4, "highest learning rate of the head", above=0)
    weight_decay: float = st.option(1e-2, "decoupled decay of weights; biases and BatchNorm have none", minimum=0)
    batch_size: int = st.option(32, "images in one step", minimum=1)
    flip: bool = st.option(False, "mirror half of the train images")
    seed: int = st.option(0, "seed of the order of the images and of the flips", minimum=0)
    device: str = st.option("auto", "where the network runs", choices=("auto", "cpu", "cuda"))
    workers: int | None = st.option(None, "decoding threads; by default one per core", minimum=1)
    cache_root: Path = st.option(Path("cache"), ROOT_HELP)

    def __post_init__(self) -> None:
        st.check(self)


@dataclass(frozen=True)
class FinetuneResult:
    """Val accuracy before and after, and the certificate: the largest logit difference before training."""

    run: Path
    before: float
    after: float
    best_epoch: int
    certificate_max_abs: float
    certificate_tolerance: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "run": str(self.run)}


def finetune(run: str | Path = runs.LATEST, *, watch: Watch | None = None, **options: Any) -> FinetuneResult:
    """Fine-tune a head run end to end; the better of before and after, on val, is kept.

    ``options`` are the fields of :class:`FinetuneSettings`.

    Raises:
        HeadError, CacheError, DataError, WeightsError: before training wherever it can be known.
    """
    return run_finetune(st.build(FinetuneSettings, {"run": run, **options}), watch or Watch())


def run_finetune(settings: FinetuneSettings, watch: Watch) -> FinetuneResult:
    """Fine-tune with settings made; see :func:`finetune`."""
    from pipeline.heads.artifact import load_head, require_key

    run = runs.find_run(settings.run, cache_root=settings.cache_root)
    if run.stage not in ("train", "search"):
        raise HeadError(f"{run.folder.name} is a {run.stage} run: give a run of `pipeline train` or `pipeline search`")
    runs.require_writable(settings.cache_root)
    cache = cache_of(run)
    head = load_head(run.folder)
    require_key(head, cache.key, str(cache.path))
    if head.kind != "linear":
        raise HeadError(f"{run.folder.name} has a head of kind {head.kind}: fine-tuning starts from a linear one")
    if "val" in run.config.get("learned_from", ()):
        watch.warn(
            f"the head of {run.folder.name} has learned from val, too, on which before and after are compared: "
            "search with --no-refit for a head to fine-tune"
        )
    for split in ("train", "val"):
        if not len(cache.rows(split)):
            raise HeadError(f"{cache.path.name} has no {split} rows: fine-tuning needs train and val images")
    tuning = _Tuning(settings, run, cache, head, watch)
    name = cache.path.name.removesuffix(".h5")
    with runs.new_run(
        settings.cache_root,
        stage="finetune",
        name=name,
        settings=st.record(settings),
        about={**cache_record(cache), "started_from": run.folder.name},
    ) as (draft, folder):
        result = dataclasses.replace(tuning.work(draft.folder), run=folder)
        draft.write_lines("trace.jsonl", [dataclasses.asdict(r) for r in tuning.rows])
        draft.write_json("metrics.json", result.to_json())
    watch.say(_verdict(result))
    return result


def _verdict(result: FinetuneResult) -> str:
    from pipeline.report.numbers import percent, points, seconds

    change = f"val {percent(result.before)} -> {percent(result.after)} ({points(result.after - result.before)})"
    if result.best_epoch == 0:
        change = f"val stayed at {percent(result.before)}: fine-tuning did not help, the head is kept as it was"
    return f"{change}, in {seconds(result.seconds)} -> {result.run}"


class _Tuning:
    """One fine-tuning: the network, its optimiser, its images."""

    def __init__(self, settings: FinetuneSettings, run: runs.Run, cache: Cache, head: Head, watch: Watch) -> None:
        import numpy as np

        from pipeline.classifier import image_root
        from pipeline.frozen import TrunkSpec
        from pipeline.trunk import known
        from pipeline.trunk.model import reattach
        from pipeline.trunk.weights import load_model

        self.settings, self.cache, self.head, self.watch = settings, cache, head, watch
        self.root = image_root(cache)
        about = run.config["cache"]["about"]
        self.spec: TrunkSpec = TrunkSpec.of(
            cache.provenance, weights=about["weights"], cache_root=settings.cache_root, watch=watch
        )
        if self.spec.layer != "avgpool":
            raise HeadError(
                f"the features are of {self.spec.layer}: only the last stage's can be fine-tuned end to end"
            )
        self.device = known.resolve_device(settings.device)
        model = load_model(self.spec.info, trunk=self.spec.info.trunk)
        self.network: nn.Module = reattach(model, head.tensors["weight"], head.tensors["bias"])
        self.network.to(self.device).eval()
        self.train_rows, self.val_rows = (self._labelled(cache.rows(s)) for s in ("train", "val"))
        self.rng = np.random.default_rng(settings.seed)
        self.rows: list[TraceRow] = []

    def _labelled(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows[self.cache.labels[rows] >= 0]

    def work(self, folder: Path) -> FinetuneResult:
        """Certificate, training, and the best network written to ``folder``."""
        import numpy as np
        import safetensors.torch

        began = time.perf_counter()
        logits = self._logits(self.val_rows, "certificate")
        certificate, tolerance = self._certificate(logits)
        groups = self._groups()
        self._show_groups(groups)
        before_loss, before = self._scores(self.val_rows, logits)
        cached = self.head.logits(np.asarray(self.cache.features[self.train_rows]))
        self._tell(0, *self._scores(self.train_rows, cached), before, before_loss)
        best = (before, -before_loss, 0)
        self._keep(folder)
        optimizer = _adamw(groups)
        steps_per_epoch = math.ceil(len(self.train_rows) / self.settings.batch_size)
        total = self.settings.epochs * steps_per_epoch
        for epoch in range(1, self.settings.epochs + 1):
            loss, accuracy = self._epoch(optimizer, (epoch - 1) * steps_per_epoch, total)
            if not math.isfinite(loss):
                self.watch.warn(f"epoch {epoch}: the loss is not finite; stopped. Lower --lr-trunk and --lr-head")
                break
            val_loss, val = self._scores(self.val_rows, self._logits(self.val_rows, "val"))
            self._tell(epoch, loss, accuracy, val, val_loss)
            if (val, -val_loss, epoch) > best:
                best = (val, -val_loss, epoch)
                self._keep(folder)
        self.watch.end_trace()
        state = safetensors.torch.load_file(folder / "best.safetensors")
        from pipeline.classifier import MODEL_FILE

        safetensors.torch.save_file(state, folder / MODEL_FILE, metadata={"trunk": self.spec.info.trunk})
        (folder / "best.safetensors").unlink()
        return FinetuneResult(
            run=folder,
            before=before,
            after=best[0],
            best_epoch=best[2],
            certificate_max_abs=certificate,
            certificate_tolerance=tolerance,
            seconds=time.perf_counter() - began,
        )

    # -- certificate ----------------------------------------------------------------------------------------------

    def _certificate(self, logits: NDArray[np.float32]) -> tuple[float, float]:
        """Largest difference between the network's logits and the head's on the cached rows, and what is allowed.

        A logit is a sum of products w·x; with every x off by a share e of itself the sum is off by at most
        e · sum |w·x|: the tolerance is the largest such sum times the errors of storage and arithmetic.
        """
        import numpy as np

        features = np.asarray(self.cache.features[self.val_rows], np.float32)
        cached = self.head.logits(features)
        reach = float((np.abs(features) @ np.abs(self.head.tensors["weight"]).T).max())
        share = STORAGE_ERROR[self.spec.dtype] + ARITHMETIC_ERROR[self.spec.precision]
        difference, tolerance = float(np.abs(logits - cached).max()), share * reach
        text = f"largest logit difference {difference:.2e} over {len(logits):,} val images, {tolerance:.2e} allowed"
        if not difference <= tolerance:
            raise HeadError(f"the reattached network does not give the cached logits: {text}; extract and train again")
        self.watch.say(f"certificate: the reattached network gives the cached logits ({text})")
        return difference, tolerance

    def _logits(self, rows: NDArray[np.int64], what: str) -> NDArray[np.float32]:
        return logits_of_rows(self.network, self.spec, self.cache, rows, root=self.root, what=what, watch=self.watch)

    def _scores(self, rows: NDArray[np.int64], logits: NDArray[np.float32]) -> tuple[float, float]:
        """Mean cross-entropy and accuracy of logits (n, C) of cache rows (n,)."""
        import numpy as np

        from pipeline.heads.metrics import log_softmax

        y = self.cache.labels[rows]
        loss = -float(log_softmax(logits)[np.arange(len(y)), y].mean())
        return loss, float((logits.argmax(axis=1) == y).mean())

    def _tell(self, epoch: int, loss: float, accuracy: float, val: float, val_loss: float) -> None:
        row = TraceRow(epoch=epoch, loss=loss, accuracy=accuracy, val_accuracy=val, val_loss=val_loss)
        self.rows.append(dataclasses.replace(row, observation=observe([*self.rows, row], len(self.cache.classes))))
        self.watch.trace(self.rows[-1])

    # -- training -------------------------------------------------------------------------------------------------

    def _groups(self) -> list[dict[str, Any]]:
        """Parameter groups; every trainable parameter is in exactly one of them (P1)."""
        prefixes = {"all": ("",), "layer3+": ("layer3.", "layer4."), "layer4": ("layer4.",), "head": ()}
        trained = prefixes[self.settings.train]
        found: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            is_head = name.startswith("fc.")
            parameter.requires_grad_(is_head or name.startswith(trained) if trained else is_head)
            if parameter.requires_grad:
                # One-dimensional parameters are biases and BatchNorm's: decay would pull them from their meaning.
                found.setdefault(("head" if is_head else "trunk", parameter.ndim > 1), []).append(parameter)
        s = self.settings
        return [
            {
                "params": parameters,
                "name": part + (" weights" if decays else " biases" if part == "head" else " biases and BatchNorm"),
                "peak": s.lr_head if part == "head" else s.lr_trunk,
                "lr": s.lr_head if part == "head" else s.lr_trunk,
                "weight_decay": s.weight_decay if decays else 0.0,
            }
            for (part, decays), parameters in found.items()
        ]

    def _show_groups(self, groups: list[dict[str, Any]]) -> None:
        from pipeline.report.numbers import count, setting

        for group in groups:
            number = sum(p.numel() for p in group["params"])
            self.watch.say(
                f"trained: {group['name']}, {count(number)} parameters, lr {setting(group['peak'])}, "
                f"weight decay {setting(group['weight_decay'])}"
            )
        frozen = sum(p.numel() for p in self.network.parameters() if not p.requires_grad)
        if frozen:
            self.watch.say(f"frozen: {count(frozen)} parameters")
        self.watch.say("frozen: BatchNorm's running means and variances")

    def _epoch(self, optimizer: torch.optim.Optimizer, done: int, total: int) -> tuple[float, float]:
        """One pass over the train images; mean loss and accuracy as measured before each step."""
        import torch

        from pipeline.classifier import normalised, pixel_batches

        s, loss_sum, hits = self.settings, 0.0, 0
        order = self.rng.permutation(self.train_rows).tolist()
        batches = pixel_batches(
            self.cache,
            order,
            root=self.root,
            geometry=self.spec.geometry(),
            size=s.batch_size,
            workers=s.workers or len(os.sched_getaffinity(0)),
        )
        with self.watch.track(f"epoch {done * s.batch_size // max(1, len(order)) + 1}", len(order)) as tracker:
            for step, (rows, pixels) in enumerate(batches, start=done):
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * _schedule(step, total)
                if s.flip:
                    mirrored = self.rng.random(len(rows)) < 0.5
                    pixels[mirrored] = pixels[mirrored][..., ::-1]
                y = torch.from_numpy(self.cache.labels[rows]).to(self.device)
                logits = self.network(normalised(pixels, self.spec.info, self.device))
                loss = torch.nn.functional.cross_entropy(logits, y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                loss_sum += float(loss.detach()) * len(rows)
                hits += int((logits.detach().argmax(dim=1) == y).sum())
                tracker.advance(len(rows))
        return loss_sum / len(order), hits / len(order)

    def _keep(self, folder: Path) -> None:
        """Write the network as it is now as the best so far."""
        import safetensors.torch

        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        safetensors.torch.save_file(state, folder / "best.safetensors.draft")
        (folder / "best.safetensors.draft").replace(folder / "best.safetensors")


def _adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    import torch

    return torch.optim.AdamW(groups)


def _schedule(step: int, total: int) -> float:
    """Warm-up over the first tenth of the steps, then a half cosine to zero (share of the highest learning rate)."""
    warm = max(1, total // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def logits_of_rows(
    network: nn.Module, spec: TrunkSpec, cache: Cache, rows: NDArray[np.int64], *, root: Path, what: str, watch: Watch
) -> NDArray[np.float32]:
    """Logits (n, C) float32 of the images of cache rows, through a whole network."""
    import numpy as np

    from pipeline.classifier import PREDICT_BATCH, network_forward, pixel_batches

    parts = []
    workers = len(os.sched_getaffinity(0))
    batches = pixel_batches(
        cache, rows.tolist(), root=root, geometry=spec.geometry(), size=4 * PREDICT_BATCH, workers=workers
    )
    with watch.track(what, len(rows)) as tracker:
        for part, pixels in batches:
            parts.append(network_forward(network, pixels, spec.info)[1])
            tracker.advance(len(part))
    return np.concatenate(parts)


def logits_of_split(run: runs.Run, cache: Cache, split: str, *, cache_root: Path, watch: Watch) -> NDArray[np.float32]:
    """Logits (n, C) float32 of a fine-tuned run on the labelled good rows of a split."""
    from pipeline.classifier import image_root, load_network
    from pipeline.frozen import TrunkSpec
    from pipeline.trunk import known

    weights = run.config["cache"]["about"]["weights"]
    spec = TrunkSpec.of(cache.provenance, weights=weights, cache_root=cache_root, watch=watch)
    network = load_network(run, spec.info).to(known.resolve_device("auto"))
    rows = cache.rows(split)
    rows = rows[cache.labels[rows] >= 0]
    return logits_of_rows(network, spec, cache, rows, root=image_root(cache), what=split, watch=watch)
