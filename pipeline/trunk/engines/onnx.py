"""The onnxruntime engine: the folded trunk exported to ONNX once, in int8 if asked, kept as a file, and run on the CPU.

Knows a folded trunk and its own files. A file's name says what went into it and, last, the SHA-256 of its own bytes, so
that one that is there is the right one or is refused. Files are only ever added.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from pipeline.base.errors import WeightsError
from pipeline.base.files import draft_in, make_folder, move, sync, writing
from pipeline.base.spelling import option
from pipeline.trunk.calibration import Calibration
from pipeline.trunk.engines.base import Slot, through
from pipeline.trunk.engines.fold import FoldedTrunk
from pipeline.trunk.identity import TrunkSpec, WeightsInfo, engine_version
from pipeline.trunk.surgery import fingerprint

_ERRORS_ONLY = 3  # onnxruntime's log level: warnings would go to standard error


class OnnxEngine:
    """onnxruntime on the CPU at one batch shape, in float32 or int8."""

    name = "onnxruntime"
    device = "cpu"
    net = None  # onnxruntime's own; of the file it is known that it is what was written

    def __init__(self, net: FoldedTrunk, spec: TrunkSpec, *, batch: int, work_dir: Path) -> None:
        self.version, self.precision = engine_version(self.name), spec.precision
        self.batch, self.dim, size = batch, net.dim, spec.info.transform.crop
        self._shape = (batch, 3, size, size)
        path = exported(net, spec, batch, work_dir)
        if spec.precision == "int8":
            assert spec.calibration is not None
            path = _quantised(path, spec.info, batch, spec.calibration)
        self._session = _open(path)
        self._own = self.slot()

    def slot(self) -> Slot:
        """A new slot, its places black: a view of the layout that the exported network takes."""
        pixels = np.zeros(self._shape, np.uint8)
        return Slot(pixels.transpose(0, 2, 3, 1), np.zeros((self.batch, self.dim), np.float32))

    def start(self, slot: Slot) -> None:
        """Compute what is in a slot."""
        slot.found = self._session.run(None, {"pixels": slot.places.transpose(0, 3, 1, 2)})[0]

    def finish(self, slot: Slot) -> NDArray[np.float32]:
        """Features (batch, dim) float32 of a slot that was started."""
        return slot.found

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (n, dim) float32 of pixels (n, 3, S, S) uint8, n <= batch."""
        return through(self, self._own, pixels)


def exported(net: FoldedTrunk, spec: TrunkSpec, batch: int, folder: Path) -> Path:
    """The network as an ONNX file in float32 for ``batch`` images at a time: the one that is there, or a new one.

    Raises:
        WeightsError: it cannot be exported, or the folder cannot be written.
    """
    info = spec.info
    shape = (batch, 3, info.transform.crop, info.transform.crop)
    prefix = _prefix(info, batch, f"{info.trunk} {fingerprint(net)} {shape} {engine_version(OnnxEngine.name)}")
    return _kept(folder, prefix) or _written(folder, prefix, _program(net, shape, spec).save)


def _quantised(export: Path, info: WeightsInfo, batch: int, calibration: Calibration) -> Path:
    """The export in int8: the file that is there, or a new one beside it."""
    prefix = _prefix(info, batch, f"int8 {export.name} {calibration.sha256}")

    def save(draft: Path, **_: object) -> None:
        from pipeline.trunk.engines.int8 import quantise  # its library takes a second to import

        quantise(export, calibration, draft)

    return _kept(export.parent, prefix) or _written(export.parent, prefix, save)


def _prefix(info: WeightsInfo, batch: int, subject: str) -> str:
    """What the name of a prepared file begins with; ``subject`` is all that went into it."""
    what = hashlib.sha256(subject.encode()).hexdigest()[:16]
    return f"{info.trunk.replace(':', '-')}-{info.transform.crop}px-{batch}-{what}-"


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


def _program(net: FoldedTrunk, shape: tuple[int, ...], spec: TrunkSpec) -> torch.onnx.ONNXProgram:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's remarks on its own parts, of no use to a reader
            program = torch.onnx.export(
                net,
                (torch.zeros(shape, dtype=torch.uint8),),
                input_names=["pixels"],
                output_names=["features"],
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # what the exporter raises for a network that it cannot follow cannot be listed
        reason = " ".join(str(error).split())[:160]
        other = option("precision", "float32") if spec.precision == "int8" else option("engine", "torch")
        raise WeightsError(
            f"{spec.info.trunk} cannot be exported for onnxruntime ({type(error).__name__}: {reason}): give {other}"
        ) from error
    assert program is not None
    return program


def _written(folder: Path, prefix: str, save: Callable[..., object]) -> Path:
    """A new file in ``folder``, whole or not there, by ``save(path, external_data=False)``."""
    with writing(folder, WeightsError, f"give {option('engine', 'torch')}, which exports nothing"):
        make_folder(folder)
        with draft_in(folder) as own:
            draft = own / "draft.onnx"
            save(draft, external_data=False)
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
