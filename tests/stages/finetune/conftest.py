"""What the tests of fine-tuning share: a workspace of one's own, quick settings, ways to look at a run."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision

from pipeline.base.ranks import Ranks
from pipeline.base.watch import Tracker, Watch
from pipeline.base.workspace import Workspace
from pipeline.stages.finetune import scoring
from pipeline.stages.finetune.settings import FinetuneSettings
from pipeline.stages.finetune.start import Attached, attach
from pipeline.stages.finetune.task import Task
from tests.conftest import SMALL


@pytest.fixture
def root(workshop: SimpleNamespace, tmp_path: Path) -> Path:
    """A folder of one's own with the workshop's features, weights and head."""
    for name in ("features", "weights", f"runs/{workshop.head.run.name}"):
        shutil.copytree(workshop.root / name, tmp_path / "root" / name)
    return tmp_path / "root"


@pytest.fixture
def fast() -> dict[str, Any]:
    """Options of a short fine-tuning."""
    return {"epochs": 2, "batch_size": 16, "lr_trunk": 1e-4, "lr_head": 1e-4, "evaluate": False}


@pytest.fixture
def by_head(fast: dict[str, Any]) -> dict[str, Any]:
    """Where it is not about the trunk: by cached features, in no time."""
    return {**fast, "train": "head"}


def plain(classes: int) -> Any:
    """The workshop's network, made by its library."""
    if SMALL == "resnet18":
        return torchvision.models.resnet18(num_classes=classes)
    import timm

    return timm.create_model(SMALL.partition(":")[2], num_classes=classes)


@pytest.fixture
def start(workshop: SimpleNamespace) -> dict[str, torch.Tensor]:
    """The network before fine-tuning, made without the package: random:0 and the head's file."""
    torch.manual_seed(0)
    model = plain(1000)
    model.fc = torch.nn.Linear(model.fc.in_features, 3)
    model.fc.load_state_dict(safetensors.torch.load_file(workshop.head.run / "head.safetensors"))
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


@pytest.fixture
def state_of() -> Callable[[Path], dict[str, torch.Tensor]]:
    """A run's network."""
    return lambda run: safetensors.torch.load_file(run / "model.safetensors")


@pytest.fixture
def trace_of() -> Callable[[Path], list[dict[str, Any]]]:
    """A run's trace."""
    return lambda run: [json.loads(line) for line in (run / "trace.jsonl").read_text().splitlines()]


@pytest.fixture
def attached_to() -> Callable[..., Attached]:
    """A run's head on its trunk."""
    return lambda run, root, **options: attach(FinetuneSettings(run=str(run), **options), Workspace(root))


@pytest.fixture
def task_of() -> Callable[..., Task]:
    """A fine-tuning of a run, before its first step."""

    def made(run: Path, root: Path, **options: Any) -> Task:
        settings, desk = FinetuneSettings(run=str(run), **options), Workspace(root)
        return Task.of(settings, attach(settings, desk), Ranks(), desk)

    return made


@pytest.fixture
def last_epoch_is_kept(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """Whatever val says, so that what training does can be seen in what is kept."""
    score = scoring.score

    @contextmanager
    def kept() -> Iterator[None]:
        better = itertools.count()
        with monkeypatch.context() as patch:
            patch.setattr(scoring, "score", lambda *a: score(*a)._replace(accuracy=float(next(better))))
            yield

    return kept


class Stopper(Watch):
    """Asks for a stop, as Ctrl-C does, after so many images of training."""

    def __init__(self, images: int) -> None:
        self.left, self.text = images, ""

    def say(self, text: str) -> None:
        self.text += text + "\n"

    @contextmanager
    def track(self, what: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Tracker]:
        yield self if what.startswith("epoch") else Tracker()  # type: ignore[misc]

    def advance(self, n: int = 1) -> None:
        before, self.left = self.left, self.left - n
        if self.left <= 0 < before:
            os.kill(os.getpid(), 2)


@pytest.fixture
def stopper() -> type[Stopper]:
    """A watch that asks for a stop after so many images."""
    return Stopper
