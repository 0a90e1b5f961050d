"""`pipeline trace`: the model's way, shown with real shapes and counts: load -> remove head -> add head -> train."""

from __future__ import annotations

from pipeline.base.workspace import Workspace
from pipeline.runs.recipe import provenance_of
from pipeline.runs.shapes import model_steps
from pipeline.show.steps import steps as shown
from pipeline.stages.use.results import TraceReport
from pipeline.stages.use.settings import TraceSettings
from pipeline.stages.use.target import find_target
from pipeline.store import Cache


def trace(settings: TraceSettings, desk: Workspace) -> TraceReport:
    """Show the model pipeline; nothing is trained.

    Raises:
        ConfigError, CacheError, HeadError: the target is neither a cache nor a run.
    """
    trunk, size, classes = _subject(settings, desk)
    steps = model_steps(trunk, size, classes)
    desk.watch.result(shown(steps))
    return TraceReport(trunk, size, classes, steps)


def _subject(settings: TraceSettings, desk: Workspace) -> tuple[str, int, int]:
    if settings.target is None:
        return settings.trunk, settings.image_size, settings.classes
    found = find_target(settings.target, desk)
    if isinstance(found, Cache):
        made_by, classes = provenance_of(found), len(found.classes)
    else:
        made_by, classes = found.made_by, len(found.config["classes"])
    return made_by["trunk"]["name"], made_by["transform"].crop, classes
