"""Engines: the frozen trunk made fast. uint8 pixels go in, float32 features come out, always in one batch shape.

Knows how to fold and run a network and how to show that the fast form gives the same numbers; nothing of images, files
of features or heads. The batch's shape is fixed because another shape may take other kernels and give other last bits
(F4): a shorter batch is padded with black images, whose features are dropped.
"""

from __future__ import annotations

import copy
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.errors import ConfigError, WeightsError
from pipeline.trunk import known
from pipeline.trunk.model import trunk_at

# Allowed difference of a row's features from plain eager torchvision in float32, as a share of the row's largest
# feature. float32 is rounded at 6e-8 and a ResNet adds up some hundred such errors; bfloat16 is rounded at 4e-3.
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}

# What libraries say, besides the exceptions of their own, when memory runs out.
_MEMORY_PHRASES = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate memory",
    "bad allocation",
    "bad_alloc",
    "status_alloc_failed",
)


class Engine(Protocol):
    """A frozen trunk ready to run; ``batch`` is the most rows it takes and the shape that it always computes."""

    name: str
    version: str
    device: str
    precision: str
    batch: int
    dim: int

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (n, dim) float32 of pixels (n, 3, S, S) uint8, n <= batch."""
        ...


class FoldedTrunk(nn.Module):
    """A trunk for inference only: pixels (n, 3, S, S) uint8 -> features (n, D), BatchNorm folded into convolutions.

    The pixels' scale ``1 / (255 std)`` is folded into the first convolution. The mean is not: the convolution pads with
    zeros, which must stay zeros of the normalised image, so it is subtracted before.
    """

    mean: torch.Tensor

    def __init__(self, model: nn.Module, info: known.WeightsInfo, layer: str) -> None:
        super().__init__()
        self.trunk, self.dim = trunk_at(copy.deepcopy(model).cpu().eval().requires_grad_(False), layer)
        fold_batchnorm(self.trunk)
        first = self.trunk.conv1
        assert isinstance(first, nn.Conv2d)
        scale = 255 * torch.tensor(info.std, dtype=torch.float64).view(1, 3, 1, 1)
        first.weight.data = (first.weight.double() / scale).float()
        mean = 255 * torch.tensor(info.mean, dtype=torch.float64).view(1, 3, 1, 1)
        self.register_buffer("mean", mean.float())

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features (n, D) of pixels (n, 3, S, S) uint8."""
        out: torch.Tensor = self.trunk(pixels.to(torch.float32) - self.mean)
        return out


def fold_batchnorm(model: nn.Module) -> None:
    """Fold every BatchNorm of a ResNet in eval mode into the convolution before it, and leave Identity in its place.

    BatchNorm gives ``y = (x - mean) * weight / sqrt(var + eps) + bias`` per channel (arXiv 1502.03167, section 3.1),
    which is linear; the new weights are computed in float64 and rounded once.
    """
    for parent in list(model.modules()):
        convolution: nn.Conv2d | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                convolution = child
            elif isinstance(child, nn.BatchNorm2d):
                # In torchvision's ResNets each BatchNorm is declared right after the convolution whose output it takes.
                assert convolution is not None and convolution.out_channels == child.num_features
                _fold_pair(convolution, child)
                setattr(parent, name, nn.Identity())
                convolution = None


