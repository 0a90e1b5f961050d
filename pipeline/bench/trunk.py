"""Entry `trunk`: how fast each engine runs the network, against plain eager torchvision and the machine's own limit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.base.arithmetic import arithmetic
from pipeline.base.machine import kind_of_device, resolve_device
from pipeline.base.precision import LEARNING, PRECISIONS, bits_of_weights, lacks
from pipeline.base.workspace import Workspace
from pipeline.bench.measure import Bench, Figure, Goal, rate, ratio
from pipeline.stages.extract.ring import AT_WORK
from pipeline.trunk.calibration import Calibration
from pipeline.trunk.engines.base import Engine, Slot
from pipeline.trunk.engines.check import check_engine
from pipeline.trunk.engines.open import open_engine
from pipeline.trunk.families.family import CLASSES, anatomy_of
from pipeline.trunk.frozen import default_batch, find_bounds
from pipeline.trunk.identity import Changes, TrunkSpec, WeightsInfo, available_engines, with_changes
from pipeline.trunk.lookup import find_weights
from pipeline.trunk.surgery import behead, build, trunk_at
from pipeline.trunk.weights import load_model

WEIGHTS = "random:0"  # the numbers in the weights do not change the speed
EAGER = "plain eager"
PRODUCT = "torch.mm"
PRODUCTS = 4
GOALS = {
    "onnxruntime": Goal(floor=2.0, aim=2.4),
    "torch bfloat16": Goal(floor=2.8, aim=3.3),
    "onnxruntime int8": Goal(floor=5.5, aim=6.5),
}


class Through(NamedTuple):
    """What images go through, so many at a time; ``batch`` None: as many as suit the device."""

    trunk: str = "resnet50"
    image_size: int = 224
    batch: int | None = None
    device: str = "cuda"

    @property
    def at_once(self) -> int:
        """Images in one batch."""
        return self.batch or default_batch(self.device, self.image_size)

    @property
    def words(self) -> str:
        """The three of them, for a note."""
        return f"{self.trunk} at {self.image_size} px, batch {self.at_once}"

    def pixels(self) -> NDArray[np.uint8]:
        """A batch of noise, (batch, 3, S, S) uint8."""
        shape = self.at_once, 3, self.image_size, self.image_size
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def precisions(self) -> list[str]:
        """Those that networks learn in, as far as the device has them."""
        return [precision for precision in LEARNING if lacks(precision, self.device) is None]


RESNET50_ON_A_GPU = Through()


def bench_trunk(
    bench: Bench,
    *,
    trunk: str = "resnet50",
    image_size: int = 224,
    batch: int | None = None,
    batches: int = 2,
    product: int = 2048,
) -> list[Figure]:
    """Each installed engine ÷ plain eager torchvision, images/s; and its GFLOP/s ÷ those of ``torch.mm``.

    Engines take uint8 pixels and normalise; plain eager is given finished float32 images, to its advantage.
    ``product`` is the side of the square float32 matrices that ``torch.mm`` multiplies.
    """
    device = resolve_device("auto")
    batch = batch or default_batch(device, image_size)
    info, model, _ = random_trunk(trunk, image_size, bench.folder)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 3, image_size, image_size), dtype=np.uint8)
    ways: dict[str, Callable[[], float]] = {EAGER: rate(batch * batches, eager(info, pixels, device, batches))}
    for name, engine in _engines(model, info, device, batch, bench.folder).items():
        ways[name] = rate(batch * batches, repeat(engine, pixels, batches))
    ways[PRODUCT] = rate(gflop_of_products(product), products(product, device))
    for way in ways.values():
        way()
    found = bench.alternate("trunk", ways)
    work = gflop_per_image(model, image_size)
    note = (
        f"trunk: {trunk} at {image_size} px, batch {batch}, {work:.3g} GFLOP an image; {EAGER} and {PRODUCT} in float32"
    )
    figures = []
    for name in (n for n in ways if n not in (EAGER, PRODUCT)):
        goal = GOALS.get(name) if device == "cpu" else None
        sides = (name, found[name]), (EAGER, found[EAGER])
        figures.append(ratio("trunk", f"{name} ÷ {EAGER}", sides, "images/s", goal=goal, note=note))
    for name in (n for n in ways if n != PRODUCT):
        sides = (name, tuple(work * v for v in found[name])), (PRODUCT, found[PRODUCT])
        figures.append(ratio("trunk", f"{name} ÷ {PRODUCT}", sides, "GFLOP/s", note=note))
    return figures


def random_trunk(trunk: str, image_size: int, folder: Path) -> tuple[WeightsInfo, nn.Module, int]:
    """A network with random weights, beheaded, in eval mode, the transform of images of ``image_size`` px, and D."""
    info = with_changes(find_weights(WEIGHTS, trunk, Workspace(folder)), Changes(image_size=image_size))
    model = load_model(info)
    return info, *trunk_at(model, anatomy_of(trunk, model), info.layer("last"), image_size)


def gflop_per_image(model: nn.Module, image_size: int) -> float:
    """Floating-point operations of one image's forward pass, in 1e9, counted by PyTorch (a multiply-add is two)."""
    parameter = next(model.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, image_size, image_size, device=parameter.device))
    return float(counter.get_total_flops()) / 1e9


