"""What can be said of a trunk without PyTorch: names, sizes, engines, and the weights that were resolved before.

Importing PyTorch takes seconds and hashing 100 MB of weights a good part of one; a job that finds nothing to do should
pay for neither. So the identity of weights, once resolved (``pipeline.trunk.weights``), is kept in
``weights/known.json`` and holds for as long as the file's size and time do.

What the family says of the weights (transform, preset) is in it, too, since asking torchvision or timm imports PyTorch.
So each entry carries a checksum of all it says: one that was changed by hand, or by a disk, is nothing, and the weights
are resolved again. Where PyTorch is there anyway, since features are computed, ``pipeline.trunk.weights.confirm`` holds
the entry against the family's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from pipeline.base.errors import ConfigError
from pipeline.base.files import make_folder, write_text
from pipeline.base.records import parse, read_file
from pipeline.base.schema import Malformed, Rule, Sha256, Size, made
from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace
from pipeline.trunk.calibration import Calibration
from pipeline.trunk.families import FAMILIES, parted

INTERPOLATIONS = ("bilinear", "bicubic")
LAYERS = ("last", "previous")  # of every network; some have names of their own for them
SMALLEST_IMAGE = 32  # px; most networks halve their input five times

# Preparing the onnxruntime engine (export, save, load) takes 3 to 9 s, once for each size of image and batch; it then
# saves 11 ms (AVX-512) to 45 ms (AVX2) for each image of 224 px, with resnet50 on two cores. So below 200 to 280 such
# images the torch engine is done sooner; smaller images save less, in proportion to their pixels.
SMALL_JOB = 256  # images of 224 x 224
_SMALL_JOB_SIDE = 224

_ENGINES = {  # of each precision, the fastest first
    "float32": ("onnxruntime", "torch"),
    "tf32": ("torch",),
    "bfloat16": ("torch",),
    "int8": ("onnxruntime",),
}
_ENGINE_PACKAGES = {"torch": ("torch",), "onnxruntime": ("onnx", "onnxscript", "onnxruntime")}


LARGEST_SIDE = 1 << 16  # px

_Side = Annotated[int, Rule(f"from 1 to {LARGEST_SIDE}", lambda n: 1 <= n <= LARGEST_SIDE)]
_Rgb = Annotated[tuple[float, ...], Rule("a list of 3 numbers", lambda v: len(v) == 3)]


@dataclass(frozen=True)
class Transform:
    """What an image becomes before a network sees it: sizes in pixels, ``mean`` and ``std`` of RGB in [0, 1]."""

    resize: _Side
    crop: _Side
    interpolation: str
    mean: _Rgb
    std: Annotated[_Rgb, Rule("numbers above 0", lambda v: min(v) > 0)]


@dataclass(frozen=True)
class WeightsInfo:
    """Which weights, and the transform that goes with them.

    Attributes:
        trunk: the network's name, with its family's prefix.
        spec: the weights as they were asked for.
        name: explicit: the family's own name (never DEFAULT), ``file``, or ``random:SEED``.
        sha256: the file's; for random weights the model's fingerprint (``pipeline.trunk.surgery``).
        layers: what the features may be of, and how many there are of each: the last stage's first.
        transform: what an image becomes before the network sees it.
        preset: what the transform is taken from; "" where each value was given.
        guessed: nothing says that these weights learned with it.
        missing: what the preset's own transform has and this one has not.
    """

    trunk: str
    spec: str
    name: str
    sha256: Sha256
    path: Path | None
    pretrained: bool
    layers: Annotated[tuple[tuple[str, Size], ...], Rule("one layer or more", len)]
    transform: Transform
    preset: str
    guessed: bool = False
    missing: str = ""

    def provenance(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        fields = dataclasses.asdict(self)
        return {**fields, "path": None if self.path is None else str(self.path)}

    def layer(self, asked: str) -> str:
        """The layer's own name, of ``last``, ``previous`` or that name.

        Raises:
            ConfigError: the network has no such layer.
        """
        names = [name for name, _ in self.layers]
        words = dict(zip(LAYERS, names, strict=False))
        if asked not in words and asked not in names:
            legal = ", ".join(dict.fromkeys([*words, *names]))
            raise ConfigError(f"{option('layer', asked)} is none of {self.trunk}'s: choose from {legal}")
        return words.get(asked, asked)

    def dim(self, layer: str) -> int:
        """How many features an image has, of a layer by its own name."""
        return dict(self.layers)[layer]


@dataclass(frozen=True)
class TrunkSpec:
    """What decides a trunk's numbers: which network with which weights, up to where, and what computes it."""

    info: WeightsInfo
    layer: str
    engine: str
    precision: str
    device: str
    calibration: Calibration | None = None  # of int8


