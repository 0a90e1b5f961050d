"""An exported network in int8, by onnxruntime's static quantisation: bounds of its maps found, then put into the file.

Maps are unsigned with one scale each, weights signed with one for each output channel, both beside the operations that
take them (QDQ); so onnxruntime finds whole blocks that it computes in integers. Measured on a processor with VNNI:
signed maps are as near to float32 and 2 to 4 times as slow; convolutions alone in int8 are a quarter slower than all
of QUANTISED; bounds by entropy or by percentiles take 4 times as long and are no nearer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from pipeline.base.files import draft_in
from pipeline.trunk.calibration import Calibration

# What is computed in int8. The means that end a network stay in float32: features are made there.
QUANTISED = ("Conv", "MatMul", "Gemm", "Add", "Mul", "Relu", "Clip", "MaxPool", "GlobalAveragePool")
_DIGITS = 4  # of a bound: more would tell one size of batch from another


class _Batches(CalibrationDataReader):  # type: ignore[misc] # the library has no types
    """Pixels (n, 3, S, S) uint8, ``batch`` at a time; the last batch is filled up from the beginning."""

    def __init__(self, pixels: NDArray[np.uint8], batch: int, advance: Callable[[int], None]) -> None:
        self._starts = iter(range(0, len(pixels), batch))
        self._pixels, self._batch, self._advance = pixels, batch, advance

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next batch; None after the last."""
        start = next(self._starts, None)
        if start is None:
            return None
        self._advance(min(self._batch, len(self._pixels) - start))
        return {"pixels": np.take(self._pixels, range(start, start + self._batch), axis=0, mode="wrap")}


def bounds_of(
    export: Path, pixels: NDArray[np.uint8], batch: int, advance: Callable[[int], None]
) -> dict[str, tuple[float, float]]:
    """The least and the largest value of each of the network's maps, on pixels (n, 3, S, S) uint8.

    ``export`` takes ``batch`` images at a time; ``advance`` is told of those that are done.
    """
    with draft_in(export.parent) as own:
        finder = create_calibrator(
            export,
            list(QUANTISED),
            augmented_model_path=str(own / "all.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
        )
        finder.collect_data(_Batches(pixels, batch, advance))
        found = finder.compute_data()
    bounds = {name: (_rounded(data.lowest), _rounded(data.highest)) for name, data in sorted(found.data.items())}
    return {**bounds, **_of_pixels(onnx.load(export))}


def _of_pixels(model: onnx.ModelProto) -> dict[str, tuple[float, float]]:
    """The bounds of pixels less the mean: they are known, whatever the images are."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    numbers = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        source = made_by.get(node.input[0]) if node.op_type == "Sub" else None
        if source is not None and list(source.input) == ["pixels"] and node.input[1] in numbers:
            mean = onnx.numpy_helper.to_array(numbers[node.input[1]])
            return {node.output[0]: (-float(mean.max()), 255 - float(mean.min()))}
    return {}


def _rounded(bound: NDArray[np.float32]) -> float:
    return float(f"{bound.item():.{_DIGITS}g}")


def quantise(export: Path, calibration: Calibration, out: Path) -> None:
    """Write the network of ``export`` in int8 to ``out``."""
    bounds = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in calibration.bounds.items()
    }
    quantizer = QDQQuantizer(
        onnx.load(export),
        per_channel=True,
        reduce_range=calibration.weight_bits == 7,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, bounds),
        nodes_to_quantize=[],
        nodes_to_exclude=[],
        op_types_to_quantize=list(QUANTISED),
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(out))
