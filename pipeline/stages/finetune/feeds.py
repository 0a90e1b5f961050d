"""What one row is to the part of the network that learns: its image, its maps before the last stage, or its features.

Each kind gives batches of tensors and the ``module`` that makes logits of them; the module shares the network's own
layers, by the network's own names. Whatever is drawn at random for a row comes from the seed, the epoch and the row
alone, so that an interrupted training and several processes see what one uninterrupted process sees.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.base.errors import ConfigError
from pipeline.base.ranks import Ranks
from pipeline.base.spelling import option
from pipeline.base.transfer import uploaded
from pipeline.base.workspace import Workspace
from pipeline.images import Augmentation
from pipeline.runs.network import normalised
from pipeline.runs.pixels import pixels_of
from pipeline.runs.recipe import Recipe
from pipeline.stages.finetune.maps import PrefixMaps
from pipeline.stages.finetune.settings import FinetuneSettings
from pipeline.stages.finetune.start import Attached
from pipeline.store import Cache
from pipeline.trunk.cut import halves, width_axis
from pipeline.trunk.families.family import Anatomy

Batches = Sequence[Sequence[int]]
# What the random numbers of a row or an epoch are for, so that no two uses share them.
ORDER, FLIP, MIX, NUDGE = 1, 2, 3, 4
HALF_UNIT = 2.0**-11  # in the last place of a float16, as a share of the number


class Inputs(Protocol):
    """Rows as tensors; ``module`` maps such a tensor (n, ...) to logits (n, C)."""

    module: nn.Module
    description: str

    def batches(self, batches: Batches, epoch: int | None) -> Iterator[tuple[list[int], torch.Tensor]]:
        """``(rows, tensor)`` for each batch of cache rows; augmented as in that epoch, or not at all (None)."""


@dataclass(eq=False)
class Images:
    """Images from disk, decoded ahead in threads, through the whole network."""

    network: nn.Module
    recipe: Recipe
    cache: Cache
    device: str
    workers: int
    augment: str
    randaugment: bool
    seed: int

    def __post_init__(self) -> None:
        self.module: nn.Module = self.network
        self.description = "images, through the whole trunk"

    def batches(self, batches: Batches, epoch: int | None) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Normalised images (n, 3, S, S) float32.

        Raises:
            DataError: an image is gone or has changed.
        """
        geometry = self.recipe.geometry()
        if epoch is not None and (self.augment != "none" or self.randaugment):
            drawn = Augmentation(self.augment, self.seed, epoch, self.randaugment)
            geometry = replace(geometry, augmentation=drawn)
        found = pixels_of(self.cache, batches, geometry=geometry, workers=self.workers)
        for rows, pixels in found:
            yield rows, normalised(pixels, self.recipe.trunk.info, self.device)


