"""Every stage on a machine whose GPU is broken, or gone since the features were computed on it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from pipeline import evaluate, extract, finetune, predict, report, rows, search, train, verify
from pipeline.base import machine
from pipeline.base.errors import ConfigError
from pipeline.base.workspace import Workspace
from pipeline.stages.learn.settings import TrainSettings
from pipeline.stages.learn.task import task_of
from tests.other_device import as_made_on

Quick = dict[str, Any]


@pytest.fixture
def broken_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver is there, and whatever the package asks of CUDA fails, as beginning to use it does.

    What PyTorch asks of itself meanwhile is answered: it has ways of its own around a broken driver.
    """

    def failing(asked: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if sys._getframe(1).f_globals["__name__"].startswith("pipeline"):
                raise RuntimeError("CUDA driver initialization failed, you might not have a CUDA gpu.")
            return asked(*arguments, **options)

        return call

    def begin() -> NoReturn:
        raise RuntimeError("CUDA driver initialization failed, you might not have a CUDA gpu.")

    for name in ("is_available", "device_count", "current_device", "set_device", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, failing(getattr(torch.cuda, name)))
    monkeypatch.setattr(torch.cuda, "_lazy_init", begin)
    monkeypatch.setattr(machine, "_has_driver", lambda: True)


@pytest.mark.slow
def test_all_stages_run_on_the_cpu_while_cuda_fails(
    photos: Path, tmp_path: Path, quick: Quick, broken_driver: None
) -> None:
    on_cpu: Quick = {"device": "cpu", "workspace": tmp_path}
    made = extract(photos, **{**quick, **on_cpu})
    for solver in ("exact", "adamw"):
        head = train(made.cache, solver=solver, **({} if solver == "exact" else {"epochs": 2}), **on_cpu)
        told = machine.hardware()["gpu"]
        assert told == "cannot be asked: CUDA driver initialization failed, you might not have a CUDA gpu."
    tuned = finetune(head.run, train="last", epochs=1, batch_size=16, evaluate=False, **on_cpu)
    for run in (head.run, tuned.run):
        assert evaluate(run, **on_cpu).run == run
        [named] = predict(run, [photos / "ant" / "00.png"], **on_cpu)
        assert named.class_name in ("ant", "bee", "cat")


def test_all_stages_go_by_features_of_a_gpu_that_is_not_here(
    photos: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the engine that another cache was made by, on a CPU."""
    caches = []
    for engine in ({"device": "cuda", "version": "9.9"}, {"device": "cpu", "name": "onnxruntime", "version": "0.1"}):
        made = extract(photos, dtype="float32", workspace=tmp_path, **quick).cache
        caches.append(as_made_on(cache=made, **engine))
    find_spec, version = importlib.util.find_spec, importlib.metadata.version
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *more: (n[:4] != "onnx" and find_spec(n, *more)) or None)

    def installed(name: str) -> str:
        if name.startswith("onnx"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", installed)
    monkeypatch.setattr(machine, "_has_driver", lambda: False)
    for cache in caches:
        head = train(cache, workspace=tmp_path)
        evaluate(head.run, workspace=tmp_path)
        [named] = predict(head.run, [photos / "ant" / "00.png"], workspace=tmp_path)
        assert named.class_name in ("ant", "bee", "cat")
        tuned = finetune(head.run, train="last", epochs=1, batch_size=16, workspace=tmp_path)
        assert tuned.certificate_max_abs <= tuned.certificate_tolerance
        sample = verify(cache, photos, workspace=tmp_path).sample
        assert sample is not None and sample.max_difference < 1e-5 and sample.engine == "torch on cpu, float32"


COMMANDS: dict[str, Callable[[SimpleNamespace, Quick], Any]] = {
    "extract": lambda shop, options: extract(shop.photos, **options),
    "train": lambda shop, options: train(shop.cache.cache, **options),
    "search": lambda shop, options: search(shop.cache.cache, **options),
    "finetune": lambda shop, options: finetune(shop.head.run, **options),
    "evaluate": lambda shop, options: evaluate(shop.head.run, images=str(shop.photos), **options),
    "predict": lambda shop, options: predict(shop.head.run, [shop.photos / "ant" / "00.png"], **options),
    "rows": lambda shop, options: rows(shop.tuned.run, out=shop.root / "rows.npz", **options),
    "report": lambda shop, options: report(shop.tuned.run, **options),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("cuda:7", "device='cuda:7' is not there: choose from cuda:0, cuda:1"),
        ("mps", "device='mps': PyTorch sees no GPU of Apple's here; take device='cpu'"),
        ("gpu", "device='gpu' is not known: choose from auto"),
    ],
)
def test_every_command_refuses_a_device_that_is_not_there(
    workshop: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, command: str, device: str, says: str
) -> None:
    monkeypatch.setattr(machine, "_sees_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=says):
        COMMANDS[command](workshop, {"device": device, "workspace": workshop.root})


@pytest.mark.parametrize("command", ["train", "search", "finetune"])
def test_what_learns_refuses_apples_gpu(
    workshop: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="device='mps' runs .* trunk alone: .* float64 .* device='cpu'"):
        COMMANDS[command](workshop, {"device": "mps", "workspace": workshop.root})


def test_heads_take_the_gpu_that_is_asked_for(
    workshop: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "_sees_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    made = {
        device: task_of(TrainSettings(str(workshop.cache.cache), device=device), Workspace(tmp_path)).device
        for device in ("cpu", "cuda", "cuda:1", "auto")
    }
    assert made == {"cpu": "cpu", "cuda": "cuda", "cuda:1": "cuda:1", "auto": "cuda"}


def test_a_look_at_test_rows_is_not_spent_on_a_device_that_is_not_there(
    workshop: SimpleNamespace, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(workshop.root, tmp_path / "w"))
    (looks,) = root.rglob("tested.jsonl")
    looks.unlink()
    run = root / "runs" / workshop.tuned.run.name
    for device, looked in (("mps", False), ("cpu", True)):
        refused = pytest.raises(ConfigError, match="device='mps'") if device == "mps" else nullcontext()
        with refused:
            rows(run, out=tmp_path / "rows.npz", split="test", device=device, workspace=root)
        assert looks.exists() == looked
