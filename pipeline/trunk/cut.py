"""A network cut in two before its last stage: what comes before, once; what comes after, in every epoch.

The cut is found in the network's own forward pass, traced by ``torch.fx`` down to the modules that lie in one stage
(Reed et al. 2022, arXiv 2112.08429). Both halves share the network's modules, under its names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.func import functional_call

from pipeline.base.errors import ConfigError
from pipeline.base.spelling import option
from pipeline.trunk.families.family import Anatomy
from pipeline.trunk.tracing import Tracer

_HEAD = -1  # the number that stands for the classifier where stages are counted from 0


def halves(network: nn.Module, anatomy: Anatomy) -> tuple[nn.Module, nn.Module]:
    """The network up to its last stage and from there on, in its present mode: ``after(before(x))`` is ``network(x)``.

    ``network`` is whole or beheaded. What ``before`` gives is one tensor of any shape that begins with the batch.

    Raises:
        ConfigError: the network cannot be cut there, with the reason.
    """
    stage_of = _stages_of_modules(anatomy)
    # A module is gone into only where it holds parameters of several stages.
    tracer = Tracer(lambda _, name: len(stage_of.get(name, ())) <= 1)
    try:
        graph = tracer.trace(network)
    except Exception as error:  # what a forward pass that cannot be traced raises cannot be listed
        raise ConfigError(f"{_refused(network)}: it cannot be traced ({' '.join(str(error).split())[:120]})") from error
    last = len(anatomy.stages) - 1
    nodes = list(graph.nodes)
    at = next((i for i, node in enumerate(nodes) if last in _stages_in(node, stage_of)), None)
    if at is None:
        raise ConfigError(f"{_refused(network)}: it does not run its last stage, {anatomy.stages[last].name}")
    crossing = _crossing(nodes[:at], nodes[at:])
    if [node.op for node in crossing] == ["placeholder"]:
        raise ConfigError(f"{_refused(network)}: nothing comes before it")
    if len(crossing) != 1:
        what = ", ".join(str(node) for node in crossing)
        raise ConfigError(f"{_refused(network)}: more than one thing goes over the cut ({what})")
    before, after = _front(nodes[:at], crossing[0]), _back(nodes[at:], crossing[0])
    return fx.GraphModule(network, before), fx.GraphModule(network, after)


def _refused(network: nn.Module) -> str:
    return f"a {type(network).__name__} cannot be cut before its last stage"


def _stages_of_modules(anatomy: Anatomy) -> dict[str, set[int]]:
    """Every module's and parameter's name -> the stages that it holds parameters of."""
    found: dict[str, set[int]] = {}
    named = [(p, number) for number, stage in enumerate(anatomy.stages) for p in stage.parameters]
    for name, number in [*named, (f"{anatomy.classifier}.weight", _HEAD)]:
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            found.setdefault(".".join(parts[:length]), set()).add(number)
    return found


def _stages_in(node: fx.Node, stage_of: Mapping[str, set[int]]) -> set[int]:
    return stage_of.get(str(node.target), set()) if node.op in ("call_module", "get_attr") else set()


def _crossing(before: Sequence[fx.Node], after: Sequence[fx.Node]) -> list[fx.Node]:
    """What is computed before and used after; a parameter can be read on both sides."""
    found: dict[fx.Node, None] = {}
    earlier = {node for node in before if node.op != "get_attr"}
    for node in after:
        found.update(dict.fromkeys(n for n in node.all_input_nodes if n in earlier))
    return list(found)


def _front(nodes: Sequence[fx.Node], end: fx.Node) -> fx.Graph:
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in nodes:
        made[node] = graph.node_copy(node, made.__getitem__)
    graph.output(made[end])
    return graph


def _back(nodes: Sequence[fx.Node], start: fx.Node) -> fx.Graph:
    graph = fx.Graph()
    made = {start: graph.placeholder("maps")}

    def copied(node: fx.Node) -> fx.Node:
        if node not in made:  # a parameter that was read before the cut
            made[node] = graph.node_copy(node, copied)
        return made[node]

    for node in nodes:
        made[node] = graph.node_copy(node, copied)
    return graph


def shape_of(front: nn.Module, image_size: int) -> tuple[int, ...]:
    """The shape of what ``front`` gives for one image; it stays as it is, in the mode that it is in.

    Without computing anything, on tensors that have shapes alone, where all that the network does can be done so.

    Raises:
        What networks raise for sizes that they cannot take.
    """
    parameter = next(front.parameters())
    image = torch.empty(1, 3, image_size, image_size, device="meta", dtype=parameter.dtype)
    shapes = {name: tensor.to("meta") for name, tensor in [*front.named_parameters(), *front.named_buffers()]}
    learning = [module for module in front.modules() if module.training]
    front.eval()
    try:
        with torch.inference_mode():
            try:
                found: Any = functional_call(front, shapes, (image,))
            except Exception:  # not all can be done on shapes alone, and an error's words are to be the network's own
                found = front(torch.zeros(image.shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        for module in learning:
            module.training = True
    return tuple(found.shape[1:])


def width_axis(shape: tuple[int, ...]) -> int | None:
    """The axis of an image's width in a batch of maps of this shape; None where they are not laid out as an image."""
    if len(shape) != 3:
        return None
    if shape[1] == shape[2]:
        return 3  # (n, C, H, W)
    return 2 if shape[0] == shape[1] else None  # (n, H, W, C)


class Pooled(nn.Module):
    """The mean over places of what a front gives: maps (n, C, H, W) or (n, H, W, C), tokens (n, T, D), rows (n, D)."""

    def __init__(self, front: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.front = front
        axis = width_axis(shape)
        if axis is None and len(shape) > 2:
            raise ConfigError(
                f"{option('layer')}: the stage before the last gives {shape}, neither maps nor tokens: give last"
            )
        self._places = tuple(range(1, len(shape)))
        self._channels_first = axis == 3
        self.dim = shape[0] if self._channels_first else shape[-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (n, dim)."""
        maps: torch.Tensor = self.front(x)
        if self._channels_first:
            return nn.functional.adaptive_avg_pool2d(maps, 1).flatten(1)
        return maps.mean(dim=self._places) if self._places else maps
