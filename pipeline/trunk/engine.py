"""Engines: what runs a trunk on pixels, at one fixed batch shape, and the check that it computes the trunk.

One shape, because another one changes the last bits (F4): a short batch is padded with black images. The onnxruntime
engine is in ``pipeline.trunk.onnx_engine`` and is imported only when it is asked for.
"""

from __future__ import annotations

import contextlib
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.base.errors import ConfigError, WeightsError
from pipeline.trunk.fold import FoldedTrunk
from pipeline.trunk.known import WeightsInfo, choose_engine, engine_version
from pipeline.trunk.model import trunk_at

# Largest difference of a feature from plain eager torchvision in float32, as a share of the largest feature of the same
# image. float32 leaves about 1e-6 after 50 to 150 layers; bfloat16 has 8 significant bits.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2.0**-5}
CHECK_ROWS = 4  # images of the first batch that the reference is computed for: 0.4 s with resnet50 on two cores

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "failed to allocate memory",
    "bad_alloc",
    "bad allocation",
    "alloc_failed",
)


class Engine(Protocol):
    """Runs a trunk: ``engine(pixels)`` gives features (n, dim) float32 of pixels (n, 3, S, S) uint8, n <= batch."""

    name: str
    version: str
    device: str
    precision: str
    batch: int
    dim: int

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (n, dim) float32 of pixels (n, 3, S, S) uint8, n <= batch."""


class TorchEngine:
    """PyTorch with BatchNorm folded and channels-last layout; bfloat16 covers the convolutions, pooling is float32."""

    name = "torch"

    def __init__(self, net: FoldedTrunk, *, image_size: int, device: str, precision: str, batch: int) -> None:
        self.version = engine_version(self.name)
        self.device, self.precision, self.batch, self.dim = device, precision, batch, net.dim
        net.net.to(_DTYPES[precision])
        self._net = net.to(device).to(memory_format=torch.channels_last)
        # Page-locked memory is what a GPU can copy from while the CPU goes on.
        self._host = torch.zeros(batch, 3, image_size, image_size, dtype=torch.uint8, pin_memory=device == "cuda")

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (n, dim) float32 of pixels (n, 3, S, S) uint8, n <= batch."""
        fill(self._host.numpy(), pixels)
        try:
            with torch.inference_mode(), _exact_convolutions(self.device):
                x = self._host.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
                # .cpu() waits for the GPU, so the host buffer is free again when this returns.
                features = self._net(x)[: len(pixels)].cpu()
        except torch.OutOfMemoryError as error:
            # The frames of the failed forward hold its maps: without them a smaller batch finds room (E4).
            traceback.clear_frames(error.__traceback__)
            torch.cuda.empty_cache()
            raise
        found: NDArray[np.float32] = features.numpy()
        return found


def _exact_convolutions(device: str) -> AbstractContextManager[Any]:
    if device == "cpu":
        return contextlib.nullcontext()
    # TF32 keeps 10 bits of float32's 23, and benchmark mode picks algorithms by the clock.
    flags: AbstractContextManager[Any] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags


def fill(buffer: NDArray[np.uint8], pixels: NDArray[np.uint8]) -> None:
    """Copy pixels (n, 3, S, S) into the buffer (batch, 3, S, S), black after them."""
    if pixels.dtype != np.uint8 or pixels.shape[1:] != buffer.shape[1:] or len(pixels) > len(buffer):
        raise ValueError(
            f"pixels are {pixels.dtype} {pixels.shape}: the engine takes uint8 of at most {buffer.shape} images"
        )
    buffer[: len(pixels)] = pixels
    buffer[len(pixels) :] = 0


def open_engine(
    name: str,
    model: nn.Module,
    info: WeightsInfo,
    *,
    device: str,
    precision: str,
    batch: int,
    layer: str,
    work_dir: Path,
) -> Engine:
    """An engine (``torch`` or ``onnxruntime``) of a torchvision ResNet's features; the model is left as it is.

    ``work_dir`` is where an engine keeps what it has prepared.

    Raises:
        ConfigError: an engine, precision, device or batch that cannot be had.
        WeightsError: a prepared file that is damaged, or cannot be written.
    """
    choose_engine(name, device=device, n_images=batch)
    if precision not in TOLERANCE:
        raise ConfigError(f"--precision {precision!r} is not known: choose from {', '.join(TOLERANCE)}")
    if precision != "float32" and device == "cpu":
        raise ConfigError(f"--precision {precision} needs a GPU: give --precision float32")
    if batch < 1:
        raise ConfigError(f"--batch-size is {batch}: it must be at least 1")
    net = FoldedTrunk(model, info, layer)
    if name == "onnxruntime":
        from pipeline.trunk.onnx_engine import OnnxEngine

        return OnnxEngine(net, trunk=info.trunk, image_size=info.crop, batch=batch, work_dir=work_dir)
    return TorchEngine(net, image_size=info.crop, device=device, precision=precision, batch=batch)


def check_engine(
    engine: Engine,
    model: nn.Module,
    info: WeightsInfo,
    pixels: NDArray[np.uint8],
    layer: str,
    found: NDArray[np.float32] | None = None,
) -> float:
    """The engine on pixels (n, 3, S, S) uint8, 1 <= n <= batch, against torchvision's modules, eager, in float32.

    ``found`` (n, D) is what the engine gave for them, where that is known already.

    Returns the largest difference of a feature as a share of the largest feature of its image, over CHECK_ROWS images
    spread over the batch.

    Raises:
        WeightsError: the difference is above TOLERANCE of the engine's precision, or not a number.
    """
    rows = np.unique(np.linspace(0, len(pixels) - 1, min(CHECK_ROWS, len(pixels))).round().astype(int))
    reference = eager_features(model, info, pixels[rows], layer)
    given = (engine(pixels) if found is None else found)[rows]
    reach = np.abs(reference).max(axis=1)
    difference = np.abs(given - reference).max(axis=1)
    # An image may have no active feature at all; then the engine's must be zeros as well.
    shares = difference / np.maximum(reach, np.finfo(np.float32).tiny)
    worst, tolerance = float(shares.max()), TOLERANCE[engine.precision]
    if not worst <= tolerance:
        raise WeightsError(
            f"engine {engine.name} {engine.version} on {engine.device} in {engine.precision} differs from plain "
            f"PyTorch by {worst:.1e} of the largest feature, {tolerance:.1e} is allowed: give another --engine, or "
            "--precision float32"
        )
    return worst


def eager_features(model: nn.Module, info: WeightsInfo, pixels: NDArray[np.uint8], layer: str) -> NDArray[np.float32]:
    """Features (n, D) float32 of pixels (n, 3, S, S) uint8 by torchvision's own modules and float normalisation."""
    trunk, _ = trunk_at(model, layer)
    parameter = next(model.parameters())
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (info.mean, info.std))
    with torch.inference_mode(), _exact_convolutions(parameter.device.type):
        x = (torch.from_numpy(pixels).float() / 255 - mean) / std
        features: NDArray[np.float32] = trunk(x.to(parameter.device)).cpu().numpy()
    return features


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an engine's error means that a smaller batch may fit (E4)."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, Exception) and any(words in text for words in _OUT_OF_MEMORY)
