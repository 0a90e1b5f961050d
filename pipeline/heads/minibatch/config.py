"""Settings of a minibatch head. Imports no torch, so that the command line can read the defaults quickly."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.base.errors import ConfigError
from pipeline.heads.kinds import KINDS, readers

LEARNING_RATES = {"adamw": 1e-3, "sgd": 1e-2}  # by solver, where none is given: of WIDE inputs
WIDE = 2048
SOLVERS = tuple(LEARNING_RATES)
SCHEDULES = ("cosine", "constant")

LEAST = {"epochs": 1, "batch_size": 1, "width": 1, "depth": 1, "seed": 0}
NOT_BELOW_ZERO = ("weight_decay", "mixup")
SHARES = ("momentum", "label_smoothing", "dropout")


@dataclass(frozen=True)
class MinibatchConfig:
    """One head's settings.

    ``seed`` is the head's own: of its first weights, dropout and mixup. ``order_seed`` is of the rows' order; None
    takes ``seed``. Heads of one pass see the same batches, so that many seeds train in one pass where ``order_seed``
    is given, and in a pass for each seed where it is not. ``patience`` counts epochs without a better val figure
    before the head stops, None never.
    """

    kind: str = "linear"  # of KINDS
    lr: float | None = None  # None: by solver and width, see with_rate
    weight_decay: float = 1e-2
    epochs: int = 30
    batch_size: int = 256
    solver: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["cosine", "constant"] = "cosine"
    momentum: float = 0.9
    label_smoothing: float = 0.0
    mixup: float = 0.0  # alpha of Beta(alpha, alpha), 0 = off; arXiv 1710.09412
    width: int = 512  # mlp: units of a hidden layer
    depth: int = 1  # mlp: hidden layers
    dropout: float = 0.0  # mlp: of the hidden units
    scale: float = 16.0  # cosine: what the cosines are multiplied by at the start; it is learned
    seed: int = 0
    order_seed: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that are not legal."""
        for name, legal in (("kind", tuple(KINDS)), ("solver", SOLVERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in legal:
                raise ConfigError(f"{name} {getattr(self, name)!r} is not known: choose from {', '.join(legal)}")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        for name, value in (("lr", self.lr), ("scale", self.scale)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} is {value}: it must be above 0 and finite")
        for name in NOT_BELOW_ZERO:
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least 0 and finite")
        for name in SHARES:
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least 0 and below 1")
        if self.dropout and self.kind not in readers("dropout"):
            with_units = ", ".join(readers("dropout"))
            raise ConfigError(
                f"dropout is {self.dropout} for kind {self.kind}: only {with_units} has hidden units, leave it at 0"
            )
        if self.order_seed is not None and self.order_seed < 0:
            raise ConfigError(f"order_seed is {self.order_seed}: it must be at least 0, or None for that of seed")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"patience is {self.patience}: it must be at least 1, or None for no early stop")

    def with_rate(self, widest: int) -> MinibatchConfig:
        """The same with a learning rate, for layers of at most ``widest`` inputs.

        The one given, or LEARNING_RATES times sqrt(WIDE / widest): a step that moves every weight by as much moves a
        sum over n inputs by about sqrt(n) times that.
        """
        rate = LEARNING_RATES[self.solver] * math.sqrt(WIDE / widest)
        return self if self.lr is not None else replace(self, lr=rate)

    @property
    def order(self) -> int:
        """The seed of the rows' order."""
        return self.seed if self.order_seed is None else self.order_seed
