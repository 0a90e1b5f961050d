"""Weights by name: their identity from memory where the file is unchanged, so that torch is not imported for it."""

from __future__ import annotations

from pipeline.base.workspace import Workspace
from pipeline.trunk import identity
from pipeline.trunk.identity import WeightsInfo


def find_weights(spec: str, trunk: str, desk: Workspace, preset: str | None = None) -> WeightsInfo:
    """The weights' identity, from memory when the file is unchanged (then torch is not imported).

    ``preset`` names the weights whose transform is taken, where it is not their own.
    """
    info = identity.recall(spec, trunk, preset, desk)
    if info is None:
        from pipeline.trunk.weights import resolve_weights

        info = resolve_weights(spec, trunk, desk, preset)
        if not info.pretrained:
            desk.watch.warn(
                f"{info.name} are random numbers, not pretrained weights: good for trying things, not for results"
            )
    return info