@dataclass(eq=False)
class Maps:
    """The maps before the last stage, cached once: only that stage and the head run.

    ``module`` gives logits of maps; ``maps`` holds a row of the numbers of one image, in ``shape``, for each of the
    cache rows ``rows``, in that order. ``flip`` is the axis that is mirrored at random, None where nothing is;
    ``nudge`` puts every number off by half a unit in the last place, up or down.
    """

    module: nn.Module
    maps: Cache
    rows: NDArray[np.int64]
    shape: tuple[int, ...]
    device: str
    flip: int | None
    seed: int
    nudge: bool = False

    def __post_init__(self) -> None:
        self.module.training = False  # not eval(), which would reach BatchNorm layers that are set to learn
        self.description = f"cached maps before the last stage ({self.maps.path})"

    def batches(self, batches: Batches, epoch: int | None) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Maps (n, *shape) float32; mirrored maps stand for the maps of a mirrored image."""
        for rows, found in _ahead(batches, self._read):
            x = uploaded(torch.from_numpy(found), self.device).float()
            if self.nudge:
                off = [draw(NUDGE, self.seed, 0, row).choice([-HALF_UNIT, HALF_UNIT], size=self.shape) for row in rows]
                x *= 1 + uploaded(torch.from_numpy(np.stack(off)).to(x.dtype), self.device)
            if epoch is not None and self.flip is not None:
                drawn = [i for i, row in enumerate(rows) if draw(FLIP, self.seed, epoch, row).random() < 0.5]
                mirrored = uploaded(torch.tensor(drawn, dtype=torch.int64), self.device)
                x[mirrored] = x[mirrored].flip(self.flip)
            yield list(rows), x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x

    def _read(self, rows: Sequence[int]) -> NDArray[np.floating[Any]]:
        places = np.searchsorted(self.rows, rows)
        found: NDArray[np.floating[Any]] = np.take(self.maps.features, places, axis=0)
        return found.reshape(len(rows), *self.shape)


@dataclass(eq=False)
class CachedFeatures:
    """The rows of the feature cache: only the head runs."""

    network: nn.Module
    anatomy: Anatomy
    cache: Cache
    device: str

    def __post_init__(self) -> None:
        head = self.network.get_submodule(self.anatomy.classifier)
        self.module: nn.Module = nn.Sequential(OrderedDict(head=head))
        self.module.training = False
        self.description = f"cached features ({self.cache.path})"

    def batches(self, batches: Batches, epoch: int | None) -> Iterator[tuple[list[int], torch.Tensor]]:  # noqa: ARG002
        """Features (n, D) float32."""
        for rows in batches:
            found = np.take(self.cache.features, np.asarray(rows), axis=0).astype(np.float32)
            yield list(rows), uploaded(torch.from_numpy(found), self.device)


def _ahead(
    batches: Batches, read: Callable[[Sequence[int]], NDArray[np.floating[Any]]]
) -> Iterator[tuple[Sequence[int], NDArray[np.floating[Any]]]]:
    """Each batch with what ``read`` gives for it; the next one is read while the network is at this one."""
    with ThreadPoolExecutor(1, thread_name_prefix="maps") as pool:
        coming = pool.submit(read, batches[0]) if batches else None
        for number, rows in enumerate(batches, start=1):
            assert coming is not None
            found = coming.result()
            coming = pool.submit(read, batches[number]) if number < len(batches) else None
            yield rows, found


def draw(use: int, seed: int, epoch: int, row: int = 0) -> np.random.Generator:
    """The random numbers of one use in one epoch, for one row where it is about a row."""
    return np.random.default_rng([use, seed, epoch, row])


def chunks(rows: Sequence[int], size: int) -> list[list[int]]:
    """Runs of ``size`` rows, the last perhaps shorter."""
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def share(rows: Sequence[int], part: int, parts: int) -> list[int]:
    """Part ``part`` of a batch that is cut into ``parts``, by neighbours: a pair that is mixed is never parted.

    Each row is in exactly one part; a part of a small batch may be empty.
    """
    pairs = -(-len(rows) // 2)
    return list(rows[2 * (pairs * part // parts) : 2 * (pairs * (part + 1) // parts)])


def mixed(
    x: torch.Tensor, rows: Sequence[int], *, alpha: float, seed: int, epoch: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mixup (Zhang et al. 2018, arXiv 1710.09412) of neighbours: rows 0 and 1, 2 and 3, ...; a last odd one stays.

    Returns the mixed inputs, each row's partner in the batch (n,) int64, and its own share (n,) float32, at least one
    half. The order of the rows is random, so neighbours are; and a pair is the same however a batch is cut (see
    :func:`share`).
    """
    partner = [i ^ 1 if i ^ 1 < len(rows) else i for i in range(len(rows))]
    drawn = [float(draw(MIX, seed, epoch, rows[i & ~1]).beta(alpha, alpha)) for i in range(len(rows))]
    shares = [max(d, 1 - d) if p != i else 1.0 for i, (d, p) in enumerate(zip(drawn, partner, strict=True))]
    swapped, own = (
        uploaded(torch.tensor(partner), x.device),
        uploaded(torch.tensor(shares, dtype=torch.float32), x.device),
    )
    weight = own.view(-1, *[1] * (x.ndim - 1))
    mixture: Any = weight * x + (1 - weight) * x[swapped]
    return mixture, swapped, own


def inputs_of(settings: FinetuneSettings, attached: Attached, ranks: Ranks, desk: Workspace) -> Inputs:
    """What training goes by: images, or what is cached of them."""
    if settings.train == "head" and settings.prefix:
        return CachedFeatures(attached.network, attached.anatomy, attached.cache, attached.device)
    if not settings.by_maps:
        return images_of(settings, attached)
    rows = np.concatenate([attached.train, attached.val])
    try:
        front, back = halves(attached.network, attached.anatomy)
    except ConfigError as error:
        raise ConfigError(
            f"{error}: give {option('prefix', False)} to go through the whole trunk in each epoch"
        ) from error
    prefix = PrefixMaps(front, attached, rows, desk)
    axis = width_axis(prefix.shape) if settings.augment == "flip" else None
    if settings.augment == "flip" and axis is None:
        raise ConfigError(
            f"{option('augment', 'flip')} needs maps that are laid out as an image, and before the last stage they are "
            f"{prefix.shape}: give {option('prefix', False)} to go through the whole trunk in each epoch"
        )
    prefix.announce(desk, confirmed=settings.yes)
    maps = prefix.make(ranks=ranks, device=attached.device, workers=settings.threads, desk=desk)
    return Maps(back, maps, prefix.rows, prefix.shape, attached.device, axis, settings.seed)


def images_of(settings: FinetuneSettings, attached: Attached) -> Inputs:
    """The images, through the whole trunk."""
    return Images(
        attached.network,
        attached.recipe,
        attached.cache,
        attached.device,
        settings.threads,
        settings.augment,
        settings.randaugment,
        settings.seed,
    )
