"""`pipeline demo`: the commands that a user would type, on scikit-learn's digits, each printed before it runs.

Knows the other commands only by their command lines; the figures of the closing table are read from their runs.
"""

from __future__ import annotations

import dataclasses
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base import settings as st
from pipeline.base import words as numbers
from pipeline.base.doors import command
from pipeline.base.errors import WeightsError
from pipeline.base.values import Heading
from pipeline.base.workspace import Workspace
from pipeline.cli.parser import parse, settings_of
from pipeline.show.tables import results_table
from pipeline.stages.extract.doors import extract
from pipeline.stages.finetune.doors import finetune
from pipeline.stages.learn.doors import baseline, search, train
from pipeline.stages.report.doors import report
from pipeline.stages.score.doors import evaluate
from pipeline.stages.use.doors import predict, trace
from pipeline.trunk.lookup import find_weights

FALLBACK = "random:0"
STEPS = {door.__name__: door for door in (extract, trace, train, baseline, search, evaluate, predict, finetune, report)}


@dataclass(frozen=True)
class DemoSettings:
    """Settings of the demo."""

    weights: str = st.option(
        "IMAGENET1K_V2", f"weights to try first; where they cannot be had, {FALLBACK}", metavar="WEIGHTS"
    )
    image_size: int = st.option(32, "side of the square the trunk sees; small, so that two cores suffice", minimum=32)
    epochs: int = st.option(6, "epochs of fine-tuning", minimum=1)

    def __post_init__(self) -> None:
        st.check(self)


@dataclass(frozen=True)
class DemoReport:
    """The closing table's rows, the weights, the page that tells of the chosen head, and the seconds."""

    results: list[dict[str, Any]]
    weights: str
    report: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


@command(DemoSettings, "finished features and runs are kept: the same command makes new runs on them")
def demo(settings: DemoSettings, desk: Workspace) -> DemoReport:
    """Run the whole pipeline on handwritten digits.

    Closes with one table.

    Raises:
        PipelineError: whatever a command refuses, but for weights that cannot be downloaded.
    """
    began = time.perf_counter()
    steps = _Demo(desk)
    weights = _weights(settings, desk)
    extracted = steps.run("extract", "digits", "--weights", weights, "--image-size", settings.image_size)
    cache = str(extracted["cache"])
    steps.run("trace", cache)
    head = steps.run("train", cache)
    baselines = steps.run("baseline", cache)
    searched = steps.run("search", cache, "--no-evaluate")
    tests = {"head": steps.run("evaluate", head["run"]), "searched": steps.run("evaluate", searched["run"])}
    image = sorted((desk.data / "digits" / "7").glob("*.png"))[0]
    steps.run("predict", searched["run"], image, "--trace", "--top", 3)
    tuned = steps.run("finetune", head["run"], "--epochs", settings.epochs, "--batch-size", 64)
    tests["tuned"] = steps.run("evaluate", tuned["run"])
    page = steps.run("report", searched["run"])
    rows = [{name: b[name] for name in ("name", "val", "seconds")} for b in baselines["results"]]
    for name, fit, test, val, candidates in (
        ("head (train)", head, tests["head"], head["val"], 1),
        ("chosen head (search)", searched, tests["searched"], searched["val"], searched["chosen_from"]),
        ("fine-tuned (finetune)", tuned, tests["tuned"], tuned["after"], settings.epochs + 1),  # step 0 is one
    ):
        scores = {"test": test["test"]["accuracy"], "macro_f1": test["test"]["macro_f1"]}
        rows.append({"name": name, "val": val, **scores, "seconds": fit["seconds"], "chosen_from": candidates})
    desk.watch.result(results_table(rows, "Digits: 1,797 images, 10 classes"))
    total = time.perf_counter() - began
    _close(desk, weights, (extracted, page), total)
    return DemoReport(rows, weights, page["file"], total)


class _Demo:
    """Runs commands in this process, each printed first as the user would type it."""

    def __init__(self, desk: Workspace) -> None:
        self.desk = desk

    def run(self, command: str, *arguments: object) -> dict[str, Any]:
        """Run one command; returns its result as its --json gives it."""
        words = [command, *map(str, arguments)]
        if self.desk.root != Workspace.at(None).root:
            words += ["--workspace", str(self.desk.root)]
        self.desk.watch.show(Heading("$ pipeline " + shlex.join(words)))
        settings = settings_of(parse(words, STEPS), STEPS)
        result: Any = STEPS[command].work(settings, self.desk).to_json()
        return result if isinstance(result, dict) else {"results": result}


def _weights(settings: DemoSettings, desk: Workspace) -> str:
    """The weights asked for, or the fallback with plain words about what that means."""
    try:
        find_weights(settings.weights, "resnet50", desk)
        return settings.weights
    except WeightsError as error:
        desk.watch.warn(str(error))
        desk.watch.warn(
            f"the demo goes on with {FALLBACK}: a ResNet50 of random numbers, NOT a pretrained trunk. Its features "
            "still tell digits apart; with pretrained weights these commands work on photographs, too"
        )
        return FALLBACK


def _close(desk: Workspace, weights: str, made: tuple[dict[str, Any], dict[str, Any]], seconds: float) -> None:
    """Where everything is, how long it took, and what pretrained weights would change; ``made``: cache and page."""
    extract, page = made
    desk.watch.result(f"features: {extract['cache']} ({numbers.size(Path(extract['cache']).stat().st_size)})")
    desk.watch.result(f"runs (settings, figures, traces, heads): {desk.runs}")
    desk.watch.result(f"the chosen head told to other people, in any browser: {page['file']}")
    if weights == FALLBACK:
        desk.watch.result(
            f"weights: {FALLBACK}, random numbers, not pretrained: on your photographs use pretrained weights"
        )
    desk.watch.result(f"all of it took {numbers.seconds(seconds)}; next, with your own images: pipeline extract FOLDER")
