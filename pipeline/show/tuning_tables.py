"""Tables of a fine-tuning: what learns and how fast, and whether it was worth it.

Knows rows of figures only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.text import Text

from pipeline.base.words import ABSENT, count, percent, points, seconds, setting, significant
from pipeline.show.tables import plain_table, titled


@dataclass(frozen=True)
class GroupRow:
    """One parameter group; ``lr`` None where it is frozen."""

    name: str
    parameters: int
    lr: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class ChangeRow:
    """Accuracy on a split before and after, as shares in [0, 1], and the interval of their difference."""

    split: str
    n: int
    before: float
    after: float
    low: float
    high: float


def groups_table(rows: Sequence[GroupRow], title: str = "", caption: str = "") -> RenderableType:
    """Each group with its parameters, its highest learning rate, its weight decay, and whether it learns."""
    table = plain_table()
    table.add_column("Group", no_wrap=True)
    for name in ("Parameters", "Learning rate", "Weight decay"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for r in rows:
        state = "frozen" if r.lr is None else "trained"
        cells = (count(r.parameters), setting(r.lr), setting(r.weight_decay))
        table.add_row(Text(r.name), *cells, state, style="dim" if r.lr is None else "")
    return titled(table, title, caption)


def verdict_table(
    changes: Sequence[ChangeRow],
    *,
    head_seconds: float | None,
    tuning_seconds: float,
    drift: Mapping[str, float],
    title: str = "",
) -> RenderableType:
    """Accuracy, time and features before and after; intervals are 95 %, of the same images in pairs."""
    table = plain_table()
    table.add_column("", no_wrap=True)
    for name in ("Head", "Fine-tuned", "Difference", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for c in changes:
        ends = " to ".join(points(end).removesuffix(" points") for end in (c.low, c.high))
        label = f"{c.split.capitalize()} accuracy ({count(c.n)} images)"
        table.add_row(label, percent(c.before), percent(c.after), points(c.after - c.before), ends)
    factor = ABSENT if not head_seconds else f"{significant(tuning_seconds / head_seconds, 2)} times"
    table.add_row("Training time", seconds(head_seconds), seconds(tuning_seconds), factor, ABSENT)
    for split, cosine in drift.items():
        table.add_row(f"Features, cosine with cached ({split})", "1", significant(cosine, 3), ABSENT, ABSENT)
    return titled(table, title)
