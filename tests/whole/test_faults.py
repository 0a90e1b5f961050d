"""A kill, a full disk and a failing disk at every call that changes the workspace, then the same command again.

After the fault every file is the old or the new one, and a run is there whole or not at all; a fault of the disk is one
line, exit status 2. After the second run the folder is, name by name and bit by bit, what an undisturbed run leaves.

Of many calls MOST are hurt, spread over all; ``PIPELINE_FAULTS=all`` hurts every one, which takes hours on two cores.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import draw

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm, for its smallest network"),
]

TRUNK = ("--trunk", "timm:test_resnet", "--weights", "random:0", "--image-size", "32", "--batch-size", "8")
EXTRACT = ("extract", "PHOTOS", *TRUNK, "--engine", "torch", "--block-rows", "8")
TRAIN = ("train", "latest")
TUNE = ("finetune", "1", "--epochs", "2", "--batch-size", "8")
DISK = ("ENOSPC", "EIO")  # one call after the other
MOST = 12 if os.environ.get("PIPELINE_FAULTS") != "all" else sys.maxsize  # calls of a command that are hurt


@dataclass(frozen=True)
class Case:
    """A command, what has been run before it, and which photographs it finds (``few``: without the last of each)."""

    command: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    photos: str = "all"
    photos_before: str = "all"
    every: bool = True  # every call; False: the first of each kind
    again: int = 0  # the exit status of a second run where the first was complete
    needs: tuple[str, ...] = field(default=())


CASES = {
    "extract": Case(EXTRACT),
    # What a bad image and views write beside that is of kinds of their own, and the first of each is hurt.
    "extract, images added": Case(EXTRACT, (EXTRACT,), photos_before="few"),
    "extract, a bad image": Case((*EXTRACT, "--max-failures", "0.5"), photos="bad", every=False),
    "extract, views": Case((*EXTRACT, "--views", "1"), every=False),
    "extract, onnxruntime": Case(
        ("extract", "PHOTOS", *TRUNK, "--engine", "onnxruntime"), every=False, needs=("onnxruntime", "onnxscript")
    ),
    "relabel": Case(("relabel", "latest", "PHOTOS"), (EXTRACT,), photos="renamed"),
    "relabel --out": Case(("relabel", "latest", "PHOTOS", "--out", "OUT.h5"), (EXTRACT,), photos="renamed", again=2),
    "audit --drop-leaks": Case(
        ("audit", "latest", "--drop-leaks"), (EXTRACT,), photos="copies", photos_before="copies"
    ),
    "train": Case(TRAIN, (EXTRACT,)),
    "train, minibatches": Case(("train", "latest", "--solver", "adamw", "--epochs", "2"), (EXTRACT,)),
    "baseline": Case(("baseline", "latest", "--test"), (EXTRACT,)),
    "evaluate": Case(("evaluate", "1"), (EXTRACT, TRAIN)),
    "export": Case(("export", "1", "--format", "state_dict"), (EXTRACT, TRAIN), again=2),
    "export, onnx": Case(
        ("export", "1", "--format", "onnx"), (EXTRACT, TRAIN), every=False, again=2, needs=("onnxruntime", "onnxscript")
    ),
    # Without a state on the disk, a search that is killed before its run is scored is another run when it comes again.
    "search": Case(("search", "latest", "--no-evaluate"), (EXTRACT,), every=False),
    "search, brackets": Case(("search", "latest", "--space", "mlp", "--trials", "3", "--epochs", "3"), (EXTRACT,)),
    "finetune": Case(TUNE, (EXTRACT, TRAIN)),
    "finetune, by maps": Case((*TUNE, "--train", "last"), (EXTRACT, TRAIN), every=False),
    "finetune, between": Case((*TUNE, "--train", "head", "--interpolate"), (EXTRACT, TRAIN), every=False),
}


class Nursery:
    """Runs commands in children of a process that has imported all they need (``nursery.py``)."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, command: tuple[str, ...], root: Path, site: int | None = None, how: str = "after") -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        places = {"PHOTOS": str(root.parent / "photos"), "OUT.h5": str(root / "out.h5")}
        arguments = [places.get(word, word) for word in command]
        job = {"arguments": arguments, "root": str(root), "site": site, "how": how}
        print(json.dumps(job), file=self._process.stdin, flush=True)
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