def _fold_pair(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    bias = norm.bias.double() - norm.running_mean.double() * scale
    if convolution.bias is not None:
        bias += convolution.bias.double() * scale
    convolution.weight.data = (convolution.weight.double() * scale.view(-1, 1, 1, 1)).float()
    convolution.bias = nn.Parameter(bias.float(), requires_grad=False)


class Batch:
    """The one input buffer (batch, 3, S, S) uint8 of an engine, filled anew for each call and padded with zeros."""

    def __init__(self, batch: int, size: int, *, pinned: bool) -> None:
        self.tensor = torch.zeros((batch, 3, size, size), dtype=torch.uint8, pin_memory=pinned)
        self.array: NDArray[np.uint8] = self.tensor.numpy()

    def fill(self, pixels: NDArray[np.uint8]) -> None:
        """Put ``pixels`` (n, 3, S, S) at the top, zeros below."""
        rows, shape = len(pixels), self.array.shape
        if pixels.dtype != np.uint8 or pixels.shape[1:] != shape[1:] or rows > shape[0]:
            raise ValueError(
                f"pixels are {pixels.dtype} {pixels.shape}: this engine takes uint8 {shape}, or fewer rows"
            )
        self.array[:rows] = pixels
        self.array[rows:] = 0


class TorchEngine:
    """The folded trunk in PyTorch, channels-last; on a GPU with TF32 off and deterministic algorithms."""

    name = "torch"

    def __init__(
        self, model: nn.Module, info: known.WeightsInfo, *, device: str, precision: str, batch: int, layer: str
    ) -> None:
        self.version = known.engine_version(self.name)
        self.device, self.precision, self.batch = device, precision, batch
        trunk = FoldedTrunk(model, info, layer)
        self.dim = trunk.dim
        self._trunk = trunk.to(torch.device(device)).to(memory_format=torch.channels_last)
        self._input = Batch(batch, info.crop, pinned=device == "cuda")

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (n, dim) float32 of pixels (n, 3, S, S) uint8, n <= batch."""
        self._input.fill(pixels)
        try:
            with exact_arithmetic(), torch.inference_mode():
                x = self._input.tensor.to(self.device, non_blocking=True)
                x = x.contiguous(memory_format=torch.channels_last)
                with torch.autocast("cuda", torch.bfloat16, enabled=self.precision == "bfloat16"):
                    out = self._trunk(x)
                rows: NDArray[np.float32] = out[: len(pixels)].float().cpu().numpy()
        except torch.OutOfMemoryError as error:
            # The frames of the failed forward hold its activations; without them a smaller batch finds room.
            traceback.clear_frames(error.__traceback__)
            torch.cuda.empty_cache()
            raise
        return rows


def exact_arithmetic() -> AbstractContextManager[None]:
    """Context in which convolutions on a GPU use full float32 and the same algorithm every time."""
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags


def open_engine(
    name: str,
    model: nn.Module,
    info: known.WeightsInfo,
    *,
    device: str,
    precision: str,
    batch: int,
    layer: str,
    work_dir: Path,
) -> Engine:
    """The engine ``name`` for a model, whole or beheaded, which is left as it is; ``work_dir`` keeps prepared files.

    Raises:
        ConfigError: the engine, precision or device do not go together, or a package is missing.
        WeightsError: the engine cannot be prepared.
    """
    known.choose_engine(name, device=device, n_images=0)
    if precision not in TOLERANCE:
        raise ConfigError(f"--precision {precision!r} is not known: choose from {', '.join(TOLERANCE)}")
    if precision == "bfloat16" and device != "cuda":
        raise ConfigError(f"--precision bfloat16 needs a GPU, the device is {device}: give --precision float32")
    if name == "torch":
        return TorchEngine(model, info, device=device, precision=precision, batch=batch, layer=layer)
    from pipeline.trunk.onnx_engine import OnnxEngine

    return OnnxEngine(model, info, batch=batch, layer=layer, work_dir=work_dir)


def check_engine(
    engine: Engine, model: nn.Module, info: known.WeightsInfo, pixels: NDArray[np.uint8], layer: str
) -> float:
    """Largest difference of the engine from plain eager torchvision in float32 on ``pixels`` (n, 3, S, S), n <= batch.

    The difference of a row is ``max |engine - reference| / max |reference|`` over its features; the largest of the rows
    is returned.

    Raises:
        WeightsError: it is above `TOLERANCE`, or not a number.
    """
    got, expected = engine(pixels).astype(np.float64), reference_features(model, info, pixels, layer, engine.device)
    scale = np.maximum(np.abs(expected).max(axis=1), np.finfo(np.float32).tiny)
    difference = float((np.abs(got - expected).max(axis=1) / scale).max())
    allowed = TOLERANCE[engine.precision]
    if not difference <= allowed:
        raise WeightsError(
            f"engine {engine.name} {engine.version} ({engine.device}, {engine.precision}) differs from plain "
            f"torchvision by {difference:.2g} of a row's largest feature, {allowed:g} is allowed: give another --engine or "
            "--precision"
        )
    return difference


def reference_features(
    model: nn.Module, info: known.WeightsInfo, pixels: NDArray[np.uint8], layer: str, device: str
) -> NDArray[np.float64]:
    """Features (n, D) of pixels (n, 3, S, S) uint8 by torchvision's own modules, eager, in float32."""
    trunk, _ = trunk_at(copy.deepcopy(model).eval(), layer)
    trunk.to(device)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (info.mean, info.std))
    with exact_arithmetic(), torch.inference_mode():
        out = trunk((torch.from_numpy(pixels).to(device).float() / 255 - mean) / std)
    features: NDArray[np.float64] = out.double().cpu().numpy()
    return features


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an engine failed for want of memory, so that a smaller batch may do (E4)."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # onnxruntime's exceptions and torch's on a CPU differ from other failures by their words only.
    return isinstance(error, Exception) and any(phrase in str(error).lower() for phrase in _MEMORY_PHRASES)
