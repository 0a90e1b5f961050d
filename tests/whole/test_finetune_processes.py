"""Fine-tuning in processes of its own: killed and resumed, and shared by several under torchrun."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch

OPTIONS = {"epochs": 2, "batch_size": 16, "lr_trunk": 1e-4, "lr_head": 1e-4, "mixup": 0.3, "evaluate": False}


def job(run: str, root: str, log: str, options: dict[str, Any], rank: int = 0, world: int = 1, port: int = 0) -> None:
    """One process of a fine-tuning, as torchrun would start it; every step of its leaves a byte in ``log``.

    Among the options, ``every`` is how many steps lie between two readings of the figures, as on a GPU.
    """
    import torch

    if world > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR="127.0.0.1")

    from pipeline import finetune
    from pipeline.stages.finetune import tally
    from pipeline.stages.finetune.loop import Loop

    torch.set_num_threads(1)
    tally.STEPS = {"cpu": options.get("every", 1)}
    options = {name: value for name, value in options.items() if name != "every"}
    step, run_loop = Loop._step, Loop.run
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def logged(self: Loop, *arguments: Any) -> Any:
        found = step(self, *arguments)
        os.write(descriptor, b".")
        return found

    def ended(self: Loop, *arguments: Any) -> None:
        run_loop(self, *arguments)
        last = safetensors.torch.save({name: tensor.contiguous() for name, tensor in self.state.learnt.items()})
        Path(f"{log}.sha256").write_text(hashlib.sha256(last).hexdigest())

    Loop._step, Loop.run = logged, ended  # type: ignore[method-assign]
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


def free_port() -> int:
    """A port below those that systems give out by themselves: one of these could be another socket's a moment later."""
    while True:
        with socket.socket() as taken, suppress(OSError):
            taken.bind(("127.0.0.1", random.randrange(15_000, 30_000)))
            return int(taken.getsockname()[1])


def started(
    server: ForkServerContext, run: Path, root: Path, log: Path, options: dict[str, Any], ranks: int
) -> list[Any]:
    """The job's processes, each with a log of its own."""
    port = free_port()
    children = [
        server.Process(target=job, args=(str(run), str(root), f"{log}.{rank}", options, rank, ranks, port))
        for rank in range(ranks)
    ]
    for child in children:
        child.start()
    return children


def until_done(
    server: ForkServerContext,
    workshop: SimpleNamespace,
    root: Path,
    options: dict[str, Any],
    kills: list[float],
    ranks: int = 1,
) -> int:
    """Run the job, killing it after so many steps (or that part of one) each time; how many kills hit."""
    hit = 0
    for moment in (*kills, None):
        log = root / f"log{hit}-{moment}"
        children = started(server, workshop.head.run, root, log, options, ranks)
        steps = Path(f"{log}.0")
        while moment is not None and children[0].is_alive():
            if steps.exists() and steps.stat().st_size >= int(moment):
                time.sleep(moment % 1)
                for child in children:
                    child.kill()
            children[0].join(0.002)
        for child in children:
            child.join()
        if all(child.exitcode == 0 for child in children):
            break
        assert children[0].exitcode == -9, [child.exitcode for child in children]
        hit += 1
    return hit


def kill_and_compare(
    server: ForkServerContext,
    workshop: SimpleNamespace,
    root: Path,
    options: dict[str, Any],
    kills: list[float],
    ranks: int = 1,
) -> None:
    until_done(server, workshop, root, options, [], ranks)
    hit = until_done(server, workshop, root, options, kills, ranks)
    whole, resumed = tuned_runs(root)
    assert hit >= len(kills) - 1
    # Which epoch is kept is val's choice: what training came to must be the same, too, in every process.
    last = [path.read_text() for path in root.glob("log*.sha256")]
    assert len(last) >= 2 * ranks and len(set(last)) == 1  # more where a kill came after the last step
    print(f"{ranks} processes, {options.get('train', 'all')}: SHA-256 {last[0]}")
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    assert (whole / "trace.jsonl").read_bytes() == (resumed / "trace.jsonl").read_bytes()
    assert not list((root / "tuning").iterdir())
    assert not list((root / "runs").glob(".*.draft"))


@pytest.mark.slow
def test_a_killed_fine_tuning_resumes_to_the_same_bits(
    server: ForkServerContext, workshop: SimpleNamespace, root: Path
) -> None:
    """SIGKILL within the first epoch and within the second, with a checkpoint after every step."""
    options = {**OPTIONS, "train": "last", "checkpoint_seconds": 0}
    kill_and_compare(server, workshop, root, options, [2.05, 3.02])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3])
def test_figures_that_are_read_now_and_then_are_the_same_to_the_last_bit(
    server: ForkServerContext, workshop: SimpleNamespace, root: Path, ranks: int
) -> None:
    """As on a GPU, where a kill costs the steps since the last reading: 11 steps an epoch, four to a reading."""
    options = {**OPTIONS, "train": "head", "batch_size": 4, "checkpoint_seconds": 0}
    until_done(server, workshop, root, options, [], ranks)
    [at_once] = [run.joinpath("trace.jsonl").read_bytes() for run in tuned_runs(root)]
    shutil.rmtree(root / "runs" / tuned_runs(root)[0].name)
    kill_and_compare(server, workshop, root, {**options, "every": 4}, [6, 5], ranks)
    if ranks == 1:  # of three and more processes, where a figure lies decides how it is added up
        assert tuned_runs(root)[0].joinpath("trace.jsonl").read_bytes() == at_once


