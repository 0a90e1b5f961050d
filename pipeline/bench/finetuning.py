"""Entries `prefix` and `finetune`: an epoch by cached maps against one through the trunk; ours against a plain loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.base.arithmetic import arithmetic
from pipeline.base.interrupt import StopRequest
from pipeline.base.machine import cores, resolve_device
from pipeline.base.precision import lacks
from pipeline.base.ranks import Ranks
from pipeline.base.workspace import Workspace
from pipeline.bench.child import run_python
from pipeline.bench.images import SIZE, make_photographs
from pipeline.bench.measure import Bench, Figure, Goal, rate, ratio, seconds
from pipeline.bench.trunk import WEIGHTS, random_trunk
from pipeline.stages.extract.doors import extract
from pipeline.stages.finetune.loop import Loop
from pipeline.stages.finetune.settings import FinetuneSettings
from pipeline.stages.finetune.start import attach
from pipeline.stages.finetune.state import State
from pipeline.stages.finetune.task import Task
from pipeline.stages.learn.doors import train

PREFIX_GOAL = Goal(floor=0.5, sense="most")
FINETUNE_GOAL = Goal(floor=1.0)
BFLOAT16_GOAL = Goal(floor=1.6)
EPOCHS = 1000  # more than are run: the learning rate does not matter here


def bench_prefix(
    bench: Bench,
    *,
    trunk: str = "resnet50",
    image_size: int = 224,
    photographs: int = 64,
    size: tuple[int, int] = SIZE,
    batch: int = 16,
) -> list[Figure]:
    """Seconds of an epoch of ``--train layer4``: by cached maps ÷ through the whole trunk, the same images and steps.

    The maps are made before; making them costs one pass through the frozen part, once.
    """
    run = head_run(bench.folder, trunk, image_size, photographs, size)
    names = {"cached maps": True, "whole trunk": False}
    ways = {
        name: partial(seconds, epochs(bench.folder, run, train="layer4", prefix=prefix, batch_size=batch))
        for name, prefix in names.items()
    }
    cached, whole = bench.alternate("prefix", ways).items()
    (maps,) = (bench.folder / "maps").glob("*.h5")
    note = f"prefix: {trunk} at {image_size} px, batch {batch}, {photographs} images"
    note += f", maps of {maps.stat().st_size / photographs / 1e6:.2f} MB each"
    name = "epoch, cached maps ÷ whole trunk"
    return [ratio("prefix", name, (cached, whole), "s", goal=PREFIX_GOAL, note=note)]


def bench_finetune(
    bench: Bench,
    *,
    trunk: str = "resnet50",
    image_size: int = 224,
    photographs: int = 48,
    size: tuple[int, int] = SIZE,
    batch: int = 16,
) -> list[Figure]:
    """Images/s of training all of it ÷ those of a plain torchvision loop with the same settings.

    Where the processor has bfloat16, also in that ÷ in float32. All in eval mode (BatchNorm's statistics frozen), by
    AdamW, without augmentation; the plain loop's DataLoader has a worker for each core, which it keeps, and its first
    epoch is not timed.
    """
    run = head_run(bench.folder, trunk, image_size, photographs, size)
    epoch = epochs(bench.folder, run, train="all", batch_size=batch)
    resize = resize_of(trunk, image_size, bench.folder)
    workers = cores()

    def plain() -> float:
        arguments = [str(bench.folder / "photos" / "train"), trunk, resize, image_size, batch, workers]
        taken = run_python(["-m", "pipeline.bench.plain_finetune", *map(str, arguments)], threads=bench.threads)
        return photographs / float(taken)

    ways: dict[str, Callable[[], float]] = {"pipeline": rate(photographs, epoch), "plain loop": plain}
    if lacks("bfloat16", resolve_device("auto")) is None:
        half = epochs(bench.folder, run, train="all", batch_size=batch, precision="bfloat16")
        ways["bfloat16"] = rate(photographs, half)
    found = bench.alternate("finetune", ways)
    note = f"finetune: {trunk} at {image_size} px, all of it, batch {batch}, {photographs} images an epoch"
    note += "; the plain loop in float32"
    pairs = {"pipeline ÷ plain loop": ("pipeline", "plain loop", FINETUNE_GOAL)}
    if "bfloat16" in ways:
        pairs["bfloat16 ÷ float32"] = "bfloat16", "pipeline", BFLOAT16_GOAL
    return [
        ratio("finetune", name, ((a, found[a]), (b, found[b])), "images/s", goal=goal, note=note)
        for name, (a, b, goal) in pairs.items()
    ]


def head_run(
    folder: Path, trunk: str, image_size: int, photographs: int, size: tuple[int, int], *, device: str = "auto"
) -> Path:
    """A head, trained on so many photographs and chosen on a few of another size."""
    photos = folder / "photos"
    make_photographs(photos / "train", photographs, size=size)
    make_photographs(photos / "val", 4, size=(size[0] + 2, size[1] + 2))
    made = extract(
        photos,
        trunk=trunk,
        weights=WEIGHTS,
        image_size=image_size,
        engine="torch",
        device=device,
        workspace=folder,
        out=folder / "it.h5",
    )
    return train(made.cache, workspace=folder).run


def epochs(folder: Path, run: Path, **options: Any) -> Callable[[], object]:
    """What trains one epoch at each call, and has trained one."""
    settings = FinetuneSettings(run=str(run), epochs=EPOCHS, **options)
    desk = Workspace(folder)
    task = Task.of(settings, attach(settings, desk), Ranks(), desk)
    state = State(task.attached.network, task.attached.anatomy, settings)
    loop = Loop(task, state)

    def epoch() -> None:
        with arithmetic(settings.precision):
            for _ in loop.steps(StopRequest()):
                pass
        state.progress.next_epoch()

    epoch()
    return epoch


def resize_of(trunk: str, image_size: int, folder: Path) -> int:
    """Pixels that the trunk's own transform resizes the shorter side to."""
    return random_trunk(trunk, image_size, folder)[0].transform.resize