def _engines(trunk: nn.Module, info: WeightsInfo, device: str, batch: int, folder: Path) -> dict[str, Engine]:
    """Every engine that is installed for the device, in every precision it has there, warmed up and checked."""
    size, layer = info.transform.crop, info.layer("last")
    pixels = np.random.default_rng(1).integers(0, 256, (batch, 3, size, size), dtype=np.uint8)
    found = {}
    for precision in (p for p in PRECISIONS if lacks(p, device) is None):
        for name in available_engines(device, precision):
            spec = TrunkSpec(info, layer, name, precision, device)
            if precision == "int8":
                bounds = find_bounds(spec, pixels, batch=batch, work_dir=folder, advance=lambda _: None)
                spec = replace(spec, calibration=Calibration(bounds, bits_of_weights(), ()))
            engine = open_engine(spec, trunk, info.dim(layer), batch=batch, work_dir=folder)
            check_engine(engine, trunk, info, pixels)
            found[name if precision == "float32" else f"{name} {precision}"] = engine
    return found


def eager(
    info: WeightsInfo, pixels: NDArray[np.uint8], device: str, n: int, *, precision: str | None = None
) -> Callable[[], object]:
    """The library's own network as it comes, without its classifier, ``n`` times on float32 images in host memory.

    With a ``precision``, as one who knows a GPU runs it: channels-last, weights and maps of the precision's type, and
    the images on the device beforehand.
    """
    model = build(info.trunk, num_classes=CLASSES, image_size=info.transform.crop)
    net = behead(model, anatomy_of(info.trunk, model)).to(device)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (info.transform.mean, info.transform.std))
    images = (torch.from_numpy(pixels).float() / 255 - mean) / std
    if precision is not None:
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        net = net.to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.to(device, dtype, memory_format=torch.channels_last)

    def work() -> None:
        with torch.inference_mode(), arithmetic(precision or "float32"):
            for _ in range(n):
                net(images.to(device)).cpu()

    return work


def repeat(engine: Engine, pixels: NDArray[np.uint8], n: int) -> Callable[[], object]:
    """``n`` batches of the same pixels, (batch, 3, S, S) uint8."""

    def work() -> None:
        for _ in range(n):
            engine(pixels)

    return work


def in_turns(engine: Engine, pixels: NDArray[np.uint8], n: int) -> Callable[[], object]:
    """``n`` batches of the same pixels as extraction drives the engine: on a GPU the next is begun before one ends.

    The slots are full beforehand: in an extraction threads fill them.
    """
    slots = [engine.slot() for _ in range(AT_WORK[kind_of_device(engine.device)])]
    for slot in slots:
        slot.places[...] = pixels.transpose(0, 2, 3, 1)

    def work() -> None:
        running: deque[Slot] = deque()
        for number in range(n):
            if len(running) == len(slots):
                engine.finish(running.popleft())
            engine.start(slot := slots[number % len(slots)])
            running.append(slot)
        for slot in running:
            engine.finish(slot)

    return work


def products(side: int, device: str, precision: str = "float32") -> Callable[[], object]:
    """PRODUCTS products of square matrices: what the device, or the same threads, can do at best."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = torch.rand(2, side, side, device=device, dtype=dtype).unbind()

    def work() -> None:
        with arithmetic(precision):
            for _ in range(PRODUCTS):
                c = torch.mm(a, b)
        c[0, 0].item()  # waits for a GPU

    return work


def gflop_of_products(side: int) -> float:
    """Floating-point operations of :func:`products`, in 1e9."""
    return PRODUCTS * 2 * side**3 / 1e9
