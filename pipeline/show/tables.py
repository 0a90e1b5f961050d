"""Tables and curves that more than one stage shows, made from plain figures under their names.

Knows rows of figures; nothing of where they come from, and chooses nothing: the order of a ranking is its caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.base.values import Column, Curve, Part, Table, figures
from pipeline.base.words import ABSENT, chosen_of, count, many, percent, points, points_between, seconds, significant

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


def metric_name(metric: str) -> str:
    """A metric as people write it."""
    return "log-loss" if metric == "log_loss" else metric.replace("_", " ")


def penalty_path(Cs: Sequence[float], series: Mapping[str, Sequence[float]], metric: str, chosen: float) -> Curve:
    """A metric against the penalty, and the C that was chosen, by the last of the series."""
    shares = metric != "log_loss"
    chose, values = list(series.items())[-1]
    best = values[list(Cs).index(chosen)]
    return Curve(
        series,
        x=Cs,
        x_label="C (weaker penalty to the right)",
        y_label=metric_name(metric),
        title=f"{metric_name(metric)} against C: chosen C = {chosen:.3g}, "
        f"{chose} {percent(best) if shares else significant(best)}",
        chosen=chosen,
        shares=shares,
        log_x=True,
    )


def before_and_after(verdict: Mapping[str, Any]) -> Table:
    """Accuracy, time and features before and after fine-tuning; intervals are 95 %, of the same images in pairs.

    ``verdict`` has ``val test seconds head_seconds factor drift candidates`` as a fine-tuned run's record has them. Of
    val's figures it is said that the best was chosen by them.
    """
    rows = []
    for c in (verdict["val"], verdict["test"]):
        if c is not None:
            ends = points_between(c["low"], c["high"])
            chosen = f", best of {verdict['candidates']}: optimistic" if c is verdict["val"] else ""
            label = f"{c['split'].capitalize()} accuracy ({many(c['n'], 'image')}{chosen})"
            rows.append([label, percent(c["before"]), percent(c["after"]), points(c["after"] - c["before"]), ends])
    factor = ABSENT
    if (times := verdict["factor"]) is not None:
        factor = f"{significant(times, 2) if times < 10 else count(round(times))} times"
    rows.append(["Training time", seconds(verdict["head_seconds"]), seconds(verdict["seconds"]), factor, ABSENT])
    for split, cosine in verdict["drift"].items():
        rows.append([f"Features, cosine with cached ({split})", "1", significant(cosine, 3), ABSENT, ABSENT])
    columns = [Column(), *figures("Head", "Fine-tuned", "Difference", "95 % interval")]
    return Table(columns, rows, "Was it worth it?")
