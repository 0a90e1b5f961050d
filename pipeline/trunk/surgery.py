"""Building, beheading, freezing, reattaching and describing networks.

Knows modules and tensors; what a network consists of says its family (``pipeline.trunk.families``), and where weights
come from is ``pipeline.trunk.weights``' business.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.base.errors import WeightsError
from pipeline.trunk.cut import Pooled, halves, shape_of
from pipeline.trunk.families.family import Anatomy, family_of
from pipeline.trunk.families.tree import parts_of


@dataclass(frozen=True)
class Station:
    """One step of a forward pass: ``shape_out`` is for one image, ``state`` is ``trained``, ``frozen`` or ``""``."""

    name: str
    shape_out: tuple[int, ...]
    params: int
    state: str


def build(trunk: str, *, num_classes: int, image_size: int, seed: int = 0, pretrained: bool = False) -> nn.Module:
    """The family's network with random weights, in eval mode: what ``torch.manual_seed(seed)`` and its builder give.

    ``pretrained`` where weights will be loaded that were trained. The caller's random state is left as it was.

    Raises:
        ConfigError: unknown trunk, or a size that it cannot take.
    """
    family, name = family_of(trunk)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.build(name, num_classes=num_classes, image_size=image_size, pretrained=pretrained)
    return model.eval()


def behead(model: nn.Module, anatomy: Anatomy) -> nn.Module:
    """The model, in place, with its classifier replaced by Identity: it now gives features (n, D) instead of logits."""
    model.set_submodule(anatomy.classifier, nn.Identity())
    return model


def trunk_at(model: nn.Module, anatomy: Anatomy, layer: str, image_size: int) -> tuple[nn.Module, int]:
    """The network up to ``layer``, a layer by its own name, and D: gives features (n, D) of normalised images.

    Shares the model's modules. For the last stage's features it is the model itself, beheaded in place; for those of
    the stage before it the model is left as it is.

    Raises:
        ConfigError: the network cannot be cut there.
    """
    if layer == anatomy.layers[0]:
        return behead(model, anatomy), anatomy.dim
    front, _ = halves(model, anatomy)
    pooled = Pooled(front, shape_of(front, image_size))
    pooled.training = model.training  # not pooled.train(), which would reach the model's own modules
    return pooled, pooled.dim


def reattach(model: nn.Module, anatomy: Anatomy, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> nn.Module:
    """The model, in place, with a linear classifier: ``weight`` (C, D), ``bias`` (C,); it gives logits (n, C).

    It is whole and free again: in eval mode, every parameter learning, ``train()`` doing what it says.

    Raises:
        WeightsError: shapes that do not fit each other or the trunk.
    """
    dim = anatomy.dim
    if weight.ndim != 2 or weight.shape[1] != dim or bias.shape != weight.shape[:1]:
        raise WeightsError(
            f"a head of weight {weight.shape} and bias {bias.shape} does not fit {dim} features: weight must be "
            f"(classes, {dim}) and bias (classes,)"
        )
    head = nn.Linear(dim, len(weight))
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
        head.bias.copy_(torch.from_numpy(np.ascontiguousarray(bias)))
    parameter = next(model.parameters())
    model.set_submodule(anatomy.classifier, head.to(parameter.device, parameter.dtype))
    return model.requires_grad_(True).eval()


def freeze(model: nn.Module) -> None:
    """Eval mode and no gradients, to stay: whoever calls ``train()`` on it or on a part of it changes nothing.

    A part of which no parameter learns goes back to eval mode before it runs; so in copies, too. Names, types and state
    dict remain the model's own.
    """
    model.requires_grad_(False).eval()
    for module in model.modules():
        if any(True for _ in module.parameters()):
            module.register_forward_pre_hook(_stay)


def _stay(module: nn.Module, _inputs: object) -> None:
    """Eval mode for what is frozen: a part that learns again is left in the mode that it is in."""
    if module.training and not any(p.requires_grad for p in module.parameters()):
        module.eval()


def load_tensors(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load tensors by name, strictly. A module that reads the version of what it is given reads its own.

    Raises:
        RuntimeError: names or shapes do not fit.
    """
    versioned = OrderedDict(tensors)
    versioned._metadata = getattr(model.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    model.load_state_dict(versioned, strict=True)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all parameters and buffers, in the order of their names."""
    digest = hashlib.sha256()
    tensors: dict[str, torch.Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes, so that types numpy does not have (bfloat16) are hashed as well.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def describe(model: nn.Module, anatomy: Anatomy, image_size: int) -> list[Station]:
    """The stations that one image of ``image_size`` px goes through, as a real forward pass shows them.

    The first is the input, with the parameters that are in none (embeddings) after it; a beheaded model ends with its
    features.
    """
    parts = {name: model.get_submodule(name) for name in parts_of(model, anatomy.classifier)}
    seen: dict[str, tuple[int, ...]] = {}

    def hook(name: str) -> Any:
        def note(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            seen[name] = tuple(output.shape[1:])

        return note

    handles = [module.register_forward_hook(hook(name)) for name, module in parts.items()]
    was_training = [m for m in model.modules() if m.training]
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.inference_mode():
            model.eval()(image)
    finally:
        for handle in handles:
            handle.remove()
        for module in was_training:
            module.training = True
    beheaded = isinstance(model.get_submodule(anatomy.classifier), nn.Identity)
    stations = [Station("input", (3, image_size, image_size), 0, "")]
    inside = {id(p) for part in parts.values() for p in part.parameters()}
    for name, own in model.named_parameters():
        if id(own) not in inside:
            state = "trained" if own.requires_grad else "frozen"
            stations.append(Station(name, tuple(own.shape[1:]), own.numel(), state))
    for name, shape in seen.items():
        parameters = list(parts[name].parameters())
        state = "" if not parameters else "trained" if any(p.requires_grad for p in parameters) else "frozen"
        at_the_end = f"{anatomy.classifier}.".startswith(f"{name}.")
        shown = "features" if beheaded and at_the_end and not parameters else name
        stations.append(Station(shown, shape, sum(p.numel() for p in parameters), state))
    return stations
