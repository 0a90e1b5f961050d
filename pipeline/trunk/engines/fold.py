"""A trunk as engines run it: BatchNorm folded into the convolutions, normalisation into the first of them.

Knows modules only. The arithmetic of folding is float64; the result is float32. Which BatchNorm follows which
convolution is read from the trunk's own forward pass; a trunk that cannot be traced is run as it is.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from pipeline.trunk.identity import WeightsInfo
from pipeline.trunk.tracing import Tracer

_PIXEL_RANGE = 255.0


@dataclass(frozen=True)
class Found:
    """What a trunk's forward pass allows: names of modules.

    ``pairs`` are convolutions with the BatchNorm that alone takes their output, ``first`` the convolution of a pair
    that takes the images, ``pool`` the global mean after which nothing is computed with parameters.
    """

    pairs: tuple[tuple[str, str], ...] = ()
    first: str | None = None
    pool: str | None = None


class FoldedTrunk(nn.Module):
    """Gives features (n, D) float32 from pixels (n, 3, S, S) uint8.

    With W' = W·gamma/sqrt(var+eps) and b' = beta - mean·gamma/sqrt(var+eps) a convolution and its BatchNorm are one
    convolution. The preset's (p/255 - mean)/std is (p - 255·mean) · 1/(255·std): the factor goes into the first
    convolution's weights. The subtraction stays before it, because the convolution pads with zeros, and those are zeros
    of the normalised image.
    """

    shift: torch.Tensor
    gain: torch.Tensor | None

    def __init__(self, trunk: nn.Module, info: WeightsInfo, dim: int, *, whole_mean: bool = False) -> None:
        """A copy of ``trunk``, which gives features (n, dim) of normalised images; it stays as it is.

        ``whole_mean`` subtracts a whole number where the first convolution can make up for the rest in its bias: then
        pixels stay whole, and 256 steps can say them exactly. (Less 127.5 each would lie between two steps: of
        EfficientNet's features of flat drawings that took 17 % more.) Where the convolution pads, it pads with zeros
        that are off by half a grey level at most.
        """
        super().__init__()
        self.dim = dim
        found = what_folds(trunk)
        folded = {name for pair in found.pairs for name in pair}
        # The modules are copied, and the tensors that stay; those that are replaced below need not be.
        held = Counter(id(t) for module in trunk.modules() for t in module.parameters(recurse=False))
        own = [t for name in folded for t in trunk.get_submodule(name).parameters(recurse=False)]
        replaced = [t for t in own if held[id(t)] == 1]  # what another module has too stays there
        net = copy.deepcopy(trunk, {id(t): t for t in replaced})
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (info.transform.mean, info.transform.std))
        scale = (1 / (_PIXEL_RANGE * std)).view(1, 3, 1, 1)
        for conv_name, norm_name in found.pairs:
            conv, norm = net.get_submodule(conv_name), net.get_submodule(norm_name)
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            _fold(conv, norm, scale.to(conv.weight.device) if conv_name == found.first else None)
            # A BatchNorm with more in it (timm's has the activation) leaves that.
            net.set_submodule(norm_name, nn.Sequential(*norm.children()) if [*norm.children()] else nn.Identity())
        if found.pool is not None:
            net.set_submodule(found.pool, _Float32(net.get_submodule(found.pool)))
        shift = (_PIXEL_RANGE * mean).view(1, 3, 1, 1)
        if whole_mean and found.first is not None:
            shift = _make_whole(shift, net.get_submodule(found.first))
        self.net = net.requires_grad_(False).eval()
        self.register_buffer("shift", shift.float())
        self.register_buffer("gain", None if found.first is not None else scale.float())

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features (n, D) float32 of (n, 3, S, S) uint8."""
        x = pixels.float() - self.shift
        if self.gain is not None:
            x = x * self.gain
        features: torch.Tensor = self.net(x.to(next(self.net.parameters()).dtype))
        return features.float()


class _Float32(nn.Module):
    """A pooling that is done in float32 whatever the precision of the convolutions."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.pool(maps.float())
        return pooled


def what_folds(trunk: nn.Module) -> Found:
    """What can be folded in a trunk; nothing where its forward pass cannot be traced."""
    modules = dict(trunk.named_modules())
    try:
        graph = Tracer(lambda m, _: isinstance(m, nn.BatchNorm2d) or not [*m.children()]).trace(trunk)
    except Exception:  # what a forward pass that cannot be traced raises cannot be listed; it runs unfolded
        return Found()
    calls = [node for node in graph.nodes if node.op == "call_module"]
    used = Counter(str(node.target) for node in calls)
    pairs, first, pool = [], None, None
    for node in calls:
        module, name = modules[str(node.target)], str(node.target)
        conv = node.args[0] if isinstance(module, nn.BatchNorm2d) else None
        if isinstance(conv, fx.Node) and _foldable(conv, modules, module) and used[name] == used[str(conv.target)] == 1:
            pairs.append((str(conv.target), name))
            if isinstance(conv.args[0], fx.Node) and conv.args[0].op == "placeholder":
                first = str(conv.target)
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            pool = name
        elif [*module.parameters()]:
            pool = None
    images = next(node for node in graph.nodes if node.op == "placeholder")
    return Found(tuple(pairs), first if len(images.users) == 1 else None, pool)


def _foldable(node: fx.Node, modules: Mapping[str, nn.Module], norm: nn.Module) -> bool:
    """Whether a node is a convolution whose output goes into ``norm`` alone, which has statistics and a scale."""
    conv = modules.get(str(node.target)) if node.op == "call_module" else None
    whole = isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.affine
    return isinstance(conv, nn.Conv2d) and len(node.users) == 1 and whole


def _make_whole(shift: torch.Tensor, conv: nn.Module) -> torch.Tensor:
    """The nearest whole numbers to what is subtracted, (1, 3, 1, 1); the convolution adds what that changes."""
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    whole = torch.floor(shift + 0.5)
    more = (conv.weight.detach().double() * (whole - shift)).sum((1, 2, 3))
    conv.bias = nn.Parameter((conv.bias.detach().double() + more).float(), requires_grad=False)
    return whole


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d, input_scale: torch.Tensor | None) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    gain = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = conv.weight.detach().double() * gain.view(-1, 1, 1, 1)
    bias = norm.bias.detach().double() - norm.running_mean.double() * gain
    if conv.bias is not None:
        bias = bias + conv.bias.detach().double() * gain
    if input_scale is not None:
        weight = weight * input_scale
    conv.weight = nn.Parameter(weight.float().cpu(), requires_grad=False)
    conv.bias = nn.Parameter(bias.float().cpu(), requires_grad=False)
