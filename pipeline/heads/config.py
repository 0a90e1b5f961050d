"""Settings of a minibatch head. Imports no torch, so that the command line can read the defaults quickly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError

SOLVERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class MinibatchConfig:
    """One head's settings; ``patience`` counts epochs without a better val figure before it stops, None never."""

    lr: float = 1e-3
    weight_decay: float = 1e-2
    epochs: int = 30
    batch_size: int = 256
    solver: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["cosine", "constant"] = "cosine"
    momentum: float = 0.9
    label_smoothing: float = 0.0
    seed: int = 0
    patience: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that are not legal."""
        for name, legal in (("solver", SOLVERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in legal:
                raise ConfigError(f"{name} {getattr(self, name)!r} is not known: choose from {', '.join(legal)}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ConfigError(f"lr is {self.lr}: it must be above 0 and finite")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ConfigError(f"weight_decay is {self.weight_decay}: it must be at least 0 and finite")
        for name in ("momentum", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least 0 and below 1")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}: it must be at least 0")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"patience is {self.patience}: it must be at least 1, or None for no early stop")
