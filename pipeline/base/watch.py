"""What a stage tells while it works. The silent form: the Python API's default.

Knows the words a stage says, not where they go; :class:`pipeline.show.terminal.console.Console` sends them to a
terminal.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from pipeline.base.schema import Count, Figure
from pipeline.base.values import Value


class Tracker:
    """Counts the units done of one long job, in silence."""

    def advance(self, n: int = 1) -> None:
        """Count ``n`` more units as done."""

    def note(self, text: str) -> None:
        """Replace the remark shown beside the count, for example ``3 failed``."""


class Watch:
    """Hears everything a stage has to say and keeps it to itself."""

    def say(self, text: str) -> None:
        """One line for the user: a note, about what is being done."""

    def warn(self, text: str) -> None:
        """One line about something that the user should look at."""

    def write(self, text: str) -> None:
        """Output that another program reads, such as CSV: as it is, also when quiet."""

    def confirm(self, question: str) -> bool:  # noqa: ARG002
        """Whether the user says yes; where nobody can be asked or answers, no."""
        return False

    def show(self, value: Value) -> None:
        """A table, a curve or the like."""

    def result(self, told: str | Value) -> None:
        """A line or a table of what the command was asked for, which stays when notes do not; else as any other."""
        if isinstance(told, str):
            self.say(told)
        else:
            self.show(told)

    def track(
        self,
        what: str,  # noqa: ARG002
        total: int,  # noqa: ARG002
        unit: str = "images",  # noqa: ARG002
        done: int = 0,  # noqa: ARG002
    ) -> AbstractContextManager[Tracker]:
        """Follow a job of ``total`` units, of which ``done`` were done before it began (a resumed job)."""
        return nullcontext(Tracker())

    def trace(self, row: TraceRow, *, of: int, step: str = "Epoch") -> None:
        """A row of the training trace, as it comes, ``of`` so many at most; ``step`` heads the first column.

        Every row comes here: which of them are shown is for who shows them to choose.
        """

    def end_trace(self) -> None:
        """The last row has come: the table is closed and the loss curve drawn."""


@dataclass(frozen=True)
class TraceRow:
    """One epoch (or iteration) of training; losses are means per image, accuracies shares in [0, 1].

    The loss of an exact head's iteration includes its penalty.
    """

    epoch: Count
    loss: Figure
    accuracy: float
    val_accuracy: float | None
    lr: float | None = None
    observation: str = ""
    val_loss: Figure | None = None
