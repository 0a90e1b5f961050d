"""The list of the families of networks, and nothing that imports torch.

A family is a library of networks that describe themselves: one file here, all that
:class:`pipeline.trunk.families.family.Family` says. A trunk's name begins with its family's prefix; bare names are
torchvision's.
"""

from __future__ import annotations

# prefix -> the module of that name here
FAMILIES: dict[str, str] = {"timm:": "timm", "": "torchvision"}


def parted(trunk: str) -> tuple[str, str]:
    """A trunk's prefix and its name in the family: ``timm:vit_tiny_patch16_224`` -> ``timm:``, ``vit_tiny...``."""
    prefix = max((p for p in FAMILIES if trunk.startswith(p)), key=len)
    return prefix, trunk.removeprefix(prefix)
