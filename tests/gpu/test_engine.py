"""The engine on a GPU against the eager network on it with the same flags; both against float64."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.base.arithmetic import arithmetic
from pipeline.bench.trunk import random_trunk
from pipeline.runs.network import normalised
from pipeline.trunk.engines.check import AGREEMENT, agreement, check_engine, eager_features
from pipeline.trunk.engines.open import open_engine
from pipeline.trunk.identity import TrunkSpec, WeightsInfo
from pipeline.trunk.surgery import freeze
from tests.conftest import SMALL
from tests.gpu.conftest import on_both
from tests.networks import calibrate, images

HERE = [SMALL, "timm:test_vit"]
THERE = ["resnet18", "resnet50", "resnet152", "resnext50_32x4d", "vit_b_16", "efficientnet_b0"]
PRECISIONS = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "tf32", "bfloat16")}
BATCH = 8


def eager(
    trunk: nn.Module, info: WeightsInfo, pixels: NDArray[np.uint8], device: str, precision: str
) -> NDArray[np.float32]:
    """Features of the library's own modules in channels-last layout, as a user would run them on this device."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    net = copy.deepcopy(trunk).to(device, dtype, memory_format=torch.channels_last)
    with torch.inference_mode(), arithmetic(precision):
        found: NDArray[np.float32] = net(normalised(pixels, info, device).to(dtype)).float().cpu().numpy()
    return found


@pytest.mark.parametrize(("device", "name"), on_both(HERE, THERE))
def test_the_engine_is_as_near_to_float64_as_the_eager_network_with_the_same_flags(
    tmp_path: Path, device: str, name: str
) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    size = 64 if device == "cpu" else 224
    info, trunk, dim = random_trunk(name, size, tmp_path)
    freeze(trunk)
    calibrate(trunk, info)
    pixels = images(BATCH, size, seed=2)
    exact = eager_features(copy.deepcopy(trunk).double(), info, pixels, torch.float64)
    for precision in PRECISIONS[device]:
        spec = TrunkSpec(info, info.layer("last"), "torch", precision, device)
        engine = open_engine(spec, trunk, dim, batch=BATCH, work_dir=tmp_path)
        found = engine(pixels)
        assert np.array_equal(found, engine(pixels)), precision
        assert np.array_equal(found[:1], engine(pixels[:1])), precision  # padded to the same batch
        check_engine(engine, trunk, info, pixels, found)
        ours, theirs = agreement(found, exact), agreement(eager(trunk, info, pixels, device, precision), exact)
        # Folded weights are rounded as one, and the two add in other orders: so not the same, but not worse.
        assert ours.largest_error < 3 * theirs.largest_error + 1e-6, precision
        assert ours.least_cosine > (1 - 1e-9 if precision == "float32" else AGREEMENT[precision][1])
