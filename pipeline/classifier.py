"""A run as a classifier of images: trunk + head, or a fine-tuned network; and a cache's rows as images again.

Shared by prediction, evaluation and fine-tuning.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import runs
from pipeline.base.errors import DataError, HeadError
from pipeline.base.machine import resolve_device
from pipeline.base.watch import Watch
from pipeline.frozen import FrozenTrunk, TrunkSpec

if TYPE_CHECKING:
    from torch import nn

    from pipeline.images import Geometry, ImageFailure
    from pipeline.store import Cache
    from pipeline.trunk.identity import WeightsInfo

MODEL_FILE = "model.safetensors"
PREDICT_BATCH = 16  # images


@dataclass(frozen=True)
class Answer:
    """What a classifier says of n images: ``features`` (n, D) float32 and ``logits`` (n, C) float32."""

    features: NDArray[np.float32]
    logits: NDArray[np.float32]


class Classifier:
    """A run's network, ready for pixels; make it with :func:`load_classifier`."""

    def __init__(self, run: runs.Run, spec: TrunkSpec, *, device: str, work_dir: Path) -> None:
        from pipeline.heads.artifact import load_head

        self.run, self.classes = run, tuple(run.config["classes"])
        # One image must not wait for an ONNX export: the torch engine gives the same features to about 1e-6.
        self.spec = replace(spec, engine="torch", device=device, precision="float32")
        self.geometry: Geometry = self.spec.geometry()
        self._network: nn.Module | None = None
        if run.stage == "finetune":
            self._network = load_network(run, self.spec.info).to(device)
        else:
            self._head = load_head(run.folder)
            self._trunk = FrozenTrunk(self.spec, batch=PREDICT_BATCH, work_dir=work_dir)

    def __call__(self, pixels: NDArray[np.uint8]) -> Answer:
        """Features and logits of (n, 3, S, S) uint8 pixels, n <= PREDICT_BATCH."""
        if self._network is None:
            # The head learned from features as they are stored: round them in the same way.
            features = self._trunk.features(pixels).astype(self.spec.dtype).astype(np.float32)
            return Answer(features, self._head.logits(features))
        features, logits = network_forward(self._network, pixels, self.spec.info)
        return Answer(features, logits)


def load_classifier(run: runs.Run, *, cache_root: Path, device: str, watch: Watch) -> Classifier:
    """The run's trunk and head, or its fine-tuned network.

    Raises:
        HeadError, WeightsError: files missing, changed or not fitting.
    """

    weights = run.config["cache"]["about"]["weights"]
    spec = TrunkSpec.of(run.config["provenance"], weights=weights, cache_root=cache_root, watch=watch)
    return Classifier(run, spec, device=resolve_device(device), work_dir=cache_root / "engines")


def load_network(run: runs.Run, info: WeightsInfo) -> nn.Module:
    """The fine-tuned torchvision network of a run, frozen and in eval mode.

    Raises:
        HeadError: the file is missing, damaged or of another network.
    """
    import safetensors
    import safetensors.torch

    from pipeline.trunk.surgery import build, freeze

    path = run.folder / MODEL_FILE
    try:
        data = path.read_bytes()
        written = run.metrics.get("model_sha256")
        if written is not None and hashlib.sha256(data).hexdigest() != written:
            raise HeadError(f"{path} is not what was written: its bytes have changed; fine-tune again")
        network = build(info.trunk, num_classes=len(run.config["classes"]))
        network.load_state_dict(safetensors.torch.load(data), strict=True)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise HeadError(f"{path} cannot be used: {' '.join(str(error).split())[:200]}; fine-tune again") from error
    freeze(network)
    return network


