"""A trunk as engines run it: BatchNorm folded into the convolutions, normalisation into the first of them.

Knows modules only. The arithmetic of folding is float64; the result is float32.
"""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import nn

from pipeline.trunk.identity import WeightsInfo
from pipeline.trunk.surgery import trunk_at

# Names of a convolution and of the BatchNorm that follows it, in torchvision's stem, blocks and shortcuts.
_PAIRS = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1"))
_PIXEL_RANGE = 255.0


class FoldedTrunk(nn.Module):
    """Gives features (n, D) float32 from pixels (n, 3, S, S) uint8.

    With W' = W·gamma/sqrt(var+eps) and b' = beta - mean·gamma/sqrt(var+eps) a convolution and its BatchNorm are one
    convolution. The preset's (p/255 - mean)/std is (p - 255·mean) · 1/(255·std): the factor goes into the first
    convolution's weights. The subtraction stays before it, because the convolution pads with zeros, and those are zeros
    of the normalised image.
    """

    shift: torch.Tensor

    def __init__(self, model: nn.Module, info: WeightsInfo, layer: str) -> None:
        super().__init__()
        trunk, self.dim = trunk_at(model, layer)
        # The modules are copied, their tensors are not: every one that stays is replaced below.
        tensors = {id(t): t for t in (*trunk.parameters(), *trunk.buffers())}
        copied = copy.deepcopy(trunk, dict(tensors))
        # Without pooling, which is done in float32 whatever the precision of the convolutions.
        net = nn.Sequential(OrderedDict(list(copied.named_children())[:-2]))
        stem = net.get_submodule("conv1")
        assert isinstance(stem, nn.Conv2d)
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (info.mean, info.std))
        scale = (1 / (_PIXEL_RANGE * std)).view(1, 3, 1, 1).to(stem.weight.device)
        for module in list(net.modules()):
            for conv_name, norm_name in _PAIRS:
                conv, norm = (getattr(module, name, None) for name in (conv_name, norm_name))
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    _fold(conv, norm, scale if conv is stem else None)
                    setattr(module, norm_name, nn.Identity())
        assert not any(id(t) in tensors for t in (*net.parameters(), *net.buffers()))
        self.net = net.eval()
        self.register_buffer("shift", (_PIXEL_RANGE * mean).float().view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features (n, D) float32 of (n, 3, S, S) uint8."""
        centred = pixels.float() - self.shift
        maps = self.net(centred.to(self.net.get_submodule("conv1").get_parameter("weight").dtype))
        return nn.functional.adaptive_avg_pool2d(maps.float(), 1).flatten(1)


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d, input_scale: torch.Tensor | None) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    gain = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = conv.weight.detach().double() * gain.view(-1, 1, 1, 1)
    bias = norm.bias.detach().double() - norm.running_mean.double() * gain
    if input_scale is not None:
        weight = weight * input_scale
    conv.weight = nn.Parameter(weight.float().cpu(), requires_grad=False)
    conv.bias = nn.Parameter(bias.float().cpu(), requires_grad=False)
