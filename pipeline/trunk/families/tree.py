"""The stages of a network that says nothing of them, from the tree of its modules.

Modules are taken in the order in which a network declares them, which is that of its forward pass in torchvision's; the
cut (:mod:`pipeline.trunk.cut`) sees for itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from pipeline.trunk.families.family import Stage

DOMINANT = 0.88  # a module that holds so much of all parameters is a container of stages, not a stage


@dataclass(eq=False)
class _Unit:
    """A module or a parameter of its own, with the names of the parameters in it; ``matrices``: weights of products."""

    name: str
    module: nn.Module | None
    parameters: list[str] = field(default_factory=list)
    numbers: int = 0
    matrices: int = 0

    def add(self, name: str, parameter: nn.Parameter) -> None:
        self.parameters.append(name)
        self.numbers += parameter.numel()
        self.matrices += is_weight(name, parameter)


def is_weight(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is the weight of a product: a matrix or filters, not a bias, a scale or an embedding."""
    return parameter.ndim > 1 and name.endswith("weight")


def stages_of(model: nn.Module, classifier: str) -> tuple[Stage, ...]:
    """The stages of ``model`` from the image up, without its ``classifier``; each parameter is in exactly one.

    A module with several products is a stage. One product alone goes with the stage after it (downsampling) or, at the
    end, with the one before it; what comes first of that kind is the ``stem``. Norms and embeddings go with what is
    before them.
    """
    units = _units(model, classifier)
    bodies = [u for u in units if u.matrices > 1]
    if not bodies:
        bodies = [u for u in units if u.matrices] or units
    groups: list[tuple[str, list[_Unit]]] = []
    waiting: list[_Unit] = []
    for unit in units:
        if unit in bodies:
            if not groups and any(u.matrices for u in waiting):
                groups.append(("stem", waiting))
                waiting = []
            groups.append((unit.name, [*waiting, unit]))
            waiting = []
        elif groups and not unit.matrices and not waiting:
            groups[-1][1].append(unit)
        else:
            waiting.append(unit)
    groups[-1][1].extend(waiting)
    return tuple(Stage(name, tuple(p for unit in members for p in unit.parameters)) for name, members in groups)


def parts_of(model: nn.Module, classifier: str) -> list[str]:
    """The modules that a network's forward pass can be told by, in order, those without parameters too."""
    return [unit.name for unit in _opened(model, classifier) if unit.module is not None]


def _units(model: nn.Module, classifier: str) -> list[_Unit]:
    return [u for u in _opened(model, classifier) if u.parameters]


def _opened(model: nn.Module, classifier: str) -> list[_Unit]:
    """The parts of a network; a part that is the only one with several products, or nearly everything, is opened."""
    units = _parts(_Unit("", model), classifier)
    total = sum(u.numbers for u in units)
    while True:
        bodies = [u for u in units if u.matrices > 1]
        large = [u for u in units if _is_container(u) and (bodies == [u] or u.numbers > DOMINANT * total)]
        if not large:
            return units
        at = units.index(large[0])
        units[at : at + 1] = _parts(large[0], classifier)


def _is_container(unit: _Unit) -> bool:
    """Whether modules with parameters are in it."""
    inside = () if unit.module is None else unit.module.children()
    return any(True for child in inside for _ in child.parameters())


def _parts(unit: _Unit, classifier: str) -> list[_Unit]:
    assert unit.module is not None
    prefix = f"{unit.name}." if unit.name else ""
    found = []
    for name, parameter in unit.module.named_parameters(recurse=False):
        if prefix.removesuffix(".") != classifier:
            found.append(_Unit(prefix + name, None))
            found[-1].add(prefix + name, parameter)
    for name, module in unit.module.named_children():
        part = _Unit(prefix + name, module)
        for inner, parameter in module.named_parameters(prefix=prefix + name):
            if inner.rpartition(".")[0] != classifier:
                part.add(inner, parameter)
        found.append(part)
    return found
