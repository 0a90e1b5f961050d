"""The model's steps as they are shown: what is done, the layers after it with their shapes and counts, and their sum.

Knows names and numbers; nothing of networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.base.values import Cell, Column, Part, Role, Step, Steps, figures
from pipeline.base.words import ABSENT, count, shape


@dataclass(frozen=True)
class Layer:
    """One line of a step: ``output`` is the shape for one image; ``state`` is ``frozen``, ``trained`` or ``""``."""

    name: str
    output: tuple[int, ...] | None
    parameters: int
    state: str = ""


@dataclass(frozen=True)
class ModelStep:
    """One step of the model's way: what is done, in a word and in a sentence, and the layers after it."""

    title: str
    detail: str
    layers: Sequence[Layer]


def steps(found: Sequence[ModelStep]) -> Steps:
    """The model's steps, each with its layers and their sum."""
    columns = [Column("layer"), *figures("output", "parameters"), Column(fit="wrap")]
    return Steps(columns, [Step(s.title, s.detail, [*map(_layer, s.layers), _sum(s.layers)]) for s in found])


_STATES: dict[str, Role] = {"frozen": "frozen", "trained": "trained"}


def _layer(layer: Layer) -> list[Cell]:
    output = ABSENT if layer.output is None else shape(layer.output)
    parameters = count(layer.parameters) if layer.parameters else ABSENT
    return [layer.name, output, parameters, Part(layer.state, _STATES.get(layer.state, "dim"))]


def _sum(layers: Sequence[Layer]) -> list[Cell]:
    """All parameters, and what of them is trained: ``all frozen``, ``all trained`` or ``20,490 trained``."""
    total = sum(r.parameters for r in layers)
    trained = sum(r.parameters for r in layers if r.state == "trained")
    share = "all frozen" if not trained else "all trained" if trained == total else f"{count(trained)} trained"
    return [Part("parameters in all", "dim"), "", count(total), Part(share, "dim")]