@dataclass(frozen=True)
class Changes:
    """What is asked for instead of a preset's own transform; None leaves a value as it is."""

    image_size: int | None = None
    resize: int | None = None
    crop: int | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def with_changes(info: WeightsInfo, changes: Changes) -> WeightsInfo:
    """The same weights with another transform. ``image_size`` keeps the ratio of resize to crop; the others say it all.

    Raises:
        ConfigError: a size below SMALLEST_IMAGE, values that contradict each other, or a preset's transform that ours
            cannot be.
    """
    given = {name: value for name, value in dataclasses.asdict(changes).items() if value is not None}
    size = given.pop("image_size", None)
    if size is not None and given.keys() & {"resize", "crop"}:
        raise ConfigError(
            f"{option('image_size')} says what {option('resize')} and {option('crop')} say: give one or the others"
        )
    for name in ("mean", "std"):
        if name in given:
            given[name] = _of_rgb(name, given[name])
    transform = dataclasses.replace(info.transform, **given)
    if size is not None:
        resize = round(size * transform.resize / transform.crop)
        transform = dataclasses.replace(transform, crop=size, resize=resize)
    if transform.crop < SMALLEST_IMAGE:
        raise ConfigError(f"images of {transform.crop} px are too small: a network needs at least {SMALLEST_IMAGE} px")
    if min(transform.std) <= 0:
        raise ConfigError(f"{option('std', transform.std)}: each must be above 0")
    if info.missing and not given.keys() >= {"resize", "crop", "interpolation"}:
        raise ConfigError(
            f"the weights of {info.preset} want {info.missing}, which is not there: give {option('resize')}, "
            f"{option('crop')} "
            f"and {option('interpolation')} (short side resized, then the centre), or another {option('preset')}"
        )
    everything = given.keys() >= {field.name for field in dataclasses.fields(Transform)}
    preset, guessed = ("", False) if everything else (info.preset, info.guessed)
    return dataclasses.replace(info, transform=transform, preset=preset, guessed=guessed)


