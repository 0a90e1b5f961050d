"""How many steps a training has, and how fast each one learns: known from the settings before anything is loaded.

Knows numbers of images only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.base.errors import ConfigError
from pipeline.base.spelling import option
from pipeline.stages.finetune.feeds import share
from pipeline.stages.finetune.settings import FinetuneSettings


@dataclass(frozen=True)
class Schedule:
    """Steps of an epoch, of the whole training, and of the rise of the learning rates at its beginning."""

    per_epoch: int
    total: int
    warm: int

    @classmethod
    def of(cls, settings: FinetuneSettings, images: int) -> Schedule:
        """The schedule of a training on so many images.

        Raises:
            ConfigError: a warm-up that does not end, or pieces that BatchNorm cannot learn from.
        """
        if settings.bn == "train":
            check_pieces(images, settings.batch_size, settings.accumulate)
        per_epoch = math.ceil(images / settings.batch_size)
        total = settings.epochs * per_epoch
        return cls(per_epoch, total, _warm_steps(settings.warmup, total))

    def factor(self, step: int) -> float:
        """The share of the highest learning rate that a step has: a straight line up, then half a cosine to zero."""
        if step < self.warm:
            return (step + 1) / (self.warm + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - self.warm) / max(1, self.total - self.warm)))


def check_pieces(images: int, batch_size: int, accumulate: int) -> None:
    """Refuse pieces of one image, of which BatchNorm can learn no variance.

    Raises:
        ConfigError: an epoch's batches, or their pieces, leave one.
    """

    def leaves_one(size: int) -> bool:
        batches = {min(size, images), images % size or size}
        return any(len(share(range(n), i, accumulate)) == 1 for n in batches for i in range(accumulate))

    if leaves_one(batch_size):
        larger = next((size for size in range(batch_size + 1, images + 1) if not leaves_one(size)), None)
        cure = option("accumulate", 1) if larger is None else option("batch_size", larger)
        raise ConfigError(
            f"{option('bn', 'train')} with {option('batch_size', batch_size)} and {option('accumulate', accumulate)}: "
            f"{images:,} train images leave a "
            f"piece of one, which has no variance; give {cure}, or leave out {option('bn', 'train')}"
        )


def _warm_steps(warmup: float, total: int) -> int:
    """A share of all steps below 1, a number of steps from 1 on."""
    steps = int(warmup) if warmup >= 1 else round(warmup * total)
    if steps >= total and warmup >= 1:
        raise ConfigError(f"{option('warmup', warmup)} is not below the {total} steps of this training: lower it")
    return steps
