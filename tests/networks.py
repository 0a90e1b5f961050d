"""Images and networks that behave as trained ones do: squares of colour with noise, and BatchNorm's own statistics."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.trunk.engines.check import eager_features
from pipeline.trunk.identity import WeightsInfo


def images(n: int, size: int, seed: int) -> NDArray[np.uint8]:
    """(n, 3, size, size) uint8; ``size`` is a multiple of 8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 3, 8, 8)).repeat(size // 8, axis=2).repeat(size // 8, axis=3)
    return np.clip(coarse + rng.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)


def calibrate(trunk: nn.Module, info: WeightsInfo) -> None:
    """Give BatchNorm the statistics of images, as training does; with those it starts with maps shrink or grow."""
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over all images
            module.train()
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads would each take statistics of their own images
    try:
        eager_features(trunk, info, images(16, info.transform.crop, seed=1))
    finally:
        torch.set_num_threads(before)
    trunk.eval()
