"""What can be said of a trunk without PyTorch: names, sizes, engines, and the weights that were resolved before.

Importing PyTorch takes seconds and hashing 100 MB of weights a good part of one; a job that finds nothing to do should
pay for neither. So the identity of weights, once resolved (``pipeline.trunk.weights``), is kept in
``weights/known.json`` and holds for as long as the file's size and time do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base.errors import ConfigError
from pipeline.base.files import write_text
from pipeline.base.workspace import Workspace

TRUNKS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
)
LAYERS = ("avgpool", "layer3")
SMALLEST_IMAGE = 32  # px; a ResNet halves its input five times

# Preparing the onnxruntime engine (export, save, load) takes 3 to 9 s, once for each size of image and batch; it then
# saves 11 ms (AVX-512) to 45 ms (AVX2) for each image of 224 px, with resnet50 on two cores. So below 200 to 280 such
# images the torch engine is done sooner; smaller images save less, in proportion to their pixels.
SMALL_JOB = 256  # images of 224 x 224
_SMALL_JOB_SIDE = 224

_ENGINE_PACKAGES = {"torch": ("torch",), "onnxruntime": ("onnx", "onnxscript", "onnxruntime")}


@dataclass(frozen=True)
class WeightsInfo:
    """Which weights, and the transform that goes with them.

    ``name`` is explicit: a name of torchvision's enum (never DEFAULT), ``file``, or ``random:SEED``. ``sha256`` is
    the file's; for random weights it is the model's fingerprint (``pipeline.trunk.surgery``). ``resize`` and ``crop``
    are in pixels; ``mean`` and ``std`` are those of RGB in [0, 1].
    """

    trunk: str
    spec: str
    name: str
    sha256: str
    path: Path | None
    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pretrained: bool

    def provenance(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        fields = dataclasses.asdict(self)
        return {
            **fields,
            "path": None if self.path is None else str(self.path),
            "mean": list(self.mean),
            "std": list(self.std),
        }


@dataclass(frozen=True)
class TrunkSpec:
    """What decides a trunk's numbers: which network with which weights, up to where, and what computes it."""

    info: WeightsInfo
    layer: str
    engine: str
    precision: str
    device: str


def check_trunk(trunk: str) -> None:
    """Raise ConfigError unless ``trunk`` is one of TRUNKS."""
    if trunk not in TRUNKS:
        raise ConfigError(f"--trunk {trunk!r} is not known: choose from {', '.join(TRUNKS)}")


def feature_dim(trunk: str, layer: str) -> int:
    """How many features one image has, without building the network.

    Raises:
        ConfigError: unknown trunk or layer.
    """
    check_trunk(trunk)
    if layer not in LAYERS:
        raise ConfigError(f"--layer {layer!r} is not known: choose from {', '.join(LAYERS)}")
    last = 512 if trunk in ("resnet18", "resnet34") else 2048  # BasicBlock does not widen its output, Bottleneck by 4
    return last if layer == "avgpool" else last // 2


def with_image_size(info: WeightsInfo, size: int) -> WeightsInfo:
    """The same weights for images of ``size`` px; the resize keeps the preset's ratio to the crop.

    Raises:
        ConfigError: below SMALLEST_IMAGE.
    """
    if size < SMALLEST_IMAGE:
        raise ConfigError(f"--image-size {size} is too small: a ResNet needs at least {SMALLEST_IMAGE} px")
    return dataclasses.replace(info, crop=size, resize=round(size * info.resize / info.crop))


# -- devices and engines ----------------------------------------------------------------------------------------------


def available_engines(device: str) -> list[str]:
    """The engines installed for ``device`` (``cpu`` or ``cuda``), the fastest first."""
    names = ("onnxruntime", "torch") if device == "cpu" else ("torch",)
    return [n for n in names if all(importlib.util.find_spec(p) is not None for p in _ENGINE_PACKAGES[n])]


def choose_engine(requested: str, *, device: str, n_images: int, image_size: int = _SMALL_JOB_SIDE) -> str:
    """The engine to use; ``auto`` takes the fastest installed, and ``torch`` for a job below SMALL_JOB.

    Raises:
        ConfigError: an unknown engine, one that is not installed, or one that does not run on the device.
    """
    if requested not in ("auto", *_ENGINE_PACKAGES):
        raise ConfigError(f"--engine {requested!r} is not known: choose from auto, {', '.join(_ENGINE_PACKAGES)}")
    installed = available_engines(device)
    if requested == "auto":
        work = n_images * (image_size / _SMALL_JOB_SIDE) ** 2
        return "torch" if work < SMALL_JOB else installed[0]
    if requested not in installed:
        if device != "cpu":
            raise ConfigError(f"--engine {requested} runs on the CPU only: give --device cpu, or --engine torch")
        raise ConfigError(
            f"--engine {requested} is not installed: pip install {' '.join(_ENGINE_PACKAGES[requested])}, or give "
            "--engine torch"
        )
    return requested


def engine_version(name: str) -> str:
    """The versions that decide an engine's arithmetic: its own, and for an exported network the exporter's."""
    own = importlib.metadata.version(name)
    return own if name == "torch" else f"{own}, exported by torch {importlib.metadata.version('torch')}"


# -- weights resolved before ------------------------------------------------------------------------------------------


def recall(spec: str, trunk: str, desk: Workspace) -> WeightsInfo | None:
    """The weights' identity as resolved before, or None when unknown or when the file's size or time has changed."""
    entry = _read(_memo_path(desk)).get(_entry_name(spec, trunk))
    if not isinstance(entry, dict):
        return None
    try:
        fields = dict(entry["info"])
        path = None if fields["path"] is None else Path(fields["path"])
        if path is not None and _stat(path) != entry["stat"]:
            return None
        mean, std = (tuple(float(v) for v in fields[k]) for k in ("mean", "std"))
        # The same file may be named in two ways; the record keeps the words of this call.
        return WeightsInfo(**{**fields, "spec": spec, "path": path, "mean": mean, "std": std})
    except (KeyError, TypeError, ValueError, OSError):
        return None  # a memo that cannot be read, or a file that is gone: resolve afresh, which says what is wrong


def remember(info: WeightsInfo, desk: Workspace) -> None:
    """Keep the identity for :func:`recall`."""
    path = _memo_path(desk)
    # Only a shortcut: where it cannot be written (a read-only folder) the next job resolves again.
    with contextlib.suppress(OSError):
        entry = {"info": info.provenance(), "stat": None if info.path is None else _stat(info.path)}
        entries = {**_read(path), _entry_name(info.spec, info.trunk): entry}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(entries, indent=1, sort_keys=True))


def is_file_spec(spec: str) -> bool:
    """Whether weights given as ``spec`` mean a file, rather than a name."""
    return spec.endswith((".pth", ".pt", ".safetensors")) or "/" in spec or os.sep in spec


def _memo_path(desk: Workspace) -> Path:
    return desk.weights / "known.json"


def _entry_name(spec: str, trunk: str) -> str:
    # The versions decide what a name of torchvision's enum means and which numbers a seed gives.
    versions = [importlib.metadata.version(p) for p in ("torch", "torchvision")]
    return json.dumps([trunk, os.path.abspath(spec) if is_file_spec(spec) else spec, *versions])


def _stat(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # absent or damaged: nothing is known yet
    return entries if isinstance(entries, dict) else {}
