"""The onnxruntime engine: the folded trunk exported once to an ONNX file of one fixed shape and run on the CPU.

Knows ONNX and onnxruntime; imported only where they are wanted. The file lies in a work folder under a name made from
everything that decides it, so it is made again when weights, shape or libraries change.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.errors import WeightsError
from pipeline.trunk import known
from pipeline.trunk.engine import Batch, FoldedTrunk

_GRAPH_VERSION = 1  # raise when the exported graph changes in meaning
_ERRORS_ONLY = 3


class OnnxEngine:
    """The folded trunk in onnxruntime, on as many threads as torch has."""

    name, device, precision = "onnxruntime", "cpu", "float32"

    def __init__(self, model: nn.Module, info: known.WeightsInfo, *, batch: int, layer: str, work_dir: Path) -> None:
        self.version = known.engine_version(self.name)
        self.batch, self.dim = batch, known.feature_dim(info.trunk, layer)
        path = work_dir / f"{_file_key(info, layer, batch)}.onnx"
        if not path.exists():
            _export(FoldedTrunk(model, info, layer), path, batch=batch, size=info.crop)
        self._input = Batch(batch, info.crop, pinned=False)
        self._session = _session(path)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (n, dim) float32 of pixels (n, 3, S, S) uint8, n <= batch."""
        self._input.fill(pixels)
        (out,) = self._session.run(["features"], {"pixels": self._input.array})
        rows: NDArray[np.float32] = out[: len(pixels)]
        return rows


def _file_key(info: known.WeightsInfo, layer: str, batch: int) -> str:
    versions = {name: known.engine_version(name) for name in ("torch", "torchvision", *known.ONNX_PACKAGES)}
    what = {**info.provenance(), "layer": layer, "batch": batch, "versions": versions, "graph": _GRAPH_VERSION}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return f"{info.trunk}-{digest[:32]}"


def _export(trunk: FoldedTrunk, path: Path, *, batch: int, size: int) -> None:
    """Write the graph to ``path`` in one step: whole, or not at all."""
    example = torch.zeros((batch, 3, size, size), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals; what it wrote is checked afterwards
        program = torch.onnx.export(
            trunk, (example,), dynamo=True, verbose=False, input_names=["pixels"], output_names=["features"]
        )
    assert program is not None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=".draft-", suffix=".onnx", dir=path.parent)
        os.close(handle)
        try:
            program.save(draft, external_data=False)
            Path(draft).replace(path)
        finally:
            Path(draft).unlink(missing_ok=True)
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be written ({error.strerror}): free the folder or the disk, or give --engine torch"
        ) from error


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _ERRORS_ONLY
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no public base class for its errors
        raise WeightsError(
            f"{path} cannot be loaded by onnxruntime ({' '.join(str(error).split())[:150]}): delete it and run again"
        ) from error
