"""A trained head back on its trunk, and the certificate that the two together give the cached logits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.base import settings as st
from pipeline.base.errors import ConfigError, HeadError
from pipeline.base.items import SPLITS
from pipeline.base.machine import kind_of_device, resolve_device
from pipeline.base.precision import choose_precision
from pipeline.base.spelling import option
from pipeline.base.words import many
from pipeline.base.workspace import Workspace
from pipeline.heads.artifact import Head, require_key
from pipeline.runs import folder as runs
from pipeline.runs import remarks
from pipeline.runs.folder import cache_of, cache_record
from pipeline.runs.network import head_of, moved
from pipeline.runs.pixels import labelled, require_images
from pipeline.runs.recipe import Recipe, about_of
from pipeline.stages.finetune.groups import trained_stages
from pipeline.stages.finetune.settings import FinetuneSettings
from pipeline.store import Cache
from pipeline.trunk.families.family import Anatomy, anatomy_of
from pipeline.trunk.surgery import reattach
from pipeline.trunk.weights import load_model

# A stored feature is off by at most this share of itself (half a unit in the last place); the network's own arithmetic
# differs by about 1e-5 between two orders of summation.
STORAGE_ERROR = {"float16": 2.0**-11, "float32": 2.0**-24}
ARITHMETIC_ERROR = {"float32": 2e-5, "tf32": 2.0**-8, "bfloat16": 2.0**-7, "int8": 2.0**-3}
# A float16 map is off by at most 2^-11 of itself; the layers after it add errors of both signs. Allowed is twice that;
# found were 2^-12 and less.
MAPS_ERROR = 2.0**-10


@dataclass(frozen=True)
class Certificate:
    """The largest difference of the reattached network's val logits from the cached ones, and what is allowed.

    ``maps``: through the float16 maps before the last stage.
    """

    difference: float
    tolerance: float
    images: int
    maps: bool

    @property
    def way(self) -> str:
        """How it was taken, in words, where that is not through the images."""
        return " through the float16 maps before the last stage" if self.maps else ""

    @property
    def figures(self) -> str:
        """The figures, in words."""
        images = many(self.images, "val image")
        return f"largest logit difference {self.difference:.2e} over {images}, {self.tolerance:.2e} allowed"


@dataclass(frozen=True, eq=False)
class Attached:
    """A head run's network, whole and in eval mode, with the rows that it was trained on.

    ``train``, ``val`` and ``test`` are indices (n,) int64 of the cache's labelled good rows.
    """

    run: runs.Run
    cache: Cache
    head: Head
    recipe: Recipe
    device: str
    network: nn.Module
    anatomy: Anatomy
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]

    def rows(self, split: str) -> NDArray[np.int64]:
        """Its rows (n,) of train, val or test."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]

    @property
    def record(self) -> dict[str, Any]:
        """What a fine-tuned run records of where it comes from; what the head has learned from, it has, too."""
        return {**cache_record(self.cache), "learned_from": self.learned_from, "started_from": self.run.folder.name}

    @property
    def learned_from(self) -> list[str]:
        """The splits that the head, and so the network, has learned from."""
        return self.run.config.get("learned_from", ["train"])

    def identity(self, settings: FinetuneSettings) -> dict[str, Any]:
        """Everything that decides the weights that training gives, as plain JSON values."""
        tensors = self.head.tensors
        head = hashlib.sha256(b"".join(tensors[name].tobytes() for name in sorted(tensors))).hexdigest()
        return {
            "settings": st.identity(settings),
            "key": self.cache.key,
            "content": self.cache.content,
            "head": head,
            "device": kind_of_device(self.device),
        }

    def cached_logits(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits (n, C) float32 of cache rows by the head alone: what stage two saw."""
        return self.head.logits(np.asarray(self.cache.features[rows]))

    def tolerance(self, *, maps: bool) -> float:
        """What a logit of the val images may be off by, given how features (and maps) are stored.

        A logit is a sum of products w·x; with every x off by a share e of itself the sum is off by at most
        e · sum |w·x|: the tolerance is the largest such sum times the errors of storage and arithmetic.
        """
        features = np.asarray(self.cache.features[self.val], np.float32)
        assert self.head.layer is not None  # attach() refuses others
        weight, _ = self.head.layer
        reach = float((np.abs(features) @ np.abs(weight).T).max())
        told = about_of(self.cache).get("agreement")  # of features in another precision: how far they were off
        arithmetic = max(ARITHMETIC_ERROR[self.recipe.trunk.precision], told["largest_error"] if told else 0.0)
        share = STORAGE_ERROR[self.recipe.dtype] + arithmetic
        return (share + MAPS_ERROR * maps) * reach

    def _smallest_steps(self) -> float:
        """What a logit may be off by besides: numbers below the smallest normal one have steps of one size."""
        assert self.head.layer is not None
        half = float(np.finfo(self.recipe.dtype).smallest_subnormal) / 2
        return half * float(np.abs(self.head.layer[0]).sum(axis=1).max())

    def certificate(self, logits: NDArray[np.float32], *, maps: bool, rounding: Callable[[], float]) -> Certificate:
        """The certificate of ``logits`` (n, C) of the val images.

        ``rounding`` measures what rounding alone may make of a logit. It is asked where a difference is larger than the
        errors of storage and the usual arithmetic explain: some networks make more of them than others.

        Raises:
            HeadError: they differ from the cached ones by more than is allowed.
        """
        difference = float(np.abs(logits - self.cached_logits(self.val)).max())
        tolerance = self.tolerance(maps=maps)
        if difference > tolerance:
            tolerance += self._smallest_steps()
        if difference > tolerance:
            tolerance += rounding()
        found = Certificate(difference, tolerance, len(logits), maps)
        if not found.difference <= found.tolerance:
            raise HeadError(
                f"the reattached network does not give the cached logits{found.way}: {found.figures}; extract and "
                "train again"
            )
        return found


def attach(settings: FinetuneSettings, desk: Workspace) -> Attached:
    """The run's head on its trunk; everything that can be known before long work is checked here.

    Raises:
        HeadError: no such run, or one that cannot be fine-tuned; a folder that cannot be written.
        CacheError, DataError, WeightsError: the cache, an image or the weights are gone or not the same.
        ConfigError: a device that is not there, that has no bfloat16, or too little memory.
    """
    run = runs.find_run(settings.run, desk)
    if run.stage not in ("train", "search"):
        raise HeadError(f"{run.folder.name} is a {run.stage} run: give a run of `pipeline train` or `pipeline search`")
    runs.require_writable(desk)
    cache = cache_of(run)
    head = head_of(run)
    require_key(head, cache.key, str(cache.path))
    if head.layer is None:
        raise HeadError(f"{run.folder.name} has a head of kind {head.kind}: fine-tuning starts from a linear one")
    rows = {split: labelled(cache, split) for split in SPLITS[1:]}
    for split in ("train", "val"):
        if not len(rows[split]):
            raise HeadError(f"{cache.path.name} has no {split} rows: fine-tuning needs train and val images")
    recipe = runs.recipe_of(run, desk)
    if recipe.trunk.layer != recipe.trunk.info.layer("last"):
        raise HeadError(f"the features are of {recipe.trunk.layer}: only the last stage's can be fine-tuned end to end")
    device = resolve_device(settings.device)
    if device == "mps":
        raise ConfigError(
            f"{option('device', device)} runs the trunk alone: fine-tuning counts in float64 as well, which it does "
            f"not have; take {option('device', 'cpu')}"
        )
    choose_precision(settings.precision, device, forced=settings.force_precision)
    remarks.left_out(cache, SPLITS[1:], desk.watch)
    require_images(cache, np.concatenate(list(rows.values())), workers=settings.threads)
    cache.verify(np.concatenate([rows["train"], rows["val"]]))
    network = load_model(recipe.trunk.info)
    anatomy = anatomy_of(recipe.trunk.info.trunk, network)
    trained_stages(anatomy, settings.train)
    moved(reattach(network, anatomy, *head.layer), device)
    return Attached(run, cache, head, recipe.computed(device=device), device, network, anatomy, **rows)


def to_random_head(network: nn.Module, anatomy: Anatomy, seed: int) -> None:
    """Replace the head's numbers by those that ``torch.nn.Linear`` starts with, drawn from ``seed``."""
    head = network.get_submodule(anatomy.classifier)
    assert isinstance(head, nn.Linear)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        drawn = nn.Linear(head.in_features, head.out_features)
        head.weight.copy_(drawn.weight)
        head.bias.copy_(drawn.bias)