@pytest.mark.slow
def test_a_stop_of_one_process_stops_all_at_the_next_reading(
    server: ForkServerContext, workshop: SimpleNamespace, root: Path
) -> None:
    options = {**OPTIONS, "train": "head", "batch_size": 4, "every": 4, "epochs": 40}
    until_done(server, workshop, root, options, [], 2)
    children = started(server, workshop.head.run, root, root / "log-stopped", options, 2)
    steps = root / "log-stopped.0"
    while not (steps.exists() and steps.stat().st_size >= 13):
        assert children[0].is_alive()
        time.sleep(0.002)
    os.kill(children[1].pid, signal.SIGTERM)
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [1, 1]
    [state] = [json.loads(path.read_text()) for path in (root / "tuning").glob("*/state.json")]
    assert 12 < state["step"] < 440 and state["done"] in (0, 4, 8)
    until_done(server, workshop, root, options, [], 2)
    whole, resumed = tuned_runs(root)
    for name in ("model.safetensors", "trace.jsonl"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()


def test_three_processes_killed_resume_to_the_same_bits(
    server: ForkServerContext, workshop: SimpleNamespace, root: Path
) -> None:
    """By cached features, where it is quick; the trunk's turn is among the slow ones."""
    kill_and_compare(server, workshop, root, {**OPTIONS, "train": "head", "checkpoint_seconds": 0}, [2], ranks=3)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("train", ["last", "all"])
def test_any_number_of_processes_killed_resumes_to_the_same_bits(
    server: ForkServerContext, workshop: SimpleNamespace, root: Path, ranks: int, train: str
) -> None:
    """Sums over three and more depend on how the numbers are cut into chunks: it must be one way all along."""
    options = {**OPTIONS, "train": train, "clip": 1.0, "checkpoint_seconds": 0}
    kill_and_compare(server, workshop, root, options, [2.05, 3], ranks)


@pytest.mark.slow
def test_ten_kills_at_random_moments_resume_to_the_same_bits(
    server: ForkServerContext, workshop: SimpleNamespace, root: Path
) -> None:
    chance = random.Random(0)
    options = {**OPTIONS, "epochs": 24, "ema": 0.9, "checkpoint_seconds": 0}
    kill_and_compare(server, workshop, root, options, [chance.uniform(0, 4) for _ in range(10)])


def command(ranks: int, run: Path, root: Path, *options: str) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    start += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    start += ["-m", "pipeline", "finetune", str(run), "--epochs", "2", "--batch-size", "16", "--lr-trunk", "1e-4"]
    return [*start, "--lr-head", "1e-4", "--workspace", str(root), *options]


def torchrun(ranks: int, run: Path, root: Path, *options: str) -> Path:
    done = subprocess.run(
        command(ranks, run, root, *options),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
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

    options = ("--train", "last", "--mixup", "0.3", "--augment", "flip")
    shared = torchrun(2, workshop.head.run, root, *options)
    alone = finetune(
        workshop.head.run,
        epochs=2,
        batch_size=16,
        lr_trunk=1e-4,
        lr_head=1e-4,
        train="last",
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


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_killed_process_ends_the_others_with_one_line_and_the_same_command_goes_on(
    workshop: SimpleNamespace, root: Path, ranks: int
) -> None:
    options = ("--train", "last", "--checkpoint-seconds", "0", "--no-evaluate")
    whole = torchrun(ranks, workshop.head.run, root, *options)
    with (root / "stderr").open("w") as stderr:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        shared = subprocess.Popen(command(ranks, workshop.head.run, root, *options), env=environment, stderr=stderr)
        while not [s for s in (root / "tuning").glob("*/state.json") if json.loads(s.read_text())["step"] >= 2]:
            assert shared.poll() is None
            time.sleep(0.01)
        children = subprocess.run(["pgrep", "-P", str(shared.pid)], capture_output=True, text=True).stdout.split()
        assert len(children) == ranks
        os.kill(int(children[-1]), signal.SIGKILL)
        assert shared.wait(timeout=30) != 0
    text = (root / "stderr").read_text()
    lines = [line for line in text.splitlines() if "another process of the job stopped" in line]
    assert len(lines) == ranks - 1, text
    assert not [line for line in text.splitlines() if line.startswith("  File") and "/pipeline/" in line]  # but its own
    assert (root / "tuning").exists() and tuned_runs(root) == [whole]
    resumed = torchrun(ranks, workshop.head.run, root, *options)
    for name in ("model.safetensors", "trace.jsonl"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()


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
    with pytest.raises(ConfigError, match="bn='train' with 2 processes"):
        finetune(workshop.head.run, bn="train", workspace=workshop.root)
