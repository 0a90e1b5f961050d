"""A network's forward pass as a graph of calls of its modules, by ``torch.fx``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import fx, nn


class Tracer(fx.Tracer):
    """Follows what a network does with one batch of images; what else it could be given keeps its default."""

    def __init__(self, is_leaf: Callable[[nn.Module, str], bool]) -> None:
        """``is_leaf`` says of a module and its name that it is not gone into."""
        super().__init__()
        self._is_leaf = is_leaf

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """As it was told."""
        return self._is_leaf(m, module_qualified_name)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """The network, a placeholder for the images, and the defaults of everything else."""
        fn, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        parameters = list(inspect.signature(root_fn).parameters.values())
        for at, (parameter, value) in enumerate(zip(parameters, args, strict=False)):
            if at > 1 and isinstance(value, fx.Proxy) and parameter.default is not inspect.Parameter.empty:
                self.graph.erase_node(value.node)
                args[at] = parameter.default
        return fn, args
