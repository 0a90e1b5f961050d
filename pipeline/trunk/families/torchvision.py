"""torchvision's classification networks: names, weights, transforms, and what each network consists of.

What a network consists of is read from the network itself; what its weights want, from their entry in torchvision.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import nn

from pipeline.base.errors import ConfigError
from pipeline.base.spelling import option
from pipeline.trunk.families.family import CLASSES, Anatomy, Entry, Family, WeightsFile, require_linear, skeleton
from pipeline.trunk.families.light import compiler_left_out
from pipeline.trunk.families.tree import is_weight, stages_of
from pipeline.trunk.identity import Transform

with compiler_left_out():
    import torchvision
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings


@cache
def names() -> Sequence[str]:
    """All of them, in torchvision's order."""
    return tuple(torchvision.models.list_models(module=torchvision.models))


def known(name: str) -> bool:
    """Whether torchvision has it."""
    return name in names()


def entries(name: str) -> Sequence[str]:
    """The entries of the network's enum, the one that torchvision calls DEFAULT first."""
    found = torchvision.models.get_model_weights(name)
    best = found.DEFAULT.name
    return (best, *(e.name for e in found if e.name != best))


def entry(name: str, weights: str | None) -> Entry:
    """An entry of the enum; the file's name ends in the first digits of its SHA-256."""
    found: Any = torchvision.models.get_model_weights(name)
    chosen = found.DEFAULT if weights is None else found[weights]
    preset = chosen.transforms()
    filename = chosen.url.rsplit("/", 1)[1]
    file = WeightsFile((filename,), url=chosen.url, sha256=filename.rsplit("-", 1)[1].split(".")[0])
    transform = Transform(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
    return Entry(chosen.name, transform, file)


def build(name: str, *, num_classes: int, image_size: int, pretrained: bool) -> nn.Module:
    """As torchvision's own builder makes it with weights or without, but for auxiliary classifiers: there are none.

    Raises:
        ConfigError: a size that the network cannot take.
    """
    given = _given(name, num_classes, image_size, pretrained)
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, **given)
    except (ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{option('image_size', image_size)} is none that {name} can take: {reason}") from error
    return model


def code(name: str, *, num_classes: int, image_size: int, pretrained: bool) -> tuple[str, str]:
    """By ``get_model``."""
    given = _given(name, num_classes, image_size, pretrained)
    told = ", ".join([repr(name), "weights=None", *(f"{option}={value!r}" for option, value in given.items())])
    return "torchvision", f"torchvision.models.get_model({told})"


def _given(name: str, num_classes: int, image_size: int, pretrained: bool) -> dict[str, Any]:
    """What the network's builder is told."""
    given: dict[str, Any] = {"num_classes": num_classes}
    if "transform_input" in _options(name):
        given["transform_input"] = pretrained
    if "aux_logits" in _options(name):
        given |= {"aux_logits": False, "init_weights": True}
    if issubclass(_kind(name), VisionTransformer):
        given["image_size"] = image_size
    elif "input_size" in _options(name):  # MaxViT, whose windows lie on a fixed grid
        given["input_size"] = (image_size, image_size)
    return given


def load(
    name: str, state: Mapping[str, torch.Tensor], *, image_size: int
) -> tuple[nn.Module, Mapping[str, torch.Tensor]]:
    """Auxiliary classifiers are left out; a vision transformer's position embedding is interpolated."""
    state = {k: v for k, v in state.items() if not k.startswith(("aux1.", "aux2.", "AuxLogits."))}
    this = cast(Family, sys.modules[__name__])
    model = skeleton(this, name, num_classes=CLASSES, image_size=image_size)
    weight = state.get(f"{anatomy(name, model).classifier}.weight")
    if weight is not None and weight.ndim == 2 and len(weight) != CLASSES:
        model = skeleton(this, name, num_classes=len(weight), image_size=image_size)
    if isinstance(model, VisionTransformer) and "encoder.pos_embedding" in state:
        wanted = model.encoder.pos_embedding.shape
        if state["encoder.pos_embedding"].shape != wanted:
            state = interpolate_embeddings(image_size, model.patch_size, dict(state))
    return model.to_empty(device="cpu"), state


def anatomy(name: str, model: nn.Module) -> Anatomy:
    """The classifier is the last linear layer, where nothing else comes after it."""
    last = [(n, m) for n, m in model.named_modules() if next(m.parameters(recurse=False), None) is not None][-1]
    head = require_linear(name, last[1], last[0])
    stages = stages_of(model, last[0])
    inside = {p for stage in stages for p in stage.parameters}
    embeddings = {n for n, p in model.named_parameters() if n in inside and p.ndim > 1 and not is_weight(n, p)}
    # The words that caches of ResNets have been known by from the beginning.
    layers = ("avgpool", stages[-2].name) if isinstance(model, torchvision.models.ResNet) else ("last", "previous")
    return Anatomy(last[0], head.in_features, stages, frozenset(embeddings), layers)


@cache
def _kind(name: str) -> type[nn.Module]:
    """The class of a network: what its builder says that it gives."""
    kind: type[nn.Module] = inspect.signature(torchvision.models.get_model_builder(name)).return_annotation
    return kind


@cache
def _options(name: str) -> frozenset[str]:
    """What the network's class can be told."""
    return frozenset(inspect.signature(_kind(name)).parameters)
