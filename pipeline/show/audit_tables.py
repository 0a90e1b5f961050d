"""Tables about what a cache holds: class balance, copies of images, lists of names.

Knows names and figures; finds nothing itself and does not judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import RenderableType
from rich.text import Text

from pipeline.base.words import count, percent, visible
from pipeline.show.tables import NAME_WIDTH, plain_table, titled

BALANCE_ROWS = 30
LISTED = 10

Place = tuple[str, str, str]
"""An image as these tables show it: its split, class and path."""


def balance_table(
    classes: Mapping[str, Mapping[str, int]], share_of: str = "train", title: str = "", limit: int = BALANCE_ROWS
) -> RenderableType:
    """Images of each class in each split, and the class's share of one split; of many classes the smallest ones."""
    rows = list(classes.items())
    caption = ""
    if len(rows) > limit:
        rows = sorted(rows, key=lambda r: (r[1].get(share_of, 0), r[0]))[:limit]
        caption = f"the {limit} smallest classes in {share_of}, of {count(len(classes))}"
    splits = list(dict.fromkeys(split for counts in classes.values() for split in counts))
    whole = sum(counts.get(share_of, 0) for counts in classes.values())
    table = plain_table()
    table.add_column("Class", no_wrap=True, overflow="ellipsis", max_width=NAME_WIDTH)
    for split in splits:
        table.add_column(split.capitalize(), justify="right", no_wrap=True)
    table.add_column(f"Share of {share_of}", justify="right", no_wrap=True)
    for name, counts in rows:
        share = percent(counts.get(share_of, 0) / whole) if whole else percent(None)
        table.add_row(Text(visible(name)), *(_figure(counts.get(s, 0)) for s in splits), share)
    return titled(table, title, caption)


def copies_table(groups: Sequence[Sequence[Place]], title: str = "", limit: int = LISTED) -> RenderableType:
    """Groups of images that are one and the same, a number for each group; at most ``limit`` groups."""
    table = plain_table()
    table.add_column("", justify="right", style="dim")
    for heading in ("Split", "Class"):
        table.add_column(heading, no_wrap=True, overflow="ellipsis", max_width=NAME_WIDTH)
    table.add_column("Image", overflow="fold")
    for number, group in enumerate(groups[:limit], start=1):
        for i, place in enumerate(group[:limit]):
            table.add_row("" if i else str(number), *(Text(visible(part)) for part in place))
        if len(group) > limit:
            table.add_row("", "", "", Text(f"and {count(len(group) - limit)} more", "dim"))
    caption = f"the first {limit} of {count(len(groups))}" if len(groups) > limit else ""
    return titled(table, title, caption)


def near_table(
    pairs: Sequence[tuple[float, Place, Place]], total: int, title: str = "", limit: int = LISTED
) -> RenderableType:
    """Pairs of images with the cosine of their features, in the order given; ``total`` is how many there are."""
    table = plain_table()
    table.add_column("Cosine", justify="right", no_wrap=True)
    for _ in range(2):
        table.add_column("Split", no_wrap=True)
        table.add_column("Image", overflow="fold")
    for cosine, left, right in pairs[:limit]:
        ends = (left[0], left[2], right[0], right[2])
        table.add_row(f"{cosine:.4f}", *(Text(visible(part)) for part in ends))
    shown = min(limit, len(pairs))
    return titled(table, title, f"the first {shown} of {count(total)}" if total > shown else "")


def names_table(kinds: Mapping[str, Sequence[str]], title: str = "", limit: int = LISTED) -> RenderableType:
    """What there is of each kind: how many, and the first ``limit`` names."""
    table = plain_table()
    table.add_column("", no_wrap=True)
    table.add_column("Count", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for kind, names in kinds.items():
        for i, name in enumerate(names[:limit]):
            table.add_row("" if i else Text(visible(kind)), "" if i else count(len(names)), Text(visible(name)))
        if len(names) > limit:
            table.add_row("", "", Text(f"and {count(len(names) - limit)} more", "dim"))
    return titled(table, title)


def _figure(n: int) -> Text:
    return Text(count(n), "" if n else "bold red")
