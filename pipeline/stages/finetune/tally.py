"""The loss and the right answers of the last steps, which stay on the device until somebody asks.

To ask makes the program wait for a GPU, and the GPU then for the program: so it is done once in several steps. A step's
figures have a place of their own by its number, so that where one was interrupted changes no sum, to the last bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from pipeline.base.machine import kind_of_device
from pipeline.base.ranks import Ranks

# Steps between two looks at the figures. A CPU has them at once.
STEPS = {"cpu": 1, "cuda": 8}


class Step(NamedTuple):
    """A step's summed loss, right answers and images, of all processes."""

    loss: float
    hits: float
    images: int


class Tally:
    """The figures of the steps since the last reading, at most ``every`` of them."""

    def __init__(self, device: str) -> None:
        self.every = STEPS[kind_of_device(device)]
        # float64, in which float32 sums of pieces are added as they always were.
        self._figures = torch.zeros(self.every, 2, dtype=torch.float64, device=device)
        self._places = [row.unbind() for row in self._figures]
        self._images: dict[int, int] = {}  # of the steps that are not read yet, by their number

    @property
    def unread(self) -> int:
        """How many steps were begun since the last reading."""
        return len(self._images)

    def begin(self, number: int, images: int) -> None:
        """The step of this number in its epoch begins, of so many images over all processes."""
        self._images[number] = images
        self._loss, self._hits = self._places[number % self.every]

    def add(self, losses: torch.Tensor, right: torch.Tensor) -> None:
        """A piece of the step: each row's loss (n,) float32, and whether it was right (n,) bool."""
        self._loss.add_(losses.sum())
        self._hits.add_(right.sum())

    def read(self, ranks: Ranks, *, stop: bool) -> tuple[list[Step], bool]:
        """The steps since the last reading, in order, and whether any process was asked to ``stop``.

        Raises:
            PipelineError: another process stopped.
        """
        mine = [*self._figures.flatten().tolist(), float(stop), 0.0]  # by twos
        total = ranks.added(np.array(mine)).tolist()
        steps = []
        for number, images in self._images.items():
            at = 2 * (number % self.every)
            steps.append(Step(total[at], total[at + 1], images))
        self._figures.zero_()
        self._images.clear()
        return steps, bool(total[-2])