def photographs(folder: Path, which: str) -> None:
    """The folder ``photos`` anew: two classes of twelve."""
    shutil.rmtree(folder, ignore_errors=True)
    for c, name in enumerate(("ant", "bee")):
        for i in range(10 if which == "few" else 12):
            draw(folder / name / f"{i:02d}.png", c, 100 * c + i)
        if which == "copies":
            for i in range(12):
                shutil.copy(folder / name / f"{i:02d}.png", folder / name / f"copy{i:02d}.png")
    if which == "bad":
        (folder / "ant" / "00.png").write_text("no image")
    if which == "renamed":
        (folder / "bee").rename(folder / "wasp")
    if which == "copies":  # given splits, so that copies are on both sides
        for name in ("ant", "bee"):
            for i, path in enumerate(sorted((folder / name).iterdir())):
                there = folder / ("train", "val", "test", "train")[i % 4] / name
                there.mkdir(parents=True, exist_ok=True)
                path.rename(there / path.name)
            (folder / name).rmdir()
    for path in folder.rglob("*.png"):
        os.utime(path, ns=(10**18, 10**18))


Tree = dict[str, str]


def tree_of(root: Path) -> Tree:
    """Every file and folder below ``root``: the digest of its bytes."""
    return {
        path.relative_to(root).as_posix(): _digest(path) if path.is_file() else "folder" for path in root.rglob("*")
    }


def _digest(path: Path) -> str:
    blob = path.read_bytes()
    if path.name == "tested.jsonl":  # a run's mark has the time of its file in it
        blob = re.sub(rb'"mark": "[^"]+"', b"", blob)
    return hashlib.sha256(blob).hexdigest()


def unlike(found: Tree, expected: Tree) -> list[str]:
    """The paths by which two trees differ."""
    return sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))


def runs_in(tree: Tree) -> list[str]:
    return sorted(
        path
        for path, kind in tree.items()
        if path.startswith("runs/") and path.count("/") == 1 and kind == "folder" and path[5] != "."
    )


def is_in_work(path: str) -> bool:
    """Whether a path is of something unfinished, by its name: hidden, partial, or a fine-tuning's state.

    The ledger grows line by line, and a run's test figures are added to it when it is whole: both are looked at when
    all is done.
    """
    parts = path.split("/")
    hidden = any(part[0] == "." for part in parts) or ".partial" in path or parts[0] == "tuning"
    return hidden or parts[-1] in ("tested.jsonl", "evaluation.json", "evaluation.safetensors")


def wrong_after(found: Tree, old: Tree, new: Tree) -> list[str]:
    """What is neither old nor new, and which runs are not whole."""
    wrong = [p for p, what in found.items() if not is_in_work(p) and what not in (old.get(p), new.get(p))]
    wrong += [p for p in old if not is_in_work(p) and p not in found and p in new]
    for run in set(runs_in(found)) - set(runs_in(old)):
        files = {p: what for p, what in new.items() if p.startswith(run + "/") and not is_in_work(p)}
        wrong += [p for p in files if found.get(p) != files[p]]
    return wrong


