"""The onnxruntime engine: the folded trunk exported to ONNX once, kept as a file, and run on the CPU.

Knows a folded trunk and its own files. A file is named by everything that went into it, so a name that is there is the
right one, and files are only ever added.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from pipeline.base.errors import WeightsError
from pipeline.base.files import make_folder, whole, writing
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

    def __init__(self, net: FoldedTrunk, *, trunk: str, image_size: int, batch: int, work_dir: Path) -> None:
        self.version = engine_version(self.name)
        self.batch, self.dim = batch, net.dim
        self._pixels = np.zeros((batch, 3, image_size, image_size), np.uint8)
        subject = f"{trunk} {fingerprint(net)} {self._pixels.shape} {self.version}"
        name = f"{trunk.replace(':', '-')}-{image_size}px-{batch}"
        path = work_dir / f"{name}-{hashlib.sha256(subject.encode()).hexdigest()[:16]}.onnx"
        if not path.exists():
            _export(net, self._pixels, path, trunk)
        self._session = _open(path)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (n, dim) float32 of pixels (n, 3, S, S) uint8, n <= batch."""
        fill(self._pixels, pixels)
        features: NDArray[np.float32] = self._session.run(None, {"pixels": self._pixels})[0]
        return features[: len(pixels)]


def _export(net: FoldedTrunk, example: NDArray[np.uint8], path: Path, trunk: str) -> None:
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
            f"{trunk} cannot be exported for onnxruntime ({type(error).__name__}: {reason}): give --engine torch"
        ) from error
    assert program is not None
    with writing(path.parent, WeightsError, "give --engine torch, which exports nothing"):
        make_folder(path.parent)
        with whole(path) as draft:
            program.save(draft, external_data=False)


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
