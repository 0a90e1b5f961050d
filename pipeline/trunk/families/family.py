"""What a family of networks can say of each of its networks, and the family of a trunk's name."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import nn

from pipeline.base.errors import ConfigError
from pipeline.base.spelling import option
from pipeline.trunk.families import FAMILIES, parted
from pipeline.trunk.identity import Transform

CLASSES = 1000  # of a network that is built for its trunk alone


@dataclass(frozen=True)
class Stage:
    """A stretch of a network: ``parameters`` are their names in it, in its order."""

    name: str
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Anatomy:
    """What a whole network consists of, in its own names.

    Attributes:
        classifier: the linear layer that gives the logits.
        dim: how many features go into it.
        stages: all other parameters, from the image up.
        no_decay: parameters of more than one dimension that are no weights of a product (position embeddings).
        layers: what the features may be of, by the words of ``--layer``: the last stage's, then those of the stage
            before it.
    """

    classifier: str
    dim: int
    stages: tuple[Stage, ...]
    no_decay: frozenset[str] = frozenset()
    layers: tuple[str, str] = ("last", "previous")


@dataclass(frozen=True)
class WeightsFile:
    """Where a set of weights that has a name is to be had.

    ``url``, or a ``repository`` of the Hugging Face Hub; ``sha256`` is the beginning of the file's, where it is known.
    The first of ``filenames`` that there is holds the weights.
    """

    filenames: tuple[str, ...]
    url: str = ""
    repository: str = ""
    revision: str | None = None
    sha256: str = ""


@dataclass(frozen=True)
class Entry:
    """A set of weights by its explicit name: its file (None where there is none), and the transform it learned with.

    ``missing`` says what that transform has and ours has not.
    """

    name: str
    transform: Transform
    file: WeightsFile | None
    missing: str = ""


class Family(Protocol):
    """A file of this folder, its functions at module level. ``name`` is a network's, without the family's prefix."""

    def names(self) -> Sequence[str]:
        """Its networks."""

    def known(self, name: str) -> bool:
        """Whether there is such a network."""

    def entries(self, name: str) -> Sequence[str]:
        """The explicit names of the weights of a network, the best first."""

    def entry(self, name: str, weights: str | None) -> Entry:
        """The weights of that explicit name; None: the best, or what the network's name says.

        Raises:
            KeyError: there are none of that name.
        """

    def build(self, name: str, *, num_classes: int, image_size: int, pretrained: bool) -> nn.Module:
        """The network with random numbers drawn from torch's generator, for square images of ``image_size`` px.

        ``pretrained`` says that weights will be loaded that were trained: they may want another forward pass.
        """

    def code(self, name: str, *, num_classes: int, image_size: int, pretrained: bool) -> tuple[str, str]:
        """The module to import, and the expression that gives what :meth:`build` gives, without this package."""

    def load(
        self, name: str, state: Mapping[str, torch.Tensor], *, image_size: int
    ) -> tuple[nn.Module, Mapping[str, torch.Tensor]]:
        """A network on the CPU for these tensors, and the tensors under its own names; they are not loaded yet.

        The classifier is of the tensors' own number of classes, or of CLASSES where they have none. The network's own
        numbers mean nothing: all of them are overwritten.
        """

    def anatomy(self, name: str, model: nn.Module) -> Anatomy:
        """What ``model``, whole, consists of.

        Raises:
            ConfigError: it has no linear classifier.
        """


def family_of(trunk: str) -> tuple[Family, str]:
    """A trunk's family, and its name there.

    Raises:
        ConfigError: no such network, or its library is not installed.
    """
    prefix, name = parted(trunk)
    try:
        family = cast(Family, importlib.import_module(f"{__package__}.{FAMILIES[prefix]}"))
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{option('trunk', trunk)} needs the package {error.name}: pip install {error.name}, or give a name of "
            "torchvision's"
        ) from error
    if not family.known(name):
        names = [p + n for p, n in ((prefix, n) for n in family.names())]
        near = difflib.get_close_matches(trunk, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        where = "torchvision" if not prefix else prefix.rstrip(":")
        raise ConfigError(
            f"{option('trunk', trunk)} is not known: {hint}{where} has {len(names)} networks, such as "
            f"{', '.join(names[:3])}; other libraries by their prefix: {', '.join(p for p in FAMILIES if p)}"
        )
    return family, name


def skeleton(family: Family, name: str, *, num_classes: int, image_size: int) -> nn.Module:
    """The network as for pretrained weights, without numbers where it can be made so: drawing them takes time."""
    try:
        with torch.device("meta"):
            return family.build(name, num_classes=num_classes, image_size=image_size, pretrained=True)
    except (NotImplementedError, RuntimeError):  # some compute with tensors while they are made
        with torch.random.fork_rng(devices=[]):
            return family.build(name, num_classes=num_classes, image_size=image_size, pretrained=True)


def anatomy_of(trunk: str, model: nn.Module) -> Anatomy:
    """What the whole network ``model`` of that trunk consists of.

    Raises:
        ConfigError: it has no linear classifier.
    """
    family, name = family_of(trunk)
    return family.anatomy(name, model)


def require_linear(trunk: str, found: object, where: str | Path) -> nn.Linear:
    """The classifier, if it is a linear layer.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(found, nn.Linear):
        kind = "none" if found is None or isinstance(found, nn.Identity) else f"{where}, a {type(found).__name__}"
        raise ConfigError(
            f"{option('trunk', trunk)} has no linear classifier that a head could take the place of (it has "
            f"{kind}): give "
            "another network"
        )
    return found
