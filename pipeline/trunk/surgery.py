"""Building, beheading, freezing, reattaching and describing torchvision's ResNets.

Knows modules and tensors; where weights come from is ``pipeline.trunk.weights``' business.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import nn

from pipeline.base.errors import ConfigError, WeightsError
from pipeline.trunk.identity import LAYERS, check_trunk

# torchvision.models.ResNet._forward_impl, in its order; the classifier `fc` comes after.
STAGES = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool")


@dataclass(frozen=True)
class Stage:
    """One step of a forward pass: ``shape_out`` is for one image, ``state`` is ``trained``, ``frozen`` or ``""``."""

    name: str
    shape_out: tuple[int, ...]
    params: int
    state: str


def build(trunk: str, *, num_classes: int, seed: int = 0) -> nn.Module:
    """torchvision's network with random weights, in eval mode: what ``torch.manual_seed(seed)`` and its builder give.

    The caller's random state is left as it was.

    Raises:
        ConfigError: unknown trunk.
    """
    check_trunk(trunk)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = torchvision.models.get_model(trunk, weights=None, num_classes=num_classes)
    return model.eval()


def behead(model: nn.Module) -> tuple[nn.Module, int]:
    """The model, in place, with ``fc`` replaced by Identity, and D: it now gives features (n, D) instead of logits.

    Raises:
        WeightsError: it has no classifier ``fc``.
    """
    head = getattr(model, "fc", None)
    if not isinstance(head, nn.Linear):
        raise WeightsError(
            f"{type(model).__name__} has no linear classifier `fc` to take off: give a torchvision ResNet"
        )
    dim = head.in_features
    model.fc = nn.Identity()
    return model, dim


def trunk_at(model: nn.Module, layer: str) -> tuple[nn.Module, int]:
    """The network up to ``layer`` (one of LAYERS) with its output averaged over places, and D: gives features (n, D).

    Shares the model's modules and leaves the model as it is, whether beheaded or not, in eval mode or not. The names of
    parameters are the model's.

    Raises:
        ConfigError: unknown layer.
    """
    if layer not in LAYERS:
        raise ConfigError(f"--layer {layer!r} is not known: choose from {', '.join(LAYERS)}")
    last = "layer4" if layer == "avgpool" else layer
    names = (*STAGES[: STAGES.index(last) + 1], "avgpool")
    parts: OrderedDict[str, nn.Module] = OrderedDict((n, model.get_submodule(n)) for n in names)
    parts["flatten"] = nn.Flatten(1)
    # The width of a stage is that of the convolution at the end of its first block's longest way.
    block = model.get_submodule(last).get_submodule("0")
    convs = [m for name, m in block.named_children() if isinstance(m, nn.Conv2d) and name.startswith("conv")]
    trunk = nn.Sequential(parts)
    trunk.training = model.training  # not trunk.train(), which would reach the model's own modules
    return trunk, convs[-1].out_channels


def reattach(model: nn.Module, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> nn.Module:
    """The model, in place, with a linear classifier: ``weight`` (C, D), ``bias`` (C,); it gives logits (n, C).

    It is whole and free again: in eval mode, every parameter learning, ``train()`` doing what it says.

    Raises:
        WeightsError: shapes that do not fit each other or the trunk.
    """
    dim = trunk_at(model, "avgpool")[1]
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
    model.fc = head.to(parameter.device, parameter.dtype)
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


def describe(model: nn.Module, image_size: int) -> list[Stage]:
    """The stages that one image of ``image_size`` px goes through, as a real forward pass shows them.

    The first is the input; a beheaded model ends with its features.
    """
    seen: dict[str, tuple[int, ...]] = {}

    def hook(name: str) -> Any:
        def note(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            seen[name] = tuple(output.shape[1:])

        return note

    children = dict(model.named_children())
    handles = [module.register_forward_hook(hook(name)) for name, module in children.items()]
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
    stages = [Stage("input", (3, image_size, image_size), 0, "")]
    for name, shape in seen.items():
        parameters = list(children[name].parameters())
        state = "" if not parameters else "trained" if any(p.requires_grad for p in parameters) else "frozen"
        shown = "features" if name == "fc" and isinstance(children[name], nn.Identity) else name
        stages.append(Stage(shown, shape, sum(p.numel() for p in parameters), state))
    return stages
