"""Tables of a fine-tuning: what learns and how fast, and whether it was worth it.

Knows rows of figures only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.base.values import Column, Part, Table, figures
from pipeline.base.words import ABSENT, count, percent, points, seconds, setting, significant


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


def groups_table(rows: Sequence[GroupRow], title: str = "", caption: str = "") -> Table:
    """Each group with its parameters, its highest learning rate, its weight decay, and whether it learns."""
    shown = []
    for r in rows:
        cells = (r.name, count(r.parameters), setting(r.lr), setting(r.weight_decay))
        frozen = r.lr is None
        shown.append([Part(c, "dim" if frozen else "") for c in (*cells, "frozen" if frozen else "trained")])
    columns = [Column("Group"), *figures("Parameters", "Learning rate", "Weight decay"), Column()]
    return Table(columns, shown, title, caption)


def verdict_table(
    changes: Sequence[ChangeRow],
    *,
    head_seconds: float | None,
    tuning_seconds: float,
    drift: Mapping[str, float],
    title: str = "",
) -> Table:
    """Accuracy, time and features before and after; intervals are 95 %, of the same images in pairs."""
    rows = []
    for c in changes:
        ends = " to ".join(points(end).removesuffix(" points") for end in (c.low, c.high))
        label = f"{c.split.capitalize()} accuracy ({count(c.n)} images)"
        rows.append([label, percent(c.before), percent(c.after), points(c.after - c.before), ends])
    factor = ABSENT if not head_seconds else f"{significant(tuning_seconds / head_seconds, 2)} times"
    rows.append(["Training time", seconds(head_seconds), seconds(tuning_seconds), factor, ABSENT])
    for split, cosine in drift.items():
        rows.append([f"Features, cosine with cached ({split})", "1", significant(cosine, 3), ABSENT, ABSENT])
    return Table([Column(), *figures("Head", "Fine-tuned", "Difference", "95 % interval")], rows, title)
