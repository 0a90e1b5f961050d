"""A coarser arithmetic, emulated: the factors of every float32 product and convolution are cut or rounded first.

A GPU's TF32 keeps 10 bits of a float32's fraction, bfloat16 7; sums stay float32. What hardware does with the other
bits is not written down: some rounds, some cuts, so that both are emulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

FRACTION = 23  # bits of a float32
BITS = {"tf32": 10, "bfloat16": 7}
_ATEN = torch.ops.aten
# Each operation that multiplies, and the places of its factors.
_FACTORS = {
    **dict.fromkeys((_ATEN.convolution, _ATEN.conv2d, _ATEN.linear, _ATEN.matmul, _ATEN.mm, _ATEN.bmm), (0, 1)),
    **dict.fromkeys((_ATEN.addmm, _ATEN.addmm_, _ATEN.baddbmm, _ATEN.baddbmm_), (1, 2)),
    **dict.fromkeys(
        (
            _ATEN.scaled_dot_product_attention,
            _ATEN._scaled_dot_product_flash_attention_for_cpu,
            _ATEN._scaled_dot_product_attention_math,
        ),
        (0, 1, 2),
    ),
    _ATEN.convolution_backward: (0, 1, 2),
}


def coarser(x: torch.Tensor, bits: int, *, cut: bool) -> torch.Tensor:
    """A float32 tensor with ``bits`` bits of fraction: cut towards zero, or rounded to the nearest, ties to even."""
    drop = FRACTION - bits
    whole = x.contiguous().view(torch.int32)
    if not cut:
        whole = whole + (((1 << (drop - 1)) - 1) + ((whole >> drop) & 1))
    return (whole & -(1 << drop)).view(torch.float32)


class Coarse(TorchDispatchMode):
    """Within it, products of float32 in this thread are of factors with so many bits; those of float64 are not."""

    def __init__(self, bits: int, *, cut: bool = False) -> None:
        super().__init__()
        self.bits, self.cut, self.products = bits, cut, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        changed = list(args)
        for place in _FACTORS.get(func.overloadpacket, ()):
            if isinstance(args[place], torch.Tensor) and args[place].dtype == torch.float32:
                changed[place] = coarser(args[place], self.bits, cut=self.cut)
                self.products += 1
        return func(*changed, **(kwargs or {}))
