"""A run as a classifier of images: trunk + head, or a fine-tuned network; and a cache's rows as images again.

Shared by prediction, evaluation and fine-tuning.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.base.arithmetic import arithmetic
from pipeline.base.errors import ConfigError, HeadError
from pipeline.base.machine import cores, kind_of_device, resolve_device
from pipeline.base.memory import free_bytes, is_out_of_memory, let_go
from pipeline.base.records import read_file
from pipeline.base.spelling import option
from pipeline.base.transfer import uploaded
from pipeline.base.words import size
from pipeline.base.workspace import Workspace
from pipeline.heads.artifact import Head, load_head, require_key
from pipeline.heads.scores.metrics import softmax
from pipeline.images import Geometry, Loaded
from pipeline.runs import folder as runs
from pipeline.runs.pixels import labelled, pixel_batches
from pipeline.runs.recipe import Recipe
from pipeline.store import Cache, Features
from pipeline.trunk.families.family import anatomy_of
from pipeline.trunk.frozen import FrozenTrunk, default_batch
from pipeline.trunk.identity import WeightsInfo
from pipeline.trunk.surgery import build, freeze, load_tensors

MODEL_FILE = "model.safetensors"
NETWORK_BATCH = 64  # images that a fine-tuned network takes at once; nothing is padded


@dataclass(frozen=True)
class Answer:
    """What a classifier says of n images: ``features`` (n, D) float32, ``logits`` (n, C) float32, and how sure it is.

    ``probabilities`` (n, C) float64 are the softmax of the logits divided by the run's temperature.
    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float64]


class Classifier:
    """A run's network, ready for pixels; make it with :func:`load_classifier`."""

    def __init__(self, run: runs.Run, recipe: Recipe, *, images: int, device: str, work_dir: Path) -> None:
        self.run, self.classes = run, tuple(run.config["classes"])
        # One image must not wait for an ONNX export: the torch engine gives the same features to about 1e-6.
        self.recipe = recipe.computed(engine="torch", device=device, precision="float32")
        self.geometry: Geometry = self.recipe.geometry()
        # A batch is padded to its full size: for one image it is one.
        self.batch = min(images, default_batch(device, self.recipe.trunk.info.transform.crop))
        self.temperature = temperature_of(run)
        self._network: nn.Module | None = None
        if run.stage == "finetune":
            self._network = moved(load_network(run, self.recipe.trunk.info), device)
            self._classifier = classifier_of(self._network, self.recipe.trunk.info)
        else:
            self._head = head_of(run)
            self._trunk = FrozenTrunk(self.recipe.trunk, batch=self.batch, work_dir=work_dir)

    def __call__(self, pixels: NDArray[np.uint8]) -> Answer:
        """Features and logits of (n, 3, S, S) uint8 pixels, n <= ``batch``."""
        if self._network is None:
            # The head learned from features as they are stored: round them in the same way.
            features = self._trunk.features(pixels).astype(self.recipe.dtype).astype(np.float32)
            logits = self._head.logits(features)
        else:
            features, logits = network_forward(self._network, self._classifier, pixels, self.recipe.trunk.info)
        return Answer(features, logits, softmax(logits / self.temperature))


def load_classifier(run: runs.Run, desk: Workspace, *, images: int, device: str) -> Classifier:
    """The run's trunk and head, or its fine-tuned network, for so many images.

    Raises:
        HeadError, WeightsError: files missing, changed or not fitting.
    """
    return Classifier(
        run, runs.recipe_of(run, desk), images=images, device=resolve_device(device), work_dir=desk.engines
    )


def classified(
    classifier: Classifier, loaded: Iterator[Loaded]
) -> Iterator[tuple[list[Loaded], list[int], Answer | None]]:
    """Images in batches: the batch, the places in it of those that could be used, and what is said of these, if any."""
    while batch := list(itertools.islice(loaded, classifier.batch)):
        pixels = {place: item.pixels for place, item in enumerate(batch) if item.pixels is not None}
        yield batch, list(pixels), classifier(np.stack(list(pixels.values()))) if pixels else None


def temperature_of(run: runs.Run) -> float:
    """What the run's logits are divided by before probabilities are made of them; 1 for runs from before it was kept.

    Raises:
        HeadError: the head's files are missing or damaged.
    """
    if run.stage != "finetune":
        return head_of(run).temperature
    return run.metrics.get("temperature", 1.0)


def head_of(run: runs.Run) -> Head:
    """The head that the run keeps.

    Raises:
        HeadError: its files are missing or damaged, or of other classes or features than the run.
    """
    head = load_head(run.folder)
    require_key(head, run.config["cache"]["key"], f"{run.folder / 'config.json'}")
    if list(head.classes) != run.config["classes"]:
        raise HeadError(f"{run.folder} has a head of other classes than its config.json: train again")
    return head


