"""Entry `growth`: how the seconds and the memory of each command grow with the rows of its cache.

The caches are made up, the commands are those that a user types, each in a process of its own. Their features are
written by the store; so that extraction has them to copy, they are those of images that are there, under other names
and in another order.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import store
from pipeline.base.items import GOOD, NONE
from pipeline.base.workspace import Workspace
from pipeline.bench.child import Spent, measured
from pipeline.bench.features import power_law_pieces
from pipeline.bench.images import make_small, name_of_class
from pipeline.bench.measure import Bench, Figure, Goal
from pipeline.bench.trunk import WEIGHTS
from pipeline.runs.recipe import Recipe
from pipeline.trunk.identity import Changes, TrunkSpec, with_changes
from pipeline.trunk.lookup import find_weights

EXPONENT_GOAL = Goal(floor=None, aim=1.15, sense="most")
SIZES, LARGE = (3_000, 30_000), 300_000  # rows
FEW = 200  # rows of the cache on which a command is all start-up
CLASSES = 10
SIDE = 32  # of an image, in pixels
OFTEN, OFTEN_UP_TO = 2, 3_000  # runs of a command, at most, on caches of at most so many rows; on others it is run once
RESOLUTION = 0.2  # seconds; two runs of a command on FEW rows differ by as much
BLOCK = 128  # rows, as of a cache that was extracted on a CPU
PIECE = 64 * BLOCK  # rows that are made at a time
LONG_AGO = 10**18  # ns; the time of a file that is new is not relied on
CHANGED = 10  # of so many images of a class, relabelling changes one; of a small class it could leave none to train


@dataclass(frozen=True)
class Command:
    """A command line under a name: the cache that it ``makes``, if one, and the ``most`` rows that it is run on."""

    name: str
    words: tuple[str, ...]
    makes: str | None = None
    most: int = LARGE


def commands(place: Path, trunk: str) -> tuple[Command, ...]:
    """What is run in the workspace ``place``, in this order: each finds there what those before it have made."""
    photos, table = str(place / "photos"), str(place / "labels.csv")
    options = ("--weights", WEIGHTS, "--image-size", str(SIDE), "--engine", "torch", "--device", "cpu")
    extract = ("extract", photos, "--name", "copied", "--trunk", trunk, *options)
    return (
        Command("extract, rows copied", extract, makes="copied"),
        Command("extract, nothing changed", extract),
        Command("inspect", ("inspect", "copied")),
        Command("verify", ("verify", "copied")),
        Command("audit", ("audit", "copied")),
        Command("relabel, by a table", ("relabel", "copied", table, "--name", "relabelled"), makes="relabelled"),
        Command("relabel, by a folder", ("relabel", "copied", photos, "--name", "again"), makes="again"),
        Command("train", ("train", "copied", "--C", "0.01")),
        Command("train, adamw, 3 epochs", ("train", "copied", "--solver", "adamw", "--epochs", "3")),
        Command("search", ("search", "copied")),
        Command("search, 5 folds", ("search", "copied", "--cv", "5"), most=30_000),
        Command("baseline", ("baseline", "copied")),
        Command("evaluate", ("evaluate", "1")),
        Command("evaluate, another cache", ("evaluate", "1", "--data", "relabelled")),
    )


def bench_growth(
    bench: Bench, *, sizes: Sequence[int] = SIZES, few: int = FEW, trunk: str = "resnet50", classes: int = CLASSES
) -> list[Figure]:
    """Of each command the exponents of seconds and of CPU seconds against rows, and how its anonymous memory grows.

    An exponent is the slope of the line by least squares through log(seconds - start-up) over log(rows), where
    start-up is the command's time on a cache of ``few`` rows, and a difference below 0.2 s counts as 0.2 s. Memory is
    that on the largest cache ÷ that on the smallest of ``sizes``. Under each figure stands what it was made of, by
    rows. The caches have as many features a row as ``trunk`` gives.
    """
    rows = (few, *sizes, *([LARGE] if bench.large else []))
    found: dict[str, dict[int, list[Spent]]] = {}
    names = commands(bench.folder, trunk)
    with bench.watch.track("growth", sum(_runs(bench, n) for n in rows for c in names if n <= c.most), "runs") as bar:
        for n in rows:
            place = bench.folder / str(n)
            dim = make_world(place, n, trunk, classes)
            todo = [command for command in commands(place, trunk) if n <= command.most]
            for _ in range(_runs(bench, n)):
                for made in filter(None, (command.makes for command in todo)):  # by the runs before
                    (Workspace(place).features / f"{made}.h5").unlink(missing_ok=True)
                for command in todo:
                    found.setdefault(command.name, {}).setdefault(n, []).append(_run(command, place, bench.threads))
                    bar.advance()
            shutil.rmtree(place)
    note = (
        f"growth: caches of {' / '.join(f'{n:,}' for n in rows)} x {dim} float16, power law, {classes} classes, each "
        f"command a process of its own; exponent: least squares of log(seconds - start-up) on log(rows), start-up the "
        f"seconds on {few:,} rows, a difference below {RESOLUTION} s taken for that; memory: peak of RssAnon, without "
        "mapped files' pages"
    )
    return [figure for name, runs in found.items() for figure in _figures(name, runs, note)]


def _runs(bench: Bench, rows: int) -> int:
    return min(bench.repeats, OFTEN if rows <= OFTEN_UP_TO else 1)


def _run(command: Command, place: Path, threads: int | None) -> Spent:
    spent = measured(["-m", "pipeline", *command.words, "--workspace", str(place), "--json"], threads=threads)
    if command.words[0] == "extract":
        new = json.loads(spent.said.splitlines()[-1])["new"]
        assert new == 0, f"{command.name}: {new} images went through the trunk"
    return spent


def _figures(name: str, runs: Mapping[int, Sequence[Spent]], note: str) -> list[Figure]:
    """Three figures of one command, of what its runs took by rows; the fewest rows come first, and are its start-up."""
    by_rows = {f"{n:,} rows": each for n, each in runs.items()}
    seconds = {size: tuple(spent.seconds for spent in each) for size, each in by_rows.items()}
    on_cpu = {size: tuple(spent.cpu_seconds for spent in each) for size, each in by_rows.items()}
    memory = {size: tuple(spent.anonymous_bytes / 1e6 for spent in each) for size, each in by_rows.items()}
    peaks = [statistics.median(values) for values in memory.values()][1:]
    rows = tuple(runs)
    return [
        Figure("growth", name, (exponent(rows, seconds),), seconds, "s", "", EXPONENT_GOAL, note),
        Figure("growth", f"{name}: on the CPU", (exponent(rows, on_cpu),), on_cpu, "CPU s", note=note),
        Figure("growth", f"{name}: memory", (peaks[-1] / peaks[0],), memory, "MB", note=note),
    ]


def exponent(rows: Sequence[int], taken: Mapping[str, Sequence[float]]) -> float:
    """The power of the rows by which the medians of ``taken`` grow, of which the first are all start-up."""
    start, *others = (statistics.median(values) for values in taken.values())
    # What cannot be told from nothing has no logarithm that says anything.
    above = [max(value - start, RESOLUTION) for value in others]
    slope, _ = np.polyfit(np.log(rows[1:]), np.log(above), 1)
    return round(float(slope), 3)


def make_world(place: Path, rows: int, trunk: str, classes: int) -> int:
    """A workspace with ``photos/``, a finished cache of their features and ``labels.csv``; how many features a row has.

    The images are in class folders, without splits. The cache has them in the order of their numbers, unlabelled, under
    other names. The table has one in ten images of the commonest class in the next to it.
    """
    desk, photos = Workspace(place), place / "photos"
    info = with_changes(find_weights(WEIGHTS, trunk, desk), Changes(image_size=SIDE))
    recipe = Recipe(TrunkSpec(info, info.layer("last"), "torch", "float32", "cpu"), "float16", scaled=True)
    contents = store.Contents(
        ids=[b"earlier/%08d.png" % number for number in range(rows)],
        digests=np.zeros((rows, 32), np.uint8),
        sizes=np.zeros(rows, np.int64),
        mtimes_ns=np.full(rows, -1, np.int64),
        labels=np.full(rows, -1, np.int64),
        splits=np.full(rows, NONE, np.uint8),
        classes=(),
        dim=info.dim(recipe.trunk.layer),
        dtype=recipe.dtype,
        block_rows=BLOCK,
        provenance=recipe.provenance(),
        about={"source": str(photos), "root": str(photos), "notes": [], "weights": WEIGHTS, "pretrained": False},
    )
    earlier = desk.features / "earlier.h5"
    earlier.parent.mkdir(parents=True)
    store.create_partial(earlier, contents)
    with store.Writer(earlier) as writer, (place / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label"])
        first = 0
        for X, y in power_law_pieces(rows, contents.dim, classes, seed=0, piece=PIECE):
            paths = make_small(photos, len(X), first=first, side=SIDE, classes=classes, labels=y)
            digests = np.stack([_digest(path) for path in paths])
            for at in range(0, len(X), BLOCK):
                here = slice(at, at + BLOCK)
                good = np.full(len(X[here]), GOOD, np.uint8)
                writer.write_block((first + at) // BLOCK, X[here], digests[here], good, sync=False)
            common, next_to_it = np.bincount(y, minlength=classes).argsort()[::-1][:2]
            for number, (path, label) in enumerate(zip(paths, y.tolist(), strict=True), first):
                os.utime(path, ns=(LONG_AGO, LONG_AGO))
                name = path.relative_to(photos).as_posix()
                changed = label == common and number % CHANGED == 0
                table.writerow([name, name_of_class(next_to_it if changed else label)])
            first += len(X)
        writer.publish()
    return contents.dim


def _digest(path: Path) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(path.read_bytes()).digest(), np.uint8)
