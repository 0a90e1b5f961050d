"""TF32 and bfloat16, emulated: refused under the name of float32, and right under their own."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.base.errors import EngineError
from pipeline.bench.trunk import random_trunk
from pipeline.trunk.engines.base import Engine
from pipeline.trunk.engines.check import AGREEMENT, agreement, check_engine, eager_features
from pipeline.trunk.engines.open import open_engine
from pipeline.trunk.identity import TrunkSpec, WeightsInfo
from pipeline.trunk.surgery import freeze
from tests.networks import calibrate, images
from tests.rounding import BITS, Coarse, coarser

SIZE, BATCH = 64, 8
TRUNKS = ["resnet18", "timm:test_resnet", "timm:test_vit", "timm:test_efficientnet"]
ROOM = 10  # times nearer to float32 than the precision check demands


class Opened(NamedTuple):
    engine: Engine
    trunk: nn.Module
    info: WeightsInfo
    pixels: NDArray[np.uint8]


class CoarseEngine:
    """An engine whose products are of factors with so many bits."""

    def __init__(self, engine: Engine, precision: str, arithmetic: Coarse) -> None:
        self._engine, self._arithmetic, self.precision = engine, arithmetic, precision
        self.name, self.version, self.device = engine.name, engine.version, engine.device
        self.batch, self.dim, self.net = engine.batch, engine.dim, engine.net

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with self._arithmetic:
            return self._engine(pixels)


@pytest.fixture(scope="module", params=TRUNKS)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    if request.param.startswith("timm:"):
        pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("coarse")
    info, trunk, dim = random_trunk(request.param, SIZE, folder)
    freeze(trunk)
    calibrate(trunk, info)
    spec = TrunkSpec(info, info.layer("last"), "torch", "float32", "cpu")
    return Opened(open_engine(spec, trunk, dim, batch=BATCH, work_dir=folder), trunk, info, images(BATCH, SIZE, seed=2))


def test_rounded_to_7_bits_a_number_is_a_bfloat16_and_cut_it_is_never_farther_from_zero() -> None:
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(coarser(x, 7, cut=False), x.bfloat16().float())
    for bits in BITS.values():
        rounded, cut = (coarser(x, bits, cut=cut) / x - 1 for cut in (False, True))
        assert 2.0 ** -(bits + 2) < rounded.abs().max() <= 2.0 ** -(bits + 1)
        assert -(2.0**-bits) <= cut.min() < -(2.0 ** -(bits + 1)) and cut.max() <= 0


@pytest.mark.parametrize("cut", [False, True])
def test_tf32_under_the_name_of_float32_is_refused(opened: Opened, cut: bool) -> None:
    engine, trunk, info, pixels = opened
    assert check_engine(engine, trunk, info, pixels) < 1e-5
    arithmetic = Coarse(BITS["tf32"], cut=cut)
    with pytest.raises(EngineError, match="in float32 differs from plain PyTorch") as error:
        check_engine(CoarseEngine(engine, "float32", arithmetic), trunk, info, pixels)
    found, allowed = map(float, re.findall(r"\d\.\de-\d\d", str(error.value)))
    assert found > ROOM * allowed and allowed < 2e-5


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("precision", BITS)
def test_in_its_own_name_a_coarser_arithmetic_passes_its_check_with_room(
    opened: Opened, precision: str, cut: bool
) -> None:
    engine, trunk, info, pixels = opened
    coarse = CoarseEngine(engine, precision, Coarse(BITS[precision], cut=cut))
    worst = check_engine(coarse, trunk, info, pixels)
    assert worst > 1e-4  # it is another arithmetic
    found = agreement(coarse(pixels), eager_features(trunk, info, pixels))
    mean, least = AGREEMENT[precision]
    assert 1 - found.cosine < (1 - mean) / ROOM and 1 - found.least_cosine < (1 - least) / ROOM
