"""The commands, in the order of the help: each is a door, the same function that Python calls."""

from __future__ import annotations

from typing import Any

from pipeline.base.doors import Door
from pipeline.bench.doors import bench
from pipeline.cli.demo import demo
from pipeline.stages.extract.doors import extract
from pipeline.stages.finetune.doors import finetune
from pipeline.stages.learn.doors import baseline, search, train
from pipeline.stages.report.doors import report
from pipeline.stages.score.doors import compare, evaluate
from pipeline.stages.upkeep.doors import audit, catalog, inspect, relabel, verify
from pipeline.stages.use.doors import export, predict, rows, trace

DOORS: tuple[Door[Any], ...] = (
    extract,
    train,
    search,
    baseline,
    evaluate,
    compare,
    finetune,
    predict,
    export,
    report,
    rows,
    trace,
    catalog,
    inspect,
    verify,
    audit,
    relabel,
    bench,
    demo,
)
COMMANDS = {door.command: door for door in DOORS}
