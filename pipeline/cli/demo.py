"""`pipeline demo`: the commands that a user would type, on scikit-learn's digits, each printed before it runs.

Knows the other commands only by their command lines; the figures of the closing table are read from their runs.
"""

from __future__ import annotations

import importlib
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base import settings as st
from pipeline.base.errors import WeightsError
from pipeline.base.settings import ROOT_HELP
from pipeline.base.watch import Watch

FALLBACK = "random:0"


@dataclass(frozen=True)
class DemoSettings:
    """Settings of the demo."""

    weights: str = st.option(
        "IMAGENET1K_V2", f"weights to try first; where they cannot be had, {FALLBACK}", metavar="WEIGHTS"
    )
    image_size: int = st.option(32, "side of the square the trunk sees; small, so that two cores suffice", minimum=32)
    epochs: int = st.option(6, "epochs of fine-tuning", minimum=1)
    cache_root: Path = st.option(Path("cache"), ROOT_HELP)

    def __post_init__(self) -> None:
        st.check(self)


@dataclass(frozen=True)
class DemoReport:
    """The closing table's rows, and where everything lies."""

    results: list[dict[str, Any]]
    weights: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"results": self.results, "weights": self.weights, "seconds": self.seconds}


def run_demo(settings: DemoSettings, watch: Watch) -> DemoReport:
    """Run the whole pipeline on digits and close with one table.

    Raises:
        PipelineError: whatever a command refuses, but for weights that cannot be downloaded.
    """
    from pipeline.show.tables import Result, results_table

    began = time.perf_counter()
    root = settings.cache_root
    demo = _Demo(watch, root)
    weights = _weights(settings, watch)
    extract = demo.run("extract", "digits", "--weights", weights, "--image-size", settings.image_size)
    cache = str(extract["cache"])
    demo.run("trace", cache)
    head = demo.run("train", cache)
    baselines = demo.run("baseline", cache)
    searched = demo.run("search", cache, "--no-evaluate")
    tests = {"head": demo.run("evaluate", head["run"]), "searched": demo.run("evaluate", searched["run"])}
    image = sorted((root / "data" / "digits" / "7").glob("*.png"))[0]
    demo.run("predict", searched["run"], image, "--trace", "--top", 3)
    tuned = demo.run("finetune", head["run"], "--epochs", settings.epochs, "--batch-size", 64)
    tests["tuned"] = demo.run("evaluate", tuned["run"])
    rows = [
        Result(b["name"], val=b["val"], test=b["test"], macro_f1=b["macro_f1"], seconds=b["seconds"])
        for b in baselines["results"]
    ]
    for name, fit, test, val in (
        ("head (train)", head, tests["head"], head["val"]),
        (f"best of {searched['trials']} heads (search)", searched, tests["searched"], searched["val"]),
        ("fine-tuned (finetune)", tuned, tests["tuned"], tuned["after"]),
    ):
        scores = test["test"]
        rows.append(Result(name, val=val, test=scores["accuracy"], macro_f1=scores["macro_f1"], seconds=fit["seconds"]))
    watch.show(results_table(rows, title="Digits: 1,797 images, 10 classes"))
    total = time.perf_counter() - began
    _close(watch, root, weights, extract, total)
    return DemoReport([vars(r) for r in rows], weights, total)


class _Demo:
    """Runs commands in this process, each printed first as the user would type it."""

    def __init__(self, watch: Watch, root: Path) -> None:
        self.watch, self.root = watch, root

    def run(self, command: str, *arguments: object) -> dict[str, Any]:
        """Run one command; returns its result as its --json gives it."""
        from pipeline.cli.main import COMMANDS, parse
        from pipeline.show.tables import heading

        words = [command, *map(str, arguments)]
        if self.root != Path("cache"):
            words += ["--cache-root", str(self.root)]
        self.watch.show(heading("$ pipeline " + shlex.join(words)))
        found = COMMANDS[command]
        function = getattr(importlib.import_module(f"pipeline.{found.module}"), found.function)
        result: Any = function(parse(words), self.watch).to_json()
        return result if isinstance(result, dict) else {"results": result}


def _weights(settings: DemoSettings, watch: Watch) -> str:
    """The weights asked for, or the fallback with plain words about what that means."""
    from pipeline.trunk.lookup import find_weights

    try:
        find_weights(settings.weights, trunk="resnet50", cache_root=settings.cache_root, watch=watch)
        return settings.weights
    except WeightsError as error:
        watch.warn(str(error))
        watch.warn(
            f"the demo goes on with {FALLBACK}: a ResNet50 of random numbers, NOT a pretrained trunk. Its features "
            "still tell digits apart; with pretrained weights these commands work on photographs, too"
        )
        return FALLBACK


def _close(watch: Watch, root: Path, weights: str, extract: dict[str, Any], seconds: float) -> None:
    """Where everything is, how long it took, and what pretrained weights would change."""
    from pipeline.base import words as numbers

    watch.say(f"features: {extract['cache']} ({numbers.size(Path(extract['cache']).stat().st_size)})")
    watch.say(f"runs (settings, figures, traces, heads): {root / 'runs'}")
    if weights == FALLBACK:
        watch.say(f"weights: {FALLBACK}, random numbers, not pretrained: on your photographs use pretrained weights")
    watch.say(f"all of it took {numbers.seconds(seconds)}; next, with your own images: pipeline extract FOLDER")
