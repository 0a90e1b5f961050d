"""Entry `gpu-finetune`: training a whole network on a GPU against a plain loop that does what one knows to do there."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.base.machine import cores
from pipeline.bench.child import run_python
from pipeline.bench.finetuning import FINETUNE_GOAL, epochs, head_run, resize_of
from pipeline.bench.images import SIZE
from pipeline.bench.measure import Bench, Figure, rate, ratio
from pipeline.bench.trunk import RESNET50_ON_A_GPU, Through

ENTRY = "gpu-finetune"


def bench_gpu_finetune(
    bench: Bench, through: Through = RESNET50_ON_A_GPU, *, photographs: int = 4096, size: tuple[int, int] = SIZE
) -> list[Figure]:
    """Images/s of training all of it ÷ those of a plain loop in the same arithmetic, in each precision.

    The plain loop (``plain_amp.py``) is channels-last, with a pinned DataLoader whose workers stay, fused AdamW and, in
    bfloat16, autocast. Both in eval mode (BatchNorm's statistics frozen), without augmentation; the first epoch of
    neither is timed.
    """
    trunk, image_size, batch, device = through.trunk, through.image_size, through.at_once, through.device
    run = head_run(bench.folder, trunk, image_size, photographs, size, device=device)
    resize, workers = resize_of(trunk, image_size, bench.folder), bench.threads or cores()

    def plain(precision: str) -> Callable[[], float]:
        numbers = map(str, (resize, image_size, batch, workers))
        words = [str(bench.folder / "photos" / "train"), trunk, precision, device, *numbers]
        return lambda: (
            photographs / float(run_python(["-m", "pipeline.bench.plain_amp", *words], threads=bench.threads))
        )

    precisions = through.precisions()
    ways: dict[str, Callable[[], float]] = {}
    for precision in precisions:
        epoch = epochs(bench.folder, run, train="all", batch_size=batch, precision=precision, device=device)
        ways[precision] = rate(photographs, epoch)
        ways[f"{precision}, plain loop"] = plain(precision)
    found = bench.alternate(ENTRY, ways)
    note = f"{ENTRY}: {through.words}, all of it, {photographs:,} images an epoch"
    figures = []
    for precision in precisions:
        sides = (precision, found[precision]), (other := f"{precision}, plain loop", found[other])
        name = f"{precision} ÷ plain loop"
        figures.append(ratio(ENTRY, name, sides, "images/s", goal=FINETUNE_GOAL, note=note))
    return figures
