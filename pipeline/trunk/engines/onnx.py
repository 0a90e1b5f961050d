"""The onnxruntime engine: the folded trunk exported to ONNX once, kept as a file, and run on the CPU.

Knows a folded trunk and its own files. A file's name says what went into it and, last, the SHA-256 of its own bytes, so
that one that is there is the right one or is refused. Files are only ever added.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from pipeline.base.errors import WeightsError
from pipeline.base.files import draft_in, make_folder, move, sync, writing
from pipeline.base.spelling import option
from pipeline.trunk.engines.base import fill
from pipeline.trunk.engines.fold import FoldedTrunk
from pipeline.trunk.identity import engine_version
from pipeline.trunk.surgery import fingerprint

_ERRORS_ONLY = 3  # onnxruntime's log level: warnings would go to standard error


class OnnxEngine:
    """onnxruntime on the CPU in float32, at one batch shape."""

    name = "onnxruntime"
    device = "cpu"
    precision = "float32"
    net = None  # onnxruntime's own; of the file it is known that it is what was written

    def __init__(self, net: FoldedTrunk, *, trunk: str, image_size: int, batch: int, work_dir: Path) -> None:
        self.version = engine_version(self.name)
        self.batch, self.dim = batch, net.dim
        self._pixels = np.zeros((batch, 3, image_size, image_size), np.uint8)
        subject = f"{trunk} {fingerprint(net)} {self._pixels.shape} {self.version}"
        what = hashlib.sha256(subject.encode()).hexdigest()[:16]
        prefix = f"{trunk.replace(':', '-')}-{image_size}px-{batch}-{what}-"
        path = _kept(work_dir, prefix) or _export(net, self._pixels, work_dir, prefix, trunk)
        self._session = _open(path)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (n, dim) float32 of pixels (n, 3, S, S) uint8, n <= batch."""
        fill(self._pixels, pixels)
        features: NDArray[np.float32] = self._session.run(None, {"pixels": self._pixels})[0]
        return features[: len(pixels)]


def _kept(folder: Path, prefix: str) -> Path | None:
    """The export that is there already; the first of several, which processes may make at the same time.

    Raises:
        WeightsError: its bytes are not those that its name says.
    """
    named = re.compile(re.escape(prefix) + r"([0-9a-f]{64})\.onnx")
    for path in sorted(folder.glob("*.onnx")):
        if match := named.fullmatch(path.name):
            if _digest(path) != match[1]:
                raise WeightsError(f"{path} has changed since it was written: remove it, it will be made again")
            return path
    return None


def _digest(path: Path) -> str:
    """SHA-256 of an export: 0.2 s for a ResNet50's 94 MB. (Loading the very bytes would hold as many more for good.)"""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): remove it, it will be made again") from error


def _export(net: FoldedTrunk, example: NDArray[np.uint8], folder: Path, prefix: str, trunk: str) -> Path:
    """A new export in ``folder``, whole or not there; its name is ``prefix`` and its digest."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's remarks on its own parts, of no use to a reader
            program = torch.onnx.export(
                net,
                (torch.from_numpy(example),),
                input_names=["pixels"],
                output_names=["features"],
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # what the exporter raises for a network that it cannot follow cannot be listed
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(
            f"{trunk} cannot be exported for onnxruntime ({type(error).__name__}: {reason}): give "
            f"{option('engine', 'torch')}"
        ) from error
    assert program is not None
    with writing(folder, WeightsError, f"give {option('engine', 'torch')}, which exports nothing"):
        make_folder(folder)
        with draft_in(folder) as own:
            draft = own / "draft.onnx"
            program.save(draft, external_data=False)
            sync(draft)
            path = folder / f"{prefix}{_digest(draft)}.onnx"
            move(draft, path)
    return path


def _open(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    options.use_deterministic_compute = True
    options.log_severity_level = _ERRORS_ONLY
    # Idle threads must leave the cores to the decoding of the next images instead of spinning.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class of their own
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(f"{path} cannot be loaded ({reason}): remove it, it will be made again") from error
