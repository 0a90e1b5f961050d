"""`pipeline trace`: the model's way, shown with real shapes and counts: load -> remove head -> add head -> train."""

from __future__ import annotations

from pipeline.base.workspace import Workspace
from pipeline.runs.recipe import provenance_of
from pipeline.stages.use import words
from pipeline.stages.use.results import Layer, ModelStep, TraceReport
from pipeline.stages.use.settings import TraceSettings
from pipeline.stages.use.target import find_target
from pipeline.store import Cache
from pipeline.trunk.families.family import CLASSES, anatomy_of
from pipeline.trunk.surgery import behead, build, describe


def trace(settings: TraceSettings, desk: Workspace) -> TraceReport:
    """Show the model pipeline; nothing is trained.

    Raises:
        ConfigError, CacheError, HeadError: the target is neither a cache nor a run.
    """
    trunk, size, classes = _subject(settings, desk)
    steps = _steps(trunk, size, classes)
    desk.watch.result(words.steps(steps))
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


def _steps(trunk: str, size: int, classes: int) -> list[ModelStep]:
    model = build(trunk, num_classes=CLASSES, image_size=size)
    anatomy = anatomy_of(trunk, model)
    dim = anatomy.dim
    loaded = [Layer(s.name, s.shape_out, s.params, "") for s in describe(model, anatomy, size)]
    beheaded = describe(behead(model, anatomy), anatomy, size)
    frozen = [Layer(s.name, s.shape_out, s.params, "frozen" if s.params else "") for s in beheaded]
    body = sum(p.numel() for p in model.parameters())
    head = Layer(anatomy.classifier, (classes,), classes * dim + classes, "trained")
    return [
        ModelStep("load", f"{trunk} as its library gives it, with a {CLASSES}-way classifier", loaded),
        ModelStep("remove head", f"the classifier is taken off: one image gives {dim:,} features", frozen),
        ModelStep(
            "add head",
            f"a new linear layer: {dim:,} features -> {classes} classes",
            [Layer("trunk", (dim,), body, "frozen"), head],
        ),
        ModelStep(
            "train",
            "stage two: the trunk runs once, the head learns from its cached features",
            [Layer("trunk", (dim,), body, "frozen"), head],
        ),
        ModelStep(
            "fine-tune",
            "stage three, optional: trunk and head learn together, from where the head left off",
            [Layer("trunk", (dim,), body, "trained"), head],
        ),
    ]
