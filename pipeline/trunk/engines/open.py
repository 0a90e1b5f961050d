"""Engines: what runs a trunk on pixels, at one fixed batch shape, and the check that it computes the trunk.

One shape, because another one changes the last bits: a short batch is padded with black images. The onnxruntime
engine is in ``pipeline.trunk.engines.onnx`` and is imported only when it is asked for.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from pipeline.base.errors import ConfigError
from pipeline.base.precision import PRECISIONS, bits_of_weights
from pipeline.base.spelling import option
from pipeline.trunk.engines.base import Engine
from pipeline.trunk.engines.fold import FoldedTrunk
from pipeline.trunk.engines.torch import TorchEngine
from pipeline.trunk.identity import TrunkSpec, choose_engine


def open_engine(spec: TrunkSpec, trunk: nn.Module, dim: int, *, batch: int, work_dir: Path) -> Engine:
    """The engine that the spec names, for ``trunk``, ``batch`` images at a time; the trunk stays as it is.

    ``trunk`` gives features (n, dim) of normalised images.

    ``work_dir`` is where an engine keeps what it has prepared.

    Raises:
        ConfigError: an engine, precision, device or batch that cannot be had.
        WeightsError: a prepared file that is damaged, or cannot be written.
    """
    info, device, precision = spec.info, spec.device, spec.precision
    if precision not in PRECISIONS:
        raise ConfigError(f"{option('precision', precision)} is not known: choose from {', '.join(PRECISIONS)}")
    choose_engine(spec.engine, device=device, n_images=batch, precision=precision)
    if batch < 1:
        raise ConfigError(f"{option('batch_size')} is {batch}: it must be at least 1")
    if spec.calibration is not None and spec.calibration.weight_bits > bits_of_weights():
        raise ConfigError(
            "these bounds of int8 are for weights of 8 bits, whose sums overflow on this processor, which has no VNNI: "
            f"give {option('recalibrate', True)}, which makes another file"
        )
    net = FoldedTrunk(trunk, info, dim, whole_mean=precision == "int8")
    if spec.engine == "onnxruntime":
        from pipeline.trunk.engines.onnx import OnnxEngine  # an optional dependency

        return OnnxEngine(net, spec, batch=batch, work_dir=work_dir)
    return TorchEngine(net, image_size=info.transform.crop, device=device, precision=precision, batch=batch)
