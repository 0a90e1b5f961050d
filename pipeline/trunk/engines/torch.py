"""The torch engine: the folded trunk in channels-last layout, on a CPU or a GPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.base.arithmetic import arithmetic
from pipeline.base.machine import kind_of_device
from pipeline.trunk.engines.base import Slot, through
from pipeline.trunk.engines.cuda import GraphRunner
from pipeline.trunk.engines.fold import FoldedTrunk
from pipeline.trunk.identity import engine_version

_DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}


class TorchEngine:
    """PyTorch with BatchNorm folded and channels-last layout; bfloat16 covers the convolutions, pooling is float32."""

    name = "torch"

    def __init__(self, net: FoldedTrunk, *, image_size: int, device: str, precision: str, batch: int) -> None:
        self.version = engine_version(self.name)
        self.device, self.precision, self.batch, self.dim = device, precision, batch, net.dim
        net.net.to(_DTYPES[precision])
        self.net = net.to(device).to(memory_format=torch.channels_last)
        self._shape = (batch, image_size, image_size, 3)
        self._runner = None
        if kind_of_device(device) == "cuda":
            self._runner = GraphRunner(self.net, self._shape, device, precision)
        self._own = self.slot()

    def slot(self) -> Slot:
        """A new slot, its places black."""
        if self._runner is not None:
            return self._runner.slot()
        return Slot(np.zeros(self._shape, np.uint8), np.zeros((self.batch, self.dim), np.float32))

    def start(self, slot: Slot) -> None:
        """Begin to compute what is in a slot."""
        if self._runner is not None:
            self._runner.start(slot)
            return
        with torch.inference_mode(), arithmetic(self.precision):
            # As they lie, the numbers are in channels-last layout already.
            x = torch.from_numpy(slot.places).to(self.device).permute(0, 3, 1, 2)
            slot.found = self.net(x).cpu().numpy()

    def finish(self, slot: Slot) -> NDArray[np.float32]:
        """Features (batch, dim) float32 of a slot that was started."""
        if self._runner is not None:
            self._runner.wait(slot)
        return slot.found

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (n, dim) float32 of pixels (n, 3, S, S) uint8, n <= batch."""
        return through(self, self._own, pixels)
