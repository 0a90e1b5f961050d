"""Entry `gpu-trunk`: how fast the engine runs a network on a GPU, against the eager network and the card's limit."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.bench.measure import Bench, Figure, rate, ratio
from pipeline.bench.trunk import (
    RESNET50_ON_A_GPU,
    Through,
    eager,
    gflop_of_products,
    gflop_per_image,
    in_turns,
    products,
    random_trunk,
)
from pipeline.trunk.frozen import FrozenTrunk
from pipeline.trunk.identity import TrunkSpec

ENTRY = "gpu-trunk"
EAGER, PRODUCT = "eager channels-last", "torch.mm"


def bench_gpu_trunk(
    bench: Bench, through: Through = RESNET50_ON_A_GPU, *, batches: int = 16, product: int = 8192
) -> list[Figure]:
    """In each precision: the engine ÷ the eager network, images/s; and its GFLOP/s ÷ those of ``torch.mm``.

    All three in the same arithmetic. The engine is driven as an extraction drives it: uint8 pixels in page-locked
    memory, copied and normalised; the eager network, channels-last, is given finished images on the card, to its
    advantage. Features come back to the host. ``product`` is the side of the square matrices that are multiplied.
    """
    device, pixels, precisions = through.device, through.pixels(), through.precisions()
    info, model, _ = random_trunk(through.trunk, through.image_size, bench.folder)
    ways: dict[str, Callable[[], float]] = {}
    for precision in precisions:
        spec = TrunkSpec(info, info.layer("last"), "torch", precision, device)
        frozen = FrozenTrunk(spec, batch=len(pixels), work_dir=bench.folder)
        frozen.features(pixels)  # checks that it computes the network
        images, plain = len(pixels) * batches, eager(info, pixels, device, batches, precision=precision)
        ways[precision] = rate(images, in_turns(frozen.engine, pixels, batches))
        ways[f"{precision}, {EAGER}"] = rate(images, plain)
        ways[f"{precision}, {PRODUCT}"] = rate(gflop_of_products(product), products(product, device, precision))
    for way in ways.values():
        way()
    found = bench.alternate(ENTRY, ways)
    work = gflop_per_image(model, through.image_size)
    note = f"{ENTRY}: {through.words}, {work:.3g} GFLOP an image; {PRODUCT} of {product:,}²"
    figures = []
    for precision in precisions:
        other = f"{precision}, {EAGER}"
        sides = (precision, found[precision]), (other, found[other])
        figures.append(ratio(ENTRY, f"{precision} ÷ {EAGER}", sides, "images/s", note=note))
    for precision in precisions:
        other = f"{precision}, {PRODUCT}"
        sides = (precision, tuple(work * v for v in found[precision])), (other, found[other])
        figures.append(ratio(ENTRY, f"{precision} ÷ {PRODUCT}", sides, "GFLOP/s", note=note))
    return figures
