"""Numbers of the host for the device that computes.

A GPU copies while the program goes on only from page-locked memory; from other memory each copy makes the program wait
until the GPU has done all that it was given before.
"""

from __future__ import annotations

import torch

from pipeline.base.machine import kind_of_device


def uploaded(tensor: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """A CPU tensor on ``device``, for which nobody waits; on the CPU itself as it is.

    PyTorch keeps the page-locked copy until the GPU has read it, and uses its memory again after that.
    """
    if kind_of_device(str(device)) != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
