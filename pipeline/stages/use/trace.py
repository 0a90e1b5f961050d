"""`pipeline trace`: the model's way, shown with real shapes and counts: load -> remove head -> add head -> train."""

from __future__ import annotations

from pipeline.base.errors import CacheError, ConfigError, HeadError
from pipeline.base.workspace import Workspace
from pipeline.runs import folder as runs
from pipeline.runs.recipe import provenance_of
from pipeline.stages.use import words
from pipeline.stages.use.results import Layer, ModelStep, TraceReport
from pipeline.stages.use.settings import TraceSettings
from pipeline.store.find import find_cache
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
    try:
        cache = find_cache(settings.target, desk)
    except CacheError:
        try:
            run = runs.find_run(settings.target, desk)
        except HeadError:
            raise ConfigError(
                f"{settings.target!r} is neither a feature cache nor a run: give one, or nothing"
            ) from None
        made_by, classes = run.made_by, len(run.config["classes"])
    else:
        made_by, classes = provenance_of(cache), len(cache.classes)
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
