"""The model's way with real shapes and counts: load -> remove head -> add head -> train -> fine-tune.

Builds the network without its weights, and has one blank image go through it. Nothing is trained.
"""

from __future__ import annotations

from pipeline.heads.artifact import Head
from pipeline.show.steps import Layer, ModelStep
from pipeline.trunk.families.family import CLASSES, anatomy_of
from pipeline.trunk.surgery import behead, build, describe


def model_steps(trunk: str, size: int, classes: int, head: Head | None = None) -> list[ModelStep]:
    """The steps of a trunk that sees squares of ``size`` pixels; without a ``head`` the new one is a linear layer.

    Raises:
        WeightsError, ConfigError: there is no such network, or its library is not installed.
    """
    model = build(trunk, num_classes=CLASSES, image_size=size)
    anatomy = anatomy_of(trunk, model)
    dim = anatomy.dim
    loaded = [Layer(s.name, s.shape_out, s.params, "") for s in describe(model, anatomy, size)]
    beheaded = describe(behead(model, anatomy), anatomy, size)
    frozen = [Layer(s.name, s.shape_out, s.params, "frozen" if s.params else "") for s in beheaded]
    body = sum(p.numel() for p in model.parameters())
    linear = head is None or head.layer is not None
    new = [Layer(anatomy.classifier, (classes,), classes * dim + classes, "trained")]
    if head is not None and not linear:
        new = _layers(head)
    what = "a new linear layer" if linear or head is None else f"a new head of the kind {head.kind}"
    return [
        ModelStep("load", f"{trunk} as its library gives it, with a {CLASSES}-way classifier", loaded),
        ModelStep("remove head", f"the classifier is taken off: one image gives {dim:,} features", frozen),
        ModelStep(
            "add head",
            f"{what}: {dim:,} features -> {classes} classes",
            [Layer("trunk", (dim,), body, "frozen"), *new],
        ),
        ModelStep(
            "train",
            "stage two: the trunk runs once, the head learns from its cached features",
            [Layer("trunk", (dim,), body, "frozen"), *new],
        ),
        ModelStep(
            "fine-tune",
            "stage three, optional: trunk and head learn together, from where the head left off",
            [Layer("trunk", (dim,), body, "trained"), *new],
        ),
    ]


def _layers(head: Head) -> list[Layer]:
    """A head's layers by their names in its file: what has a matrix is one, the rest stands with it."""
    names = [name for name, tensor in head.tensors.items() if tensor.ndim == 2]
    total, found = sum(tensor.size for tensor in head.tensors.values()), []
    for number, name in enumerate(names):
        prefix = name.removesuffix("weight")
        own = [t.size for other, t in head.tensors.items() if len(names) == 1 or other.startswith(prefix)]
        width = head.tensors[name].shape[0]
        shown = f"hidden {number + 1}" if number < len(names) - 1 else "head"
        found.append(Layer(shown, (width,), sum(own), "trained"))
    assert sum(layer.parameters for layer in found) == total
    return found
