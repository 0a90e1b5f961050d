"""Options and fixtures that every room's tests share."""

from __future__ import annotations

import copy
import ctypes
import importlib.util
import io
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rich.console
from PIL import Image

from pipeline.base.values import Value
from pipeline.base.watch import Watch
from pipeline.show.terminal.blocks import block

# A process has one fork server, and what that imports is decided before it starts: so here, and not by the test that
# comes first. With torch in it, children start at once, and a kill falls into their job and not into an import.
multiprocessing.set_forkserver_preload(
    [
        "pytest",
        "torch",
        "torchvision",
        "timm",
        "pipeline.stages.extract.job",
        "pipeline.stages.extract.blocks",
        "pipeline.stages.finetune.job",
        "pipeline.stages.learn.search",
        "pipeline.trunk.weights",
    ]
)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def pytest_configure() -> None:
    """Have glibc keep the memory it was given: a network's 45 MB come and go thousands of times, page by page.

    Here and not by the environment, so that processes whose memory is measured are as they are for a user.
    """
    with suppress(OSError, AttributeError, TypeError):  # another C library, or another system
        limit = ctypes.CDLL(None).mallopt
        limit(M_MMAP_THRESHOLD, 1 << 30)
        limit(M_TRIM_THRESHOLD, 1 << 30)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too")
    parser.addoption("--write-stub", action="store_true", help="make pipeline/__init__.pyi anew from the settings")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = pytest.mark.skip(reason="slow: run with --slow")
    gpu = pytest.mark.skip(reason="no CUDA device")
    real = pytest.mark.skip(reason="PIPELINE_REAL_DATA names no folder with photographs")
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(slow)
        if item.get_closest_marker("gpu") and not _has_gpu():  # a keyword is a folder's name, too
            item.add_marker(gpu)
        if "realdata" in item.keywords and not Path(os.environ.get("PIPELINE_REAL_DATA", "-")).is_dir():
            item.add_marker(real)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def draw(path: Path, colour: int, seed: int, size: int = 40) -> None:
    """A small photograph of a class: its own colour and stripe, and noise of its own seed."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 90, (size, size, 3), dtype=np.uint8)
    pixels[..., colour % 3] += 120
    pixels[:: colour + 2] //= 2
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 20 photographs in class folders, without splits. Tests that change it copy it."""
    root = tmp_path_factory.mktemp("photos") / "shapes"
    for c, name in enumerate(("ant", "bee", "cat")):
        for i in range(20):
            draw(path := root / name / f"{i:02d}.png", c, 100 * c + i)
            os.utime(path, ns=(10**18, 10**18))  # long ago: the time of a new file is not relied on
    return root


# A ResNet of timm's that is made for tests, 1.5 MB; without timm, a larger one.
SMALL = "timm:test_resnet" if importlib.util.find_spec("timm") else "resnet18"
QUICK = {"trunk": SMALL, "weights": "random:0", "image_size": 32, "engine": "torch", "batch_size": 8}


@pytest.fixture(scope="session")
def drawn_once() -> Iterator[None]:
    """Random weights are drawn once a session: what is built again of one trunk, size and seed is a copy of that."""
    import torch
    from torch import nn

    from pipeline.trunk import weights

    build = weights.build
    kept: dict[tuple[str, int, int], nn.Module] = {}

    def copied(trunk: str, *, num_classes: int, image_size: int, seed: int = 0) -> nn.Module:
        given = {"num_classes": num_classes, "image_size": image_size, "seed": seed}
        if trunk not in ("resnet18", SMALL) or torch.empty(0).is_meta:  # the others are large, and built once or twice
            return build(trunk, **given)
        if (trunk, num_classes, seed) not in kept:  # a ResNet is the same for every size
            kept[trunk, num_classes, seed] = build(trunk, **given)
        return copy.deepcopy(kept[trunk, num_classes, seed])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "build", copied)
        yield


@pytest.fixture(scope="session")
def quick(drawn_once: None) -> dict[str, Any]:
    """Options of `extract` that make it quick."""
    return dict(QUICK)


@pytest.fixture(scope="session")
def resnet(drawn_once: None) -> dict[str, Any]:
    """Those with torchvision's ResNet18, for what is about it or is compared with it."""
    return {**QUICK, "trunk": "resnet18"}


@pytest.fixture(scope="session")
def workshop(photos: Path, tmp_path_factory: pytest.TempPathFactory, drawn_once: None) -> SimpleNamespace:
    """A cache, a trained head and a fine-tuned run of `photos`, made once. Tests that change them copy them."""
    return furnished(photos, tmp_path_factory.mktemp("workshop"), QUICK, "all")


@pytest.fixture(scope="session")
def resnet_workshop(
    photos: Path, tmp_path_factory: pytest.TempPathFactory, resnet: dict[str, Any], drawn_once: None
) -> SimpleNamespace:
    """The same of torchvision's ResNet18, its last stage fine-tuned."""
    return furnished(photos, tmp_path_factory.mktemp("resnet"), resnet, "last")


def furnished(photos: Path, root: Path, options: dict[str, Any], part: str) -> SimpleNamespace:
    """A workspace with a cache, a trained head and a fine-tuned run."""
    from pipeline import evaluate, extract, finetune, train

    cache = extract(photos, workspace=root, dtype="float32", **options)
    head = train(cache.cache, solver="adamw", epochs=5, workspace=root)
    tuned = finetune(head.run, train=part, epochs=1, batch_size=16, workspace=root)
    test = evaluate(head.run, workspace=root)
    return SimpleNamespace(root=root, photos=photos, cache=cache, head=head, tuned=tuned, test=test)


def text_of(value: Value, width: int = 80, colour: bool = False) -> str:
    """The value as a terminal ``width`` characters wide shows it."""
    out = io.StringIO()
    rich.console.Console(
        file=out, width=width, force_terminal=colour, color_system="256" if colour else None, legacy_windows=False
    ).print(block(value))
    return out.getvalue()


@pytest.fixture
def printed() -> Callable[..., str]:
    """``printed(value, width=80, colour=False)``: the value as a terminal shows it."""
    return text_of


class Listener(Watch):
    """Keeps what is shown, as text."""

    def __init__(self) -> None:
        self.text = ""

    def say(self, text: str) -> None:
        self.text += text + "\n"

    def warn(self, text: str) -> None:
        self.text += f"warning: {text}\n"

    def show(self, value: Value) -> None:
        self.text += text_of(value, 160)


@pytest.fixture
def listener() -> Listener:
    """A watch that keeps what it is told, as ``text``."""
    return Listener()


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that is asked for its test rows raises."""
    from pipeline.store.reader import Cache

    rows = Cache.rows

    def asked(self: Any, split: str) -> Any:
        assert split != "test", "asked for test rows"
        return rows(self, split)

    monkeypatch.setattr(Cache, "rows", asked)
