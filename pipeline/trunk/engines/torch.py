"""The torch engine: the folded trunk in channels-last layout, on a CPU or a GPU."""

from __future__ import annotations

import traceback

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.base.arithmetic import arithmetic
from pipeline.base.machine import kind_of_device
from pipeline.trunk.engines.base import fill
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
        # Page-locked memory is what a GPU can copy from while the CPU goes on.
        self._locked = kind_of_device(device) == "cuda"
        self._host = torch.zeros(batch, 3, image_size, image_size, dtype=torch.uint8, pin_memory=self._locked)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (n, dim) float32 of pixels (n, 3, S, S) uint8, n <= batch."""
        fill(self._host.numpy(), pixels)
        try:
            with torch.inference_mode(), arithmetic(self.precision):
                x = self._host.to(self.device, non_blocking=self._locked).contiguous(memory_format=torch.channels_last)
                # .cpu() waits for the GPU, so the host buffer is free again when this returns.
                features = self.net(x)[: len(pixels)].cpu()
        except torch.OutOfMemoryError as error:
            # The frames of the failed forward hold its maps: without them a smaller batch finds room.
            traceback.clear_frames(error.__traceback__)
            if self._locked:
                torch.cuda.empty_cache()
            raise
        found: NDArray[np.float32] = features.numpy()
        return found