def normalised(pixels: Any, info: WeightsInfo, device: Any) -> Any:
    """(n, 3, S, S) uint8 pixels as the float32 tensor that torchvision's preset makes of them."""
    import torch

    x = torch.from_numpy(pixels).to(device).to(torch.float32).div_(255)
    mean, std = (torch.tensor(v, dtype=torch.float32, device=device).view(1, 3, 1, 1) for v in (info.mean, info.std))
    return x.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def network_forward(
    network: nn.Module, pixels: NDArray[np.uint8], info: WeightsInfo
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features (n, D) and logits (n, C), float32, of a whole torchvision network in the mode that it is in."""
    import torch

    captured: list[Any] = []
    head = network.get_submodule("fc")
    handle = head.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    try:
        with torch.inference_mode():
            logits = network(normalised(pixels, info, next(network.parameters()).device))
    finally:
        handle.remove()
    return captured[0].float().cpu().numpy(), logits.float().cpu().numpy()


def pixel_batches(
    cache: Cache, rows: Sequence[int], *, root: Path, geometry: Geometry, size: int, workers: int
) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    """The images of cache rows, in the order given, as batches ``(rows, (m, 3, S, S) uint8)``, decoded ahead.

    Raises:
        DataError: an image is gone or is not the one that the row was made from.
    """
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    return pixels_of(cache, batches, root=root, geometry=geometry, workers=workers)


def pixels_of(
    cache: Cache, batches: Sequence[Sequence[int]], *, root: Path, geometry: Geometry, workers: int
) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    """As :func:`pixel_batches`, for batches of rows as they are given."""
    from pipeline.images import Loader

    ids, digests, folder = cache.ids, cache.digests, os.fsencode(root)
    ahead = 2 * max((len(batch) for batch in batches), default=1)
    with Loader(geometry, workers=workers, ahead=ahead) as loader:
        loaded = loader.load((row, os.path.join(folder, ids[row])) for batch in batches for row in batch)
        for batch in batches:
            pixels = []
            for _ in batch:
                item = next(loaded)
                if item.failure is not None or item.digest != digests[item.index].tobytes():
                    raise changed_image(root, ids[item.index], item.failure)
                assert item.pixels is not None
                pixels.append(item.pixels)
            yield list(batch), np.stack(pixels)


def changed_image(root: Path, item: bytes, failure: ImageFailure | None = None) -> DataError:
    """The error for an image that is not the one that its row was made from; ``failure`` is why it cannot be read."""
    name = f"{root}/{os.fsdecode(item)!a}"
    if failure is not None:
        return DataError(f"{name}: {failure.reason}: the images must be where the cache found them, as they were")
    return DataError(f"{name} has changed since its features were made: run `pipeline extract` again, and train again")


def require_images(cache: Cache, rows: NDArray[np.int64], root: Path, *, workers: int) -> None:
    """Find out before long work that the images of cache rows are there and unchanged.

    Of a file whose size and time are those that the cache recorded nothing is read; others are hashed.

    Raises:
        DataError: one is gone or has changed.
    """
    from pipeline.images import Geometry, digest_many
    from pipeline.images.loader import load_one

    ids, digests, (sizes, times), folder = cache.ids, cache.digests, cache.stats, os.fsencode(root)
    touched = []
    for row in rows.tolist():
        try:
            found = os.stat(os.path.join(folder, ids[row]))
        except OSError:
            touched.append(row)  # reading it says what is wrong with it
            continue
        if (found.st_size, found.st_mtime_ns) != (sizes[row], times[row]):
            touched.append(row)
    paths = [os.path.join(folder, ids[row]) for row in touched]
    same = (digest_many(paths, workers=workers) == digests[touched]).all(axis=1)
    for row, path in ((touched[i], paths[i]) for i in np.flatnonzero(~same)):
        raise changed_image(root, ids[row], load_one(row, path, Geometry(1, 1)).failure)


def labelled(cache: Cache, split: str) -> NDArray[np.int64]:
    """Indices (n,) int64 of the labelled good rows of a split, ascending."""
    rows = cache.rows(split)
    return rows[cache.labels[rows] >= 0]


def logits_of_rows(
    network: nn.Module, spec: TrunkSpec, cache: Cache, rows: NDArray[np.int64], *, root: Path, what: str, watch: Watch
) -> NDArray[np.float32]:
    """Logits (n, C) float32 of the images of cache rows, through a whole network."""
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

    weights = run.config["cache"]["about"]["weights"]
    spec = TrunkSpec.of(cache.provenance, weights=weights, cache_root=cache_root, watch=watch)
    network = load_network(run, spec.info).to(resolve_device("auto"))
    rows = labelled(cache, split)
    return logits_of_rows(network, spec, cache, rows, root=image_root(cache), what=split, watch=watch)


def image_root(cache: Cache) -> Path:
    """The folder that the cache's ids are relative to.

    Raises:
        DataError: it is not there any more.
    """
    root = Path(cache.about["root"])
    if not root.is_dir():
        raise DataError(
            f"the images of {cache.path.name} are not at {root} any more: run `pipeline extract` on their new place"
        )
    return root