def load_network(run: runs.Run, info: WeightsInfo) -> nn.Module:
    """The fine-tuned network of a run, frozen and in eval mode.

    Raises:
        HeadError: the file is missing, damaged or of another network.
    """
    path = run.folder / MODEL_FILE
    try:
        data = read_file(path, None)
        written = run.metrics.get("model_sha256")
        if written is not None and hashlib.sha256(data).hexdigest() != written:
            raise HeadError(f"{path} is not what was written: its bytes have changed; fine-tune again")
        classes, size = len(run.config["classes"]), info.transform.crop
        network = build(info.trunk, num_classes=classes, image_size=size, pretrained=info.pretrained)
        anatomy = anatomy_of(info.trunk, network)
        network.set_submodule(anatomy.classifier, nn.Linear(anatomy.dim, classes))  # some have theirs without a bias
        load_tensors(network, safetensors.torch.load(data))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise HeadError(f"{path} cannot be used: {' '.join(str(error).split())[:200]}; fine-tune again") from error
    freeze(network)
    return network


@contextmanager
def within_memory(device: str) -> Iterator[None]:
    """For what needs memory on a device.

    Raises:
        ConfigError: a GPU has too little of it for what is done within; the error says how much is free.
    """
    try:
        yield
    except RuntimeError as error:
        if kind_of_device(device) != "cuda" or not is_out_of_memory(error):
            raise
        let_go(error)
        raise ConfigError(
            f"out of memory: {option('device', device)} has {size(free_bytes(device))} free, and the network takes "
            f"more: end what else runs there, or give {option('device', 'cpu')}"
        ) from error


def moved(network: nn.Module, device: str) -> nn.Module:
    """The network on a device.

    Raises:
        ConfigError: it does not fit there.
    """
    with within_memory(device):
        return network.to(device)


def normalised(pixels: Any, info: WeightsInfo, device: Any) -> Any:
    """(n, 3, S, S) uint8 pixels as the float32 tensor that the network takes."""
    x = uploaded(torch.from_numpy(pixels), device).to(torch.float32).div_(255)
    constants = torch.tensor([info.transform.mean, info.transform.std], dtype=torch.float32)
    mean, std = uploaded(constants, device).view(2, 1, 3, 1, 1)
    return x.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def classifier_of(network: nn.Module, info: WeightsInfo) -> nn.Module:
    """The layer of a whole network that makes logits of features."""
    return network.get_submodule(anatomy_of(info.trunk, network).classifier)


def network_forward(
    network: nn.Module, classifier: nn.Module, pixels: NDArray[np.uint8], info: WeightsInfo
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features (n, D) and logits (n, C), float32, of a whole network in the mode and on the device that it is in.

    ``classifier`` is the layer of its own whose input the features are.

    Raises:
        ConfigError: a GPU has too little memory.
    """
    device = next(network.parameters()).device
    captured: list[Any] = []
    handle = classifier.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    try:
        with torch.inference_mode(), arithmetic(), within_memory(str(device)):
            logits = network(normalised(pixels, info, device))
            return captured[0].float().cpu().numpy(), logits.float().cpu().numpy()
    finally:
        handle.remove()


def logits_of_split(run: runs.Run, cache: Cache, split: str, desk: Workspace, *, device: str) -> NDArray[np.float32]:
    """Logits (n, C) float32 of a fine-tuned run on the images of the labelled good rows of a split.

    ``device`` is ``cpu`` or ``cuda``.

    Raises:
        HeadError, WeightsError: the run's network is not to be had.
        DataError: an image is gone or has changed.
    """
    recipe = runs.recipe_of(run, desk)
    network = moved(load_network(run, recipe.trunk.info), device)
    return network_logits(network, recipe, cache, split, desk)


def logits_of_rows(
    run: runs.Run, cache: Cache, rows: NDArray[np.int64], size: int, desk: Workspace, *, device: str
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Logits (m, C) float32 of good rows of the run's cache, ``size`` of them or fewer at a time, in their order.

    Raises:
        HeadError, WeightsError: the run's head or network is not to be had.
        CacheError: a block is damaged.
        DataError: an image that a fine-tuned network needs is gone or has changed.
    """
    if run.stage != "finetune":
        head = head_of(run)
        start = 0
        for X, y in Features(cache, rows).batches(size):
            part = rows[start : start + len(y)]
            cache.verify(part)
            yield part, head.logits(X)
            start += len(y)
        return
    recipe = runs.recipe_of(run, desk)
    network = moved(load_network(run, recipe.trunk.info), resolve_device(device))
    classifier = classifier_of(network, recipe.trunk.info)
    batches = pixel_batches(
        cache, rows.tolist(), geometry=recipe.geometry(), size=min(size, NETWORK_BATCH), workers=cores()
    )
    for at, pixels in batches:
        yield np.array(at, np.int64), network_forward(network, classifier, pixels, recipe.trunk.info)[1]


def network_logits(
    network: nn.Module, recipe: Recipe, cache: Cache, split: str, desk: Workspace
) -> NDArray[np.float32]:
    """Logits (n, C) float32 of a whole network on the images of the labelled good rows of a split.

    Raises:
        DataError: an image is gone or has changed.
    """
    rows, parts = labelled(cache, split), []
    geometry, classifier = recipe.geometry(), classifier_of(network, recipe.trunk.info)
    batches = pixel_batches(cache, rows.tolist(), geometry=geometry, size=NETWORK_BATCH, workers=cores())
    with desk.watch.track(split, len(rows)) as tracker:
        for part, pixels in batches:
            parts.append(network_forward(network, classifier, pixels, recipe.trunk.info)[1])
            tracker.advance(len(part))
    return np.concatenate(parts)
