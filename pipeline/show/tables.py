"""Tables that more than one stage shows, made from plain figures under their names.

Knows rows of figures; nothing of where they come from, and chooses nothing: the order of a ranking is its caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.base.values import Column, Part, Table, figures
from pipeline.base.words import chosen_of, count, percent, seconds, significant

PER_CLASS_ROWS = 30


def results_table(results: Sequence[Mapping[str, Any]], title: str = "") -> Table:
    """Methods side by side: ``name``, and where there are any ``val test macro_f1 seconds note``.

    The best on val is marked; none where there is no val, since test must not choose. ``chosen_from`` says of how many
    candidates val chose this one: of more than one its val figure is called optimistic.
    """
    known: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
        ("Val", "val", percent),
        ("Test", "test", percent),
        ("Macro-F1", "macro_f1", percent),
        ("Time", "seconds", seconds),
    )
    shown = [k for k in known if any(r.get(k[1]) is not None for r in results)]
    notes = any(r.get("note") for r in results)
    best = _best([r.get("val") for r in results])
    rows = []
    for i, r in enumerate(results):
        cells = [r["name"], *(write(r.get(name)) + (_chosen(r) if name == "val" else "") for _, name, write in shown)]
        row = [Part(cell, "best" if i in best else "") for cell in cells]
        rows.append([*row, Part(r.get("note") or "", "dim")] if notes else row)
    columns = [Column("Method", fit="name"), *figures(*(heading for heading, _, _ in shown))]
    return Table([*columns, Column(fit="wrap")] if notes else columns, rows, title)


def _chosen(result: Mapping[str, Any]) -> str:
    """What is to be said beside a figure that its row was chosen by: the best of many is better by luck, too."""
    return "" if result.get("val") is None else chosen_of(result.get("chosen_from") or 1)


def _best(scores: Sequence[float | None]) -> set[int]:
    """Places of the highest score, ties included; none where all are absent."""
    top = max((s for s in scores if s is not None and s == s), default=None)
    return {i for i, s in enumerate(scores) if s == top} if top is not None else set()


def per_class_table(per_class: Sequence[Mapping[str, Any]], title: str = "", limit: int = PER_CLASS_ROWS) -> Table:
    """Rows with ``name precision recall f1 support`` and perhaps ``auroc``; beyond ``limit`` those of lowest F1."""
    shown, caption = list(per_class), ""
    if len(shown) > limit:
        shown = sorted(shown, key=lambda r: (r["f1"], r["name"]))[:limit]
        caption = f"the {limit} classes with the lowest F1, of {count(len(per_class))}"
    ranked = any(r.get("auroc") is not None for r in shown)
    rows = []
    for r in shown:
        shares = [percent(r["precision"]), percent(r["recall"]), percent(r["f1"])]
        auroc = [significant(r.get("auroc"))] if ranked else []
        rows.append([str(r["name"]), *shares, *auroc, count(int(r["support"]))])
    headings = ("Precision", "Recall", "F1", *(["AUROC"] if ranked else []), "Images")
    return Table([Column("Class", fit="name"), *figures(*headings)], rows, title, caption)