@pytest.mark.parametrize("name", CASES)
def test_a_fault_at_any_call_leaves_old_or_new_and_the_next_run_leaves_nothing_of_it(
    name: str, nursery: Nursery, tmp_path: Path
) -> None:
    case, photos = CASES[name], tmp_path / "photos"
    for package in case.needs:
        pytest.importorskip(package)
    template, root = tmp_path / "template", tmp_path / "root"
    root.mkdir()
    photographs(photos, case.photos_before)
    for command in case.before:
        assert (done := nursery.run(command, root))["status"] == 0, done["said"]
    photographs(photos, case.photos)
    shutil.move(root, template)

    def fresh() -> None:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(template, root, symlinks=True)

    fresh()
    old = tree_of(root)
    whole = nursery.run(case.command, root)
    assert whole["status"] == 0, whole["said"]
    new, seen = tree_of(root), whole["seen"]
    twice = nursery.run(case.command, root)
    assert twice["status"] == case.again, twice["said"]
    newer = tree_of(root)
    calls = [*range(len(seen))] if case.every else sorted({k: at for at, k in reversed([*enumerate(seen)])}.values())
    sites = [calls[number * (len(calls) - 1) // (MOST - 1)] for number in range(MOST)] if len(calls) > MOST else calls
    faults, wrong = 0, []
    for site in sites:
        for how in ("after", DISK[site % 2]) if site else ("before", "after", *DISK):
            fresh()
            hurt = nursery.run(case.command, root, site, how)
            faults += 1
            after = tree_of(root)
            what = f"{how} at call {site}, {seen[site]}"
            if how in ("before", "after"):
                assert hurt["status"] == -9, f"{what}: {hurt}"
            elif hurt["status"] == 2:
                errors = [line for line in hurt["said"].splitlines() if line.startswith("error:")]
                wrong += [] if len(errors) == 1 and "Traceback" not in hurt["said"] else [f"{what}: {hurt['said']}"]
            elif hurt["status"] != 0:
                wrong.append(f"{what}: exit {hurt['status']}: {hurt['said'][-400:]}")
            wrong += [f"{what}: {path} is neither old nor new" for path in wrong_after(after, old, new)]
            again = nursery.run(case.command, root)
            published = len(runs_in(after)) > len(runs_in(old)) or case.again
            left = tree_of(root)
            if again["status"] not in (0, case.again):
                wrong.append(f"{what}: the next run: exit {again['status']}: {again['said'][-400:]}")
            elif not (left == new or (published and left == newer)):
                wrong.append(f"{what}: the next run leaves another tree: {unlike(left, new)[:6]}")
    told = f"{len(seen)} calls, {len({*seen})} kinds, {len(sites)} of {len(calls)} hurt by {faults} faults"
    print(f"\n{name}: {told}, {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong)


SEVERAL = (EXTRACT, TRAIN, ("evaluate", "1"), ("search", "latest", "--space", "mlp", "--trials", "3"), TUNE)


@pytest.mark.parametrize("how", ["short", "back"])
def test_writes_that_take_a_half_and_a_clock_that_goes_back_change_nothing(
    how: str, nursery: Nursery, tmp_path: Path
) -> None:
    photographs(tmp_path / "photos", "all")
    trees = []
    for mode in ("after", how):
        root = tmp_path / "root"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for command in SEVERAL:
            done = nursery.run(command, root, None, mode)
            assert done["status"] == 0, done["said"]
        trees.append(tree_of(root))
    # With another clock the records tell another time.
    told = unlike(*trees)
    assert all(how == "back" and path.endswith((".json", ".jsonl")) for path in told), told


def test_a_read_only_workspace_serves_what_reads_and_refuses_what_writes_in_one_line(
    nursery: Nursery, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    photographs(tmp_path / "photos", "all")
    for command in (EXTRACT, TRAIN):
        assert nursery.run(command, root)["status"] == 0
    before = tree_of(root)
    image = str(tmp_path / "photos" / "ant" / "00.png")
    for command in (
        EXTRACT,
        ("predict", "1", image),
        ("inspect",),
        ("verify",),
        ("audit",),
        ("predict", "1", "PHOTOS"),
    ):
        done = nursery.run(command, root, None, "EROFS")
        assert done["status"] == 0, (command, done["said"])
    photographs(tmp_path / "photos", "renamed")
    writers = [CASES[name].command for name in CASES if not CASES[name].needs and "--out" not in name]
    for command in writers:
        done = nursery.run(command, root, None, "EROFS")
        last = done["said"].splitlines()[-1]
        assert (done["status"], last[:7]) == (2, "error: "), (command, done["said"])
        assert "Read-only file system" in last and "Traceback" not in done["said"], (command, done["said"])
    assert tree_of(root) == before
