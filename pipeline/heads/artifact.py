"""The saved head: ``head.safetensors`` (tensors) and ``head.json`` (what they are). No pickle anywhere.

Knows arrays, names and a folder's two files; nothing of runs, caches or trunks beyond the key it is given. The files
load without this package, a linear head as::

    head = torch.nn.Linear(dim, len(classes))
    head.load_state_dict(safetensors.torch.load_file("head.safetensors"))

and others as their file in ``kinds`` says.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import torch
from torch import nn

from pipeline.base.errors import HeadError
from pipeline.base.files import write_bytes, write_text, writing
from pipeline.base.records import read_file, read_record, reason
from pipeline.base.schema import Count, Positive, Sha256, Size
from pipeline.base.words import named
from pipeline.heads.kinds import KINDS
from pipeline.heads.kinds.kind import kind_of
from pipeline.heads.rows import Array
from pipeline.heads.standardize import copied, row_chunks

FORMAT: Literal["pipeline-head"] = "pipeline-head"
VERSION: Literal[1] = 1
TENSORS_FILE = "head.safetensors"
RECORD_FILE = "head.json"


class Tensor(TypedDict):
    """What a tensor is."""

    shape: list[Count]
    dtype: str


class Record(TypedDict):
    """What stands in ``head.json``."""

    format: Literal["pipeline-head"]
    version: Literal[1]
    kind: str
    classes: list[str]
    key: str
    dim: Size
    temperature: NotRequired[Positive]  # heads from before it was kept have none
    tensors: dict[str, Tensor]
    sha256: Sha256
    versions: NotRequired[dict[str, str]]
    meta: dict[str, Any]


@dataclass(frozen=True, eq=False)  # arrays have no single ==
class Head:
    """A classifier on raw features (standardisation folded in or kept), and the features it belongs to.

    ``tensors`` are float32, of the names and shapes that the kind's file in ``kinds`` says.

    Raises:
        HeadError: tensors that do not fit the kind, the dimension and the classes, or are not finite.
    """

    kind: str  # of KINDS
    tensors: dict[str, npt.NDArray[np.float32]]
    classes: tuple[str, ...]  # class c's name, each once
    key: str  # of the cache whose features it was trained on
    dim: int  # D
    temperature: float = 1.0  # logits are divided by it before probabilities are made of them; they are not themselves
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
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise HeadError(f"head temperature is {self.temperature}: it must be above 0 and finite")
        found = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        expected = kind_of(self.kind).shapes(found, self.dim, len(self.classes))
        if found != expected:
            raise HeadError(f"head tensors are {found}: {expected} is needed for these classes and features")
        for name, tensor in self.tensors.items():
            if tensor.dtype != np.float32 or not np.isfinite(tensor).all():
                raise HeadError(f"head tensor {name!r} is {tensor.dtype} or not finite: finite float32 is needed")

    def logits(self, X: Array) -> npt.NDArray[np.float32]:
        """Logits (n, C) float32 of raw features X (n, D), which may be a memory map.

        Raises:
            HeadError: features of another dimension.
        """
        if X.ndim != 2 or X.shape[1] != self.dim:
            raise HeadError(f"features have shape {tuple(X.shape)}: this head needs (rows, {self.dim})")
        kind, out = kind_of(self.kind), np.empty((len(X), len(self.classes)), dtype=np.float32)
        for start, chunk in row_chunks(X):
            out[start : start + len(chunk)] = kind.logits(self.tensors, copied(chunk).numpy())
        return out

    @property
    def layer(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
        """Weight (C, D) and bias (C,) where the head is one linear layer on raw features, otherwise None."""
        return kind_of(self.kind).layer(self.tensors)

    def module(self) -> nn.Module:
        """The head as a plain module with its own copy of the numbers."""
        module = kind_of(self.kind).module(self.tensors)
        module.load_state_dict({name: torch.from_numpy(tensor.copy()) for name, tensor in self.tensors.items()})
        return module


def save_head(folder: Path, head: Head) -> None:
    """Write the head's two files into ``folder``, which exists; the record last, since it proves the tensors whole.

    Raises:
        HeadError: the folder cannot be written; nothing half-written is left.
    """
    data = safetensors.numpy.save({name: np.ascontiguousarray(tensor) for name, tensor in head.tensors.items()})
    record: Record = {
        "format": FORMAT,
        "version": VERSION,
        "kind": head.kind,
        "classes": list(head.classes),
        "key": head.key,
        "dim": head.dim,
        "temperature": head.temperature,
        "tensors": {n: {"shape": list(t.shape), "dtype": str(t.dtype)} for n, t in head.tensors.items()},
        "sha256": hashlib.sha256(data).hexdigest(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "safetensors": safetensors.__version__},
        "meta": head.meta,
    }
    # ASCII only: class names come from folders, whose bytes need not be UTF-8.
    text = json.dumps(record, indent=1, ensure_ascii=True, allow_nan=False) + "\n"
    with writing(folder, or_else="choose another folder"):
        write_bytes(folder / TENSORS_FILE, data)
        write_text(folder / RECORD_FILE, text)


def load_head(folder: Path) -> Head:
    """The head saved in ``folder``, every claim of its record checked.

    Raises:
        HeadError: a file missing, of another format or version, damaged, tampered with or pickled.
    """
    record = read_record(folder / RECORD_FILE, Record, HeadError, "give a trained run's folder, or train it again")
    path = folder / TENSORS_FILE
    data = _tensors(path)
    digest = hashlib.sha256(data).hexdigest()
    if digest != record["sha256"]:
        raise HeadError(f"{path} has SHA-256 {digest[:12]}, {RECORD_FILE} says {record['sha256'][:12]}: train it again")
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
        temperature=record.get("temperature", 1.0),
        meta=record["meta"],
    )


def _tensors(path: Path) -> bytes:
    try:
        return read_file(path, None)
    except OSError as error:
        raise HeadError(f"cannot read {path}: {reason(error)}; a trained run's folder is needed") from error


def require_key(head: Head, key: str, what: str) -> None:
    """Pass only the key that the head was trained on; ``what`` says whose key it is.

    Raises:
        HeadError: another key.
    """
    if head.key != key:
        raise HeadError(
            f"{what} has the settings fingerprint {key[:12]}, this head was trained on {head.key[:12]}: use "
            "the features "
            "it was trained on, or train a head on these"
        )


def match_classes(head_classes: Sequence[str], cache_classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """The head's class number for each class of the cache (len(cache_classes),) int64, matched by NAME.

    Raises:
        HeadError: a class that the head does not know, by name.
    """
    place = {name: i for i, name in enumerate(head_classes)}
    unknown = [name for name in cache_classes if name not in place]
    if unknown:
        which = "class" if len(unknown) == 1 else "classes"
        raise HeadError(
            f"the head does not know the {which} {named(unknown)}: its own are {named(head_classes)}; give "
            "images of those"
        )
    return np.array([place[name] for name in cache_classes], dtype=np.int64)
