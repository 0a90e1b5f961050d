"""Several processes under torchrun write the file that one process writes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import extract
from pipeline.cli.main import main
from pipeline.store import open_cache
from pipeline.store.find import view_path
from tests.other_device import as_made_on

OPTIONS = ["--trunk", "resnet18", "--weights", "random:0", "--image-size", "32", "--batch-size", "4"]
OPTIONS += ["--block-rows", "4"]
WAYS = {
    "auto": [],
    "float32": ["--engine", "torch"],
    "exact": ["--engine", "torch", "--decode", "exact"],
    "bfloat16": ["--precision", "bfloat16", "--force-precision"],
    "int8": ["--precision", "int8"],
}


def command(ranks: int, source: Path, root: Path, way: str = "float32") -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", "0"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return [*torchrun, "-m", "pipeline", "extract", str(source), *OPTIONS, *WAYS[way], "--workspace", str(root)]


def extracted(ranks: int, source: Path, root: Path, way: str = "float32") -> Path:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "0"}
    done = subprocess.run(command(ranks, source, root, way), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = (root / "features").glob("*.h5")
    return made


@pytest.fixture(scope="module")
def few(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 images."""
    root = Path(shutil.copytree(photos, tmp_path_factory.mktemp("few") / "few"))
    for path in [p for c in root.iterdir() for p in sorted(c.iterdir())[7:]]:
        path.unlink()
    return root


@pytest.fixture(scope="module")
def alone(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By one process: this one, by the same command."""
    return by_this_process(few, tmp_path_factory.mktemp("alone"), "float32")


def by_this_process(source: Path, root: Path, way: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "0")
        assert main(["extract", str(source), *OPTIONS, *WAYS[way], "--workspace", str(root)]) == 0
    (made,) = (root / "features").glob("*.h5")
    return made


@pytest.mark.slow
def test_two_ranks_write_the_file_of_one_process(few: Path, alone: Path, tmp_path: Path) -> None:
    made = extracted(2, few, tmp_path)
    assert len(open_cache(made, verify=True)) == 21
    assert made.read_bytes() == alone.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_any_number_of_ranks_writes_the_file_of_one_process(few: Path, alone: Path, tmp_path: Path, ranks: int) -> None:
    assert extracted(ranks, few, tmp_path).read_bytes() == alone.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exact", "bfloat16", "int8"])
def test_ranks_write_the_file_of_one_process_in_every_way(photos: Path, tmp_path: Path, way: str) -> None:
    if way == "int8":
        pytest.importorskip("onnxruntime")
    alone = by_this_process(photos, tmp_path / "one", way).read_bytes()
    for ranks in (1, 2, 3, 8) if way == "int8" else (2,):
        assert extracted(ranks, photos, tmp_path / str(ranks), way).read_bytes() == alone, ranks


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_it_resumes(few: Path, alone: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "0"}
    job = subprocess.Popen(command(3, few, tmp_path), env=environment, stderr=subprocess.DEVNULL)
    victim = None
    while victim is None and job.poll() is None:
        found = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()
        if len(found) == 3 and list((tmp_path / "features").glob("*.partial")):
            victim = int(found[1])
            os.kill(victim, signal.SIGKILL)
        time.sleep(0.01)
    assert victim is not None
    assert job.wait(timeout=120) != 0
    assert not list((tmp_path / "features").glob("*.h5"))
    assert extracted(2, few, tmp_path).read_bytes() == alone.read_bytes()


@pytest.mark.slow
def test_ranks_are_served_a_file_of_another_kind_of_device(few: Path, tmp_path: Path) -> None:
    """And write it anew for other labels, without a trunk."""
    source, root = Path(shutil.copytree(few, tmp_path / "few")), tmp_path / "w"
    found = extract(source, workspace=root, trunk="resnet18", weights="random:0", image_size=32, views=1)
    made, view = as_made_on("cuda", found.cache), as_made_on("cuda", Path(found.views[0]))
    view.rename(view_path(made, 1))
    bits = made.read_bytes()
    for label in ("ant", "wasp"):
        (source / "ant").rename(source / label)
        done = subprocess.run([*command(2, source, root, "auto"), "--views", "1"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (done.stdout + done.stderr).count("and is taken as it is") == 1
        assert (made.read_bytes() == bits) == (label == "ant")
    assert open_cache(made).classes[-1] == open_cache(view_path(made, 1)).classes[-1] == "wasp"
    assert len(list((root / "features").glob("*.h5"))) == 2
