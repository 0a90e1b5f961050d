"""The saved head: ``head.safetensors`` (tensors) and ``head.json`` (what they are). No pickle anywhere (E7).

Knows arrays, names and a folder's two files; nothing of runs, caches or trunks beyond the key it is given. The files
load without this package, a linear head as::

    head = torch.nn.Linear(dim, len(classes))
    head.load_state_dict(safetensors.torch.load_file("head.safetensors"))

and an MLP as ``torch.nn.Sequential(Linear, ReLU, Linear, ...)``. A cosine head's logits of a row x are
``scale * normalize((x - mean) * inv_scale) @ normalize(weight).T``, normalize being ``torch.nn.functional``'s.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import torch
from torch import nn

from pipeline.base.errors import HeadError
from pipeline.heads.minibatch.config import KINDS
from pipeline.heads.rows import Array
from pipeline.heads.standardize import row_chunks

FORMAT = "pipeline-head"
VERSION = 1
EPS = 1e-12  # of a length that is divided by, torch.nn.functional.normalize's
TENSORS_FILE = "head.safetensors"
RECORD_FILE = "head.json"


@dataclass(frozen=True, eq=False)  # arrays have no single ==
class Head:
    """A classifier on raw features (standardisation folded in or kept), and the features it belongs to.

    ``tensors`` are float32. linear: weight (C, D), bias (C,). mlp: 0.weight (H, D), 0.bias (H,), 2.weight ... as in
    ``torch.nn.Sequential``, ReLU between. cosine: weight (C, D), scale (1,), mean (D,) and inv_scale (D,).

    Raises:
        HeadError: tensors that do not fit the kind, the dimension and the classes, or are not finite.
    """

    kind: Literal["linear", "mlp", "cosine"]
    tensors: dict[str, npt.NDArray[np.float32]]
    classes: tuple[str, ...]  # class c's name, each once
    key: str  # of the cache whose features it was trained on
    dim: int  # D
    meta: dict[str, Any] = field(default_factory=dict)  # plain JSON values

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        if self.kind not in KINDS:
            raise HeadError(f"head kind {self.kind!r} is not known: choose from {', '.join(KINDS)}")
        different = len(set(self.classes))
        if different != len(self.classes) or different < 2:
            raise HeadError(
                f"{len(self.classes)} class names, {different} different: at least 2, each once, are needed"
            )
        found = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        expected = self._shapes(found)
        if found != expected:
            raise HeadError(f"head tensors are {found}: {expected} is needed for these classes and features")
        for name, tensor in self.tensors.items():
            if tensor.dtype != np.float32 or not np.isfinite(tensor).all():
                raise HeadError(f"head tensor {name!r} is {tensor.dtype} or not finite: finite float32 is needed")

    def _shapes(self, found: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The shapes that the tensors must have; of an MLP the hidden sizes are taken from those found."""
        c, d = len(self.classes), self.dim
        if self.kind == "linear":
            return {"weight": (c, d), "bias": (c,)}
        if self.kind == "cosine":
            return {"weight": (c, d), "scale": (1,), "mean": (d,), "inv_scale": (d,)}
        biases = [found.get(f"{2 * layer}.bias", ()) for layer in range(max(2, len(found) // 2) - 1)]
        sizes = [d, *(max(1, *shape[:1], 0) for shape in biases), c]
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            shapes |= {f"{2 * layer}.weight": (outputs, inputs), f"{2 * layer}.bias": (outputs,)}
        return shapes

    def logits(self, X: Array) -> npt.NDArray[np.float32]:
        """Logits (n, C) float32 of raw features X (n, D), which may be a memory map.

        Raises:
            HeadError: features of another dimension.
        """
        if X.ndim != 2 or X.shape[1] != self.dim:
            raise HeadError(f"features have shape {tuple(X.shape)}: this head needs (rows, {self.dim})")
        out = np.empty((len(X), len(self.classes)), dtype=np.float32)
        for start, chunk in row_chunks(X):
            out[start : start + len(chunk)] = self._logits(chunk.astype(np.float32))
        return out

    def _logits(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        t = self.tensors
        if self.kind == "linear":
            return x @ t["weight"].T + t["bias"]
        if self.kind == "cosine":
            rows = _unit((x - t["mean"]) * t["inv_scale"])
            return t["scale"] * (rows @ _unit(t["weight"]).T)
        for layer in range(0, len(t), 2):
            x = (np.maximum(x, 0) if layer else x) @ t[f"{layer}.weight"].T + t[f"{layer}.bias"]
        return x

    def module(self) -> nn.Module:
        """The head as a plain module with its own copy of the numbers: a Linear, a Sequential or a :class:`Cosine`."""
        module: nn.Module
        if self.kind == "linear":
            module = nn.Linear(self.dim, len(self.classes))
        elif self.kind == "cosine":
            module = Cosine(self.dim, len(self.classes))
        else:
            layers: list[nn.Module] = []
            for layer in range(0, len(self.tensors), 2):
                outputs, inputs = self.tensors[f"{layer}.weight"].shape
                layers += [*([nn.ReLU()] if layer else []), nn.Linear(inputs, outputs)]
            module = nn.Sequential(*layers)
        module.load_state_dict({name: torch.from_numpy(tensor.copy()) for name, tensor in self.tensors.items()})
        return module


def _unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    lengths: npt.NDArray[np.float32] = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = rows / lengths.clip(min=EPS)
    return unit


class Cosine(nn.Module):
    """Logits scale · cos((x - mean) · inv_scale, weight) of rows (n, D); mean and inv_scale are not trained."""

    def __init__(self, dim: int, n_classes: int) -> None:
        """All zeros: its numbers are to be loaded."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_classes, dim))
        self.scale = nn.Parameter(torch.zeros(1))
        self.mean: torch.Tensor
        self.inv_scale: torch.Tensor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("inv_scale", torch.zeros(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, C)."""
        rows = nn.functional.normalize((x - self.mean) * self.inv_scale, dim=1)
        return self.scale * nn.functional.linear(rows, nn.functional.normalize(self.weight, dim=1))


def save_head(folder: Path, head: Head) -> None:
    """Write the head's two files into ``folder``, which exists; the record last, since it proves the tensors whole.

    Raises:
        HeadError: the folder cannot be written; nothing half-written is left.
    """
    data = safetensors.numpy.save({name: np.ascontiguousarray(tensor) for name, tensor in head.tensors.items()})
    record = {
        "format": FORMAT,
        "version": VERSION,
        "kind": head.kind,
        "classes": list(head.classes),
        "key": head.key,
        "dim": head.dim,
        "tensors": {n: {"shape": list(t.shape), "dtype": str(t.dtype)} for n, t in head.tensors.items()},
        "sha256": hashlib.sha256(data).hexdigest(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "safetensors": safetensors.__version__},
        "meta": head.meta,
    }
    # ASCII only: class names come from folders, whose bytes need not be UTF-8 (I6).
    text = json.dumps(record, indent=1, ensure_ascii=True, allow_nan=False) + "\n"
    _write(folder / TENSORS_FILE, data)
    _write(folder / RECORD_FILE, text.encode("ascii"))


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if temporary.exists():
            temporary.unlink()
        raise HeadError(f"cannot write {path}: {error.strerror}; free space or choose another folder") from error


def load_head(folder: Path) -> Head:
    """The head saved in ``folder``, every claim of its record checked.

    Raises:
        HeadError: a file missing, of another format or version, damaged, tampered with or pickled.
    """
    record = _record(folder / RECORD_FILE)
    path = folder / TENSORS_FILE
    data = _read(path)
    digest = hashlib.sha256(data).hexdigest()
    if digest != record["sha256"]:
        raise HeadError(
            f"{path} has SHA-256 {digest[:12]}, {RECORD_FILE} says {str(record['sha256'])[:12]}: train it again"
        )
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise HeadError(f"{path} is not a safetensors file ({error}): train it again") from error
    found = {name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype)} for name, tensor in tensors.items()}
    if found != record["tensors"]:
        raise HeadError(f"{path} holds {found}, {RECORD_FILE} says {record['tensors']}: train it again")
    return Head(
        kind=record["kind"],
        tensors=tensors,
        classes=tuple(record["classes"]),
        key=record["key"],
        dim=record["dim"],
        meta=record["meta"],
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise HeadError(f"cannot read {path}: {error.strerror}; a trained run's folder is needed") from error


def _record(path: Path) -> dict[str, Any]:
    """The parsed record, its fields all there with their types."""
    try:
        record = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise HeadError(f"{path} is not JSON ({error}): train it again") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise HeadError(f"{path} is not a head's record: format {FORMAT!r} is needed")
    if record.get("version") != VERSION:
        raise HeadError(f"{path} has format version {record.get('version')!r}: this package reads version {VERSION}")
    types = {"kind": str, "classes": list, "key": str, "dim": int, "tensors": dict, "sha256": str, "meta": dict}
    for name, kind in types.items():
        if not isinstance(record.get(name), kind):
            raise HeadError(f"{path} has {name} {record.get(name)!r}: a {kind.__name__} is needed; train it again")
    if not all(isinstance(name, str) for name in record["classes"]):
        raise HeadError(f"{path} has a class name that is not text: train it again")
    return record


def require_key(head: Head, key: str, what: str) -> None:
    """Pass only the key that the head was trained on; ``what`` says whose key it is.

    Raises:
        HeadError: another key.
    """
    if head.key != key:
        raise HeadError(
            f"{what} has key {key[:12]}, this head was trained on key {head.key[:12]}: "
            "use the features it was trained on, or train a head on these"
        )


def match_classes(head_classes: Sequence[str], cache_classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """The head's class number for each class of the cache (len(cache_classes),) int64, matched by NAME (S3).

    Raises:
        HeadError: a class that the head does not know, by name.
    """
    place = {name: i for i, name in enumerate(head_classes)}
    unknown = [name for name in cache_classes if name not in place]
    if unknown:
        known = ", ".join(repr(name) for name in list(head_classes)[:10]) + (", ..." if len(head_classes) > 10 else "")
        raise HeadError(f"class {unknown[0]!r} ({len(unknown)} unknown) is none of the head's: {known}")
    return np.array([place[name] for name in cache_classes], dtype=np.int64)
