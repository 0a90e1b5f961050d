"""Fine-tuning in processes of its own: killed and resumed, and shared by several under torchrun."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch

OPTIONS = {"epochs": 2, "batch_size": 16, "lr_trunk": 1e-4, "lr_head": 1e-4, "mixup": 0.3, "evaluate": False}


def job(run: str, root: str, log: str, options: dict[str, Any]) -> None:
    """One fine-tuning in a process of its own; every step leaves a byte in ``log``."""
    import torch

    from pipeline import finetune
    from pipeline.stages.finetune.loop import Loop

    torch.set_num_threads(1)
    step = Loop._step
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def logged(self: Loop, *arguments: Any) -> Any:
        found = step(self, *arguments)
        os.write(descriptor, b".")
        return found

    Loop._step = logged  # type: ignore[method-assign]
    finetune(run, workspace=root, **options)


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """Children that start with torch already imported (tests/conftest.py)."""
    return multiprocessing.get_context("forkserver")


@pytest.fixture
def root(workshop: SimpleNamespace, tmp_path: Path) -> Path:
    for name in ("features", "weights", f"runs/{workshop.head.run.name}"):
        shutil.copytree(workshop.root / name, tmp_path / name)
    return tmp_path


def tuned_runs(root: Path) -> list[Path]:
    return sorted((root / "runs").glob("*-finetune-*"))


def until_done(
    server: ForkServerContext, workshop: SimpleNamespace, root: Path, options: dict[str, Any], kills: list[float]
) -> int:
    """Run the job, killing it after so many steps (or that part of one) each time; how many kills hit."""
    hit = 0
    for moment in (*kills, None):
        log = root / f"log{hit}-{moment}"
        child = server.Process(target=job, args=(str(workshop.head.run), str(root), str(log), options))
        child.start()
        while moment is not None and child.is_alive():
            if log.exists() and log.stat().st_size >= int(moment):
                time.sleep(moment % 1)
                child.kill()
            child.join(0.002)
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -9, child.exitcode
        hit += 1
    return hit


def kill_and_compare(
    server: ForkServerContext, workshop: SimpleNamespace, root: Path, options: dict[str, Any], kills: list[float]
) -> None:
    until_done(server, workshop, root, options, [])
    hit = until_done(server, workshop, root, options, kills)
    whole, resumed = tuned_runs(root)
    assert hit >= len(kills) - 1
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    assert (whole / "trace.jsonl").read_bytes() == (resumed / "trace.jsonl").read_bytes()
    assert not list((root / "tuning").iterdir())
    assert not list((root / "runs").glob(".draft-*"))


def test_a_killed_fine_tuning_resumes_to_the_same_bits(
    server: ForkServerContext, workshop: SimpleNamespace, root: Path
) -> None:
    """SIGKILL within the first epoch and within the second, with a checkpoint after every step."""
    options = {**OPTIONS, "train": "layer4", "checkpoint_seconds": 0}
    kill_and_compare(server, workshop, root, options, [2.05, 3.02])


@pytest.mark.slow
def test_ten_kills_at_random_moments_resume_to_the_same_bits(
    server: ForkServerContext, workshop: SimpleNamespace, root: Path
) -> None:
    chance = random.Random(0)
    options = {**OPTIONS, "epochs": 8, "ema": 0.9, "checkpoint_seconds": 0}
    kill_and_compare(server, workshop, root, options, [chance.uniform(0, 4) for _ in range(10)])


def torchrun(ranks: int, run: Path, root: Path, *options: str) -> Path:
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    start += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command = ["-m", "pipeline", "finetune", str(run), "--epochs", "2", "--batch-size", "16", "--lr-trunk", "1e-4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, *command, "--lr-head", "1e-4", "--workspace", str(root), *options],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return tuned_runs(root)[-1]


def same_figures(a: Path, b: Path) -> None:
    """Losses to 1e-4 of themselves, the same accuracies on val, weights to 1e-4."""
    for one, two in zip(
        *([json.loads(x) for x in (p / "trace.jsonl").read_text().splitlines()] for p in (a, b)), strict=True
    ):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4, abs=1e-6)
        assert two["val_loss"] == pytest.approx(one["val_loss"], rel=1e-3, abs=1e-5)
        assert two["val_accuracy"] == one["val_accuracy"]
    first, second = (safetensors.torch.load_file(p / "model.safetensors") for p in (a, b))
    for name, tensor in first.items():
        assert float((tensor - second[name]).abs().max()) < 1e-4, name


@pytest.mark.slow  # the killed fine-tuning runs two processes, too
def test_two_processes_give_the_figures_of_one(workshop: SimpleNamespace, root: Path) -> None:
    """51 train images in batches of 16, the last of 3: each once, whatever the number of processes."""
    from pipeline import finetune

    options = ("--train", "layer4", "--mixup", "0.3", "--augment", "flip")
    shared = torchrun(2, workshop.head.run, root, *options)
    alone = finetune(
        workshop.head.run,
        epochs=2,
        batch_size=16,
        lr_trunk=1e-4,
        lr_head=1e-4,
        train="layer4",
        mixup=0.3,
        augment="flip",
        workspace=root,
    )
    same_figures(alone.run, shared)
    assert json.loads((shared / "metrics.json").read_text())["verdict"]["test"]["n"] == 9


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_number_of_processes_gives_the_figures_of_one(workshop: SimpleNamespace, root: Path, ranks: int) -> None:
    """Also where a process has nothing to do: the last batch of 3 images is two pairs."""
    from pipeline import finetune

    shared = torchrun(ranks, workshop.head.run, root, "--accumulate", "2", "--augment", "weights")
    alone = finetune(
        workshop.head.run, epochs=2, batch_size=16, lr_trunk=1e-4, lr_head=1e-4, augment="weights", workspace=root
    )
    same_figures(alone.run, shared)


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 3, 16, 21])
def test_each_row_of_a_batch_is_in_exactly_one_share(rows: int, parts: int) -> None:
    from pipeline.stages.finetune.feeds import share

    batch = list(range(100, 100 + rows))
    shares = [share(batch, part, parts) for part in range(parts)]
    assert [row for one in shares for row in one] == batch
    assert all(batch.index(one[0]) % 2 == 0 for one in shares if one)


def test_statistics_of_batchnorm_do_not_learn_in_several_processes(
    workshop: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline import finetune
    from pipeline.base.errors import ConfigError

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--bn train with 2 processes"):
        finetune(workshop.head.run, bn="train", workspace=workshop.root)
