"""The frozen trunk at work: weights → model → engine, checked against the plain network and against itself.

Shared by the stages that turn images into features (extraction, the certificate, prediction); imports the rooms lazily,
because a job that finds nothing to do must not pay for importing torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipeline.base.errors import ConfigError, EngineError, WeightsError
from pipeline.base.machine import kind_of_device
from pipeline.base.memory import free_bytes, is_out_of_memory, let_go
from pipeline.base.spelling import option
from pipeline.base.words import size as in_words
from pipeline.trunk.cut import shape_of
from pipeline.trunk.engines.base import Engine, Slot
from pipeline.trunk.engines.check import CHECK_ROWS, LATER_ROWS, check_engine
from pipeline.trunk.engines.fold import FoldedTrunk
from pipeline.trunk.engines.open import open_engine
from pipeline.trunk.families.family import anatomy_of
from pipeline.trunk.identity import TrunkSpec
from pipeline.trunk.surgery import fingerprint, trunk_at
from pipeline.trunk.weights import load_model

DEFAULT_BATCH = {"cpu": 16, "cuda": 128, "mps": 64}  # images of 224 px and more
MOST = 8  # times as many small ones: at 32 px more bring nothing, and blocks have so many rows


def default_batch(device: str, image_size: int) -> int:
    """Images in one forward pass: as many as have the pixels of DEFAULT_BATCH images of 224 px, a power of two more."""
    more = 1
    while more < MOST and 2 * more * image_size**2 <= 224**2:
        more *= 2
    return more * DEFAULT_BATCH[kind_of_device(device)]


class FrozenTrunk:
    """A beheaded, frozen network behind an engine.

    Calling :meth:`features` on (n, 3, S, S) uint8 pixels gives (n, D) float32. Batches 1, 2, 4, 8, ... of an engine are
    checked against the network's own modules, eager, in float32: so a fault is found at the latest when twice as many
    images are done, and all checks together cost less than 1 % of 10,000 images. :meth:`assert_untouched` shows that
    parameters and buffers are what they were.

    Attributes:
        engine: the one in use; where memory does not do, it is replaced by one of half the batch.
        opened: how many there have been. A slot is of the engine that was in use when it was made.
    """

    def __init__(self, spec: TrunkSpec, *, batch: int | None, work_dir: Path) -> None:
        self.spec, self._work_dir = spec, work_dir
        self.trunk, self.dim = _beheaded(spec)
        self._fingerprint = fingerprint(self.trunk)
        self.opened = 0
        self.engine: Engine
        self.open(batch or default_batch(spec.device, spec.info.transform.crop))

    def open(self, batch: int) -> None:
        """Take an engine with another batch size, or half of it, a quarter, ... where memory does not do.

        Raises:
            WeightsError: not even one image fits.
        """
        vars(self).pop("engine", None)  # what it holds goes before the next one is made
        while not self._fits(batch):
            batch //= 2
        self._engine_fingerprint = _fingerprint(self.engine.net)
        self._batches, self.opened = 0, self.opened + 1

    def _fits(self, batch: int) -> bool:
        try:
            self.engine = open_engine(self.spec, self.trunk, self.dim, batch=batch, work_dir=self._work_dir)
        except Exception as error:
            self._out_of_memory(error, batch)
            return False
        return True

    def smaller(self) -> None:
        """Take an engine of half the batch; not where one of the old one's slots is still under way."""
        self.open(self.engine.batch // 2)

    def _out_of_memory(self, error: Exception, batch: int) -> None:
        """Give back what an engine took that ran out of memory with a batch of so many; raises all other errors.

        Raises:
            WeightsError: it was one image.
        """
        if not is_out_of_memory(error):
            raise error
        let_go(error)  # what failed holds maps: without them a smaller batch finds room
        if batch == 1:
            device, free = self.spec.device, ""
            if kind_of_device(device) == "cuda":
                free = f" ({in_words(free_bytes(device))} of the GPU's memory are free)"
            raise WeightsError(
                f"out of memory with one image of {self.spec.info.transform.crop} px{free}: give a smaller "
                f"{option('image_size')}, or {option('device', 'cpu')}"
            ) from error

    def _is_due(self) -> bool:
        """Whether the batch that was computed just now is one of those that are checked."""
        self._batches += 1
        return not self._batches & (self._batches - 1)  # a power of two

    def _check(self, pixels: NDArray[np.uint8], found: NDArray[np.float32]) -> None:
        """Compare ``found`` (n, D), what the engine gave for a batch, with the plain network."""
        first = self._batches == 1
        rows = CHECK_ROWS if first else LATER_ROWS
        try:
            check_engine(self.engine, self.trunk, self.spec.info, pixels, found, rows=rows)
        except EngineError as error:
            if first:
                raise
            raise EngineError(
                f"{error}; seen in batch {self._batches}, after earlier ones had passed: what it gave before may be "
                "wrong as well"
            ) from error

    def features(self, pixels: NDArray[np.uint8], *, check: bool = True) -> NDArray[np.float32]:
        """Features (n, D) float32 of (n, 3, S, S) uint8 pixels, any n; halves the batch when memory runs out.

        ``check`` False: the caller compares all of them with the plain network.
        """
        parts, at = [np.zeros((0, self.dim), np.float32)], 0
        while at < len(pixels):
            batch = pixels[at : at + self.engine.batch]
            try:
                found = self.engine(batch)
            except Exception as error:
                self._out_of_memory(error, self.engine.batch)
                found = None
            if found is None:  # outside the handler: the error's traceback holds the tensors that did not fit
                self.smaller()
                continue
            if check and self._is_due():
                self._check(batch, found)
            parts.append(found)
            at += len(found)
        return np.concatenate(parts)

    def slot(self) -> Slot | None:
        """Room for a batch of the engine in use; None where memory does not do for one more.

        Raises:
            WeightsError: it was for a batch of one image.
        """
        try:
            return self.engine.slot()
        except Exception as error:
            self._out_of_memory(error, self.engine.batch)
            return None

    def start(self, slot: Slot) -> bool:
        """Begin to compute a slot's batch; False where memory does not do: then :meth:`smaller` is the way on.

        Raises:
            WeightsError: it was a batch of one image.
        """
        try:
            self.engine.start(slot)
        except Exception as error:
            self._out_of_memory(error, self.engine.batch)
            return False
        return True

    def finish(self, slot: Slot, at: list[int]) -> NDArray[np.float32]:
        """Features (n, D) float32 of the images at these places of a slot that was started, one at least."""
        found: NDArray[np.float32] = self.engine.finish(slot)[at]
        if self._is_due():
            self._check(slot.pixels(at), found)
        return found

    def assert_untouched(self) -> None:
        """See that each parameter and buffer is bit for bit what it was: of the trunk, and of what the engine runs.

        What onnxruntime runs lies in its own memory: of that there is the checks' word.

        Raises:
            EngineError: one is not.
        """
        engine = vars(self).get("engine")  # none where one went for want of memory and no smaller one could be had
        changed = engine is not None and _fingerprint(engine.net) != self._engine_fingerprint
        if changed or fingerprint(self.trunk) != self._fingerprint:
            raise EngineError("the frozen trunk changed while it ran: its features cannot be trusted; report this")


def find_bounds(
    spec: TrunkSpec, pixels: NDArray[np.uint8], *, batch: int, work_dir: Path, advance: Callable[[int], None]
) -> dict[str, tuple[float, float]]:
    """The bounds of the trunk's maps, which int8 needs, on pixels (n, 3, S, S) uint8; the export is kept.

    ``advance`` is told of images that are done.

    Raises:
        ConfigError, WeightsError: as where an engine is opened.
    """
    from pipeline.trunk.engines import int8, onnx  # optional dependencies

    trunk, dim = _beheaded(spec)
    export = onnx.exported(FoldedTrunk(trunk, spec.info, dim, whole_mean=True), spec, batch, work_dir)
    return int8.bounds_of(export, pixels, batch, advance)


def _beheaded(spec: TrunkSpec) -> tuple[nn.Module, int]:
    """The network without its classifier, which takes images of that size, and how many features it gives."""
    model = load_model(spec.info)
    anatomy, size = anatomy_of(spec.info.trunk, model), spec.info.transform.crop
    try:
        trunk, dim = trunk_at(model, anatomy, spec.layer, size)
        shape_of(trunk, size)
    except (RuntimeError, AssertionError, ValueError) as error:  # what networks raise for sizes they cannot take
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{spec.info.trunk} cannot take images of {size} px ({reason}): give another {option('image_size')}"
        ) from error
    return trunk, dim


def _fingerprint(net: nn.Module | None) -> str | None:
    return None if net is None else fingerprint(net)