def _of_rgb(name: str, values: tuple[float, ...]) -> tuple[float, ...]:
    """A value for each of red, green and blue, of one or three."""
    if len(values) not in (1, 3):
        raise ConfigError(f"{option(name)} has {len(values)} values: give one, or three for red, green and blue")
    return tuple(float(v) for v in values) * (3 // len(values))


# -- devices and engines ----------------------------------------------------------------------------------------------


def available_engines(device: str, precision: str = "float32") -> list[str]:
    """The engines installed that compute in ``precision`` on ``device`` (``cpu`` or ``cuda``), the fastest first."""
    names = [name for name in _ENGINES[precision] if name == "torch" or device == "cpu"]
    return [n for n in names if all(importlib.util.find_spec(p) is not None for p in _ENGINE_PACKAGES[n])]


def choose_engine(
    requested: str, *, device: str, n_images: int, image_size: int = _SMALL_JOB_SIDE, precision: str = "float32"
) -> str:
    """The engine to use; ``auto`` takes the fastest installed, and ``torch`` for a job below SMALL_JOB.

    Raises:
        ConfigError: an unknown engine, one that is not installed, or one that does not run on the device or compute in
            ``precision``.
    """
    if requested not in ("auto", *_ENGINE_PACKAGES):
        raise ConfigError(
            f"{option('engine', requested)} is not known: choose from auto, {', '.join(_ENGINE_PACKAGES)}"
        )
    if requested != "auto" and requested not in _ENGINES[precision]:
        raise ConfigError(
            f"{option('engine', requested)} does not compute in {precision}: give "
            f"{option('engine', _ENGINES[precision][0])}"
        )
    installed = available_engines(device, precision)
    other = option("engine", "torch") if "torch" in _ENGINES[precision] else option("precision", "float32")
    if requested == "auto" and installed:
        work = n_images * (image_size / _SMALL_JOB_SIDE) ** 2
        return "torch" if work < SMALL_JOB and "torch" in installed else installed[0]
    if requested not in installed:
        if device != "cpu":
            raise ConfigError(
                f"{option('engine', requested)} runs on the CPU only: give {option('device', 'cpu')}, or {other}"
            )
        asked = (
            option("engine", requested) if requested != "auto" else f"the engine of {option('precision', precision)}"
        )
        packages = " ".join(_ENGINE_PACKAGES[_ENGINES[precision][0]])
        raise ConfigError(f"{asked} is not installed: pip install {packages}, or give {other}")
    return requested


def engine_version(name: str) -> str:
    """The versions that decide an engine's arithmetic: its own, and for an exported network the exporter's."""
    own = importlib.metadata.version(name)
    return own if name == "torch" else f"{own}, exported by torch {importlib.metadata.version('torch')}"


def library_version(trunk: str) -> dict[str, str]:
    """The library of a network that is not torchvision's, with its version, for the record of what made a cache."""
    prefix, _ = parted(trunk)
    library = FAMILIES[prefix]
    version = _version(library) if prefix else None
    return {} if version is None else {library: version}


# -- weights resolved before ------------------------------------------------------------------------------------------


class _Entry(TypedDict):
    info: WeightsInfo
    stat: tuple[int, int] | None  # the file's size and time
    sum: str


def recall(spec: str, trunk: str, preset: str | None, desk: Workspace) -> WeightsInfo | None:
    """The weights' identity as resolved before, or None when unknown or when the file's size or time has changed."""
    name = _entry_name(spec, trunk, preset)
    try:
        entry = made(_read(_memo_path(desk)).get(name), _Entry)
        info, stat = entry["info"], entry["stat"]
        if entry["sum"] != _sum(name, info, stat) or (info.path is not None and _stat(info.path) != stat):
            return None
    except (Malformed, OSError):
        return None  # a memo that cannot be read, or a file that is gone: resolve afresh, which says what is wrong
    # The same file may be named in two ways; the record keeps the words of this call.
    return dataclasses.replace(info, spec=spec)


def remember(info: WeightsInfo, preset: str | None, desk: Workspace) -> None:
    """Keep the identity for :func:`recall`."""
    path = _memo_path(desk)
    # Only a shortcut: where it cannot be written (a read-only folder) the next job resolves again.
    with contextlib.suppress(OSError):
        name, stat = _entry_name(info.spec, info.trunk, preset), None if info.path is None else _stat(info.path)
        entry = {"info": info.provenance(), "stat": stat, "sum": _sum(name, info, stat)}
        make_folder(path.parent)
        write_text(path, json.dumps({**_read(path), name: entry}, indent=1, sort_keys=True))


def forget(spec: str, trunk: str, preset: str | None, desk: Workspace) -> None:
    """Let the next :func:`recall` of these weights know nothing."""
    path = _memo_path(desk)
    with contextlib.suppress(OSError):
        left = {name: entry for name, entry in _read(path).items() if name != _entry_name(spec, trunk, preset)}
        write_text(path, json.dumps(left, indent=1, sort_keys=True))


def is_file_spec(spec: str) -> bool:
    """Whether weights given as ``spec`` mean a file, rather than a name."""
    return spec.endswith((".pth", ".pt", ".bin", ".safetensors")) or "/" in spec or os.sep in spec


def _memo_path(desk: Workspace) -> Path:
    return desk.weights / "known.json"


def _entry_name(spec: str, trunk: str, preset: str | None) -> str:
    # The versions decide what a name means and which numbers a seed gives.
    versions = [_version(p) for p in ("torch", "torchvision", "timm")]
    return json.dumps([trunk, os.path.abspath(spec) if is_file_spec(spec) else spec, preset, *versions])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _stat(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _sum(name: str, info: WeightsInfo, stat: tuple[int, int] | None) -> str:
    """SHA-256 (hex) of all that an entry says."""
    return hashlib.sha256(json.dumps([name, info.provenance(), stat], sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return parse(read_file(path), dict[str, Any])
    except (OSError, Malformed):
        return {}  # absent or damaged: nothing is known yet
