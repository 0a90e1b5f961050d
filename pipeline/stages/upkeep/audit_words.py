"""What an audit says of a cache's images: copies, near copies, labels that look wrong, small classes.

Pure functions of what was found, to lines and tables.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.base.spelling import option
from pipeline.base.values import Cell, Column, Part, Table, figures
from pipeline.base.words import chosen_of, count, many, named, percent, seconds
from pipeline.heads.choice import PENALTIES, at_the_end
from pipeline.stages.upkeep.results import AuditReport, Labels, Pair, Place, Suspect
from pipeline.stages.upkeep.settings import AuditSettings
from pipeline.stages.upkeep.words import LISTED, kinds

BALANCE_ROWS = 30


def audited(report: AuditReport) -> list[Table | str]:
    """The audit's tables and lines, in the order in which they are shown; not its findings."""
    shared, near = report.copies, report.near
    found: list[Table | str] = [balance(report)]
    if shared.leaks:
        found.append(copies(shared.leaks, "the same image in more than one split"))
    if shared.conflicts:
        found.append(copies(shared.conflicts, "the same image under different labels"))
    if near is not None and near.count:
        title = f"near duplicates, cosine >= {near.threshold:g}: {many(near.count, 'pair')}"
        found.append(pairs(near.pairs, near.count, title))
    elif near is not None:
        found.append(f"no near duplicates with a cosine of {near.threshold:g} or more")
    for of, labels in judgements(report):
        found += judged(labels, of)
    if report.suspects is not None:
        found.append(f"suspected labels with the classes proposed, for `pipeline relabel` -> {report.suspects}")
    if report.failed:
        found.append(kinds({"failed": [f"{path}: {why}" for path, why in report.failed.items()]}, "failed images"))
    if shared.within:
        found.append(
            f"{many(shared.within, 'surplus row')}: copies of an image inside its own split weigh it more often"
        )
    return found


def judged(found: Labels, of: str) -> list[Table | str]:
    """What is said of the labels of some splits: the estimate, the pairs of classes, the suspects."""
    low, high = found.interval
    by = (f"{many(found.folds, 'fold')}, " if found.folds else "") + f"C {found.C:.3g}"
    accuracy = percent(found.accuracy) + chosen_of(found.chosen_from)
    lines: list[Table | str] = [
        f"labels: of {many(found.rows, f'{of} label')} at most about {percent(found.share)} ({percent(low)} to "
        f"{percent(high)}) are wrong: it counts what the heads confuse, too ({by}; accuracy {accuracy})"
    ]
    if found.chosen_from > 1 and (end := at_the_end(PENALTIES, found.C)):
        lines.append(f"C {found.C:.3g} is the {end} that was tried: {option('C')} takes one beyond")
    if found.seen:
        lines.append(f"not judged, being in train or val, too: {many(found.seen, f'{of} row')}")
    if (trial := found.trial) is not None:
        lines.append(
            f"tried on {many(trial.flipped, 'label')} ({percent(trial.flipped / found.rows)}) flipped by hand: "
            f"{percent(trial.found / trial.flipped)} of them were among the {count(trial.listed)} suspects then, and "
            f"{percent(trial.among_first / trial.flipped)} of the first {count(trial.flipped)} suspects were they"
        )
    if found.omitted:
        lines.append(f"not judged, having too few images: {named(found.omitted)}")
    if found.pairs:
        lines.append(_pairs_of_classes(found.pairs))
    if found.suspects:
        lines.append(suspected(found.suspects, of))
    return lines


def _pairs_of_classes(found: Sequence[Pair], limit: int = LISTED) -> Table:
    rows = [[pair.label, pair.other, count(pair.counted), count(round(pair.estimated))] for pair in found[:limit]]
    columns = [Column("Label", fit="name"), Column("Seems to be", fit="name"), *figures("Sure", "Estimated")]
    caption = f"the first {limit} of {count(len(found))} pairs" if len(found) > limit else ""
    return Table(columns, rows, "images by label and by the class that they seem to be of", caption)


def suspected(found: Sequence[Suspect], of: str, limit: int = LISTED) -> Table:
    """The most suspect labels: what they seem to be, and the image most alike where its label is another."""
    rows: list[list[Cell]] = []
    for number, one in enumerate(found[:limit], start=1):
        near = "" if one.alike is None else f"{one.alike.label}: {one.alike.path} ({one.alike.cosine:.3f})"
        rows.append(
            [
                str(number),
                one.path,
                one.label,
                Part(one.proposed, "best"),
                percent(one.self_confidence),
                Part(near, "dim"),
            ]
        )
    columns = [
        Column(right=True, role="dim"),
        Column("Image", fit="fold"),
        Column("Label", fit="name"),
        Column("Seems", fit="name"),
        *figures("P(label)"),
        Column("Most alike, and labelled", fit="fold"),
    ]
    caption = f"the first {limit} of {count(len(found))}" if len(found) > limit else ""
    return Table(columns, rows, f"{many(len(found), 'suspected label')} of {of}", caption)


def comparing(rows: int, dimensions: int | None, took: float) -> str:
    """What is about to be compared, in which way, and how long that may take."""
    way = "in full" if dimensions is None else f"by a bound in {dimensions} dimensions, which misses none"
    compared = f"{count(rows * (rows - 1) // 2)} pairs of rows are compared, {way}"
    return f"{compared}: about {seconds(took)} (Ctrl-C stops it; nothing is written)"


def balance(report: AuditReport, limit: int = BALANCE_ROWS) -> Table:
    """Images of each class in each split, and the class's share of the first; of many classes the smallest ones."""
    classes, caption = list(report.classes.items()), ""
    splits = list(next(iter(report.classes.values()), {}))  # the same of every class
    first = splits[0] if splits else "train"
    whole = sum(counts[first] for _, counts in classes)
    if len(classes) > limit:
        classes = sorted(classes, key=lambda r: (r[1][first], r[0]))[:limit]
        caption = f"the {limit} smallest classes in {first}, of {count(len(report.classes))}"
    rows: list[list[Cell]] = [
        [name, *(_images(counts[s]) for s in splits), percent(counts[first] / whole if whole else None)]
        for name, counts in classes
    ]
    ratio = f", largest class {report.imbalance:.1f} times the smallest" if report.imbalance else ""
    rest = f", {report.unlabelled:,} unlabelled" if report.unlabelled else ""
    columns = [Column("Class", fit="name"), *figures(*(s.capitalize() for s in splits), f"Share of {first}")]
    return Table(columns, rows, f"{report.cache}: {many(report.rows, 'row')}{rest}{ratio}", caption)


def copies(groups: Sequence[Sequence[Place]], title: str, limit: int = LISTED) -> Table:
    """Groups of images that are one and the same, a number for each group; at most ``limit`` groups."""
    rows: list[list[Cell]] = []
    for number, group in enumerate(groups[:limit], start=1):
        rows += [["" if i else str(number), *place] for i, place in enumerate(group[:limit])]
        if len(group) > limit:
            rows.append(["", "", "", Part(f"and {count(len(group) - limit)} more", "dim")])
    caption = f"the first {limit} of {count(len(groups))}" if len(groups) > limit else ""
    columns = [Column(right=True, role="dim"), Column("Split", fit="name"), Column("Class", fit="name")]
    return Table([*columns, Column("Image", fit="fold")], rows, title, caption)


def pairs(near: Sequence[tuple[float, Place, Place]], total: int, title: str, limit: int = LISTED) -> Table:
    """Pairs of images with the cosine of their features, in the order given; ``total`` is how many there are."""
    rows = [[f"{cosine:.4f}", left[0], left[2], right[0], right[2]] for cosine, left, right in near[:limit]]
    shown = min(limit, len(near))
    ends = [Column("Split"), Column("Image", fit="fold")]
    caption = f"the first {shown} of {count(total)}" if total > shown else ""
    return Table([*figures("Cosine"), *ends, *ends], rows, title, caption)


def _images(n: int) -> Part:
    return Part(count(n), "" if n else "bad")


def findings(report: AuditReport, settings: AuditSettings) -> list[str]:
    """What speaks against training on them, a line for each kind."""
    copies, near = report.copies, report.near
    across, conflicting = (near.across_splits, near.conflicting) if near else (0, 0)
    droppable = sum(any(p[0] == "train" for p in group) for group in copies.leaks)
    cure = f" ({option('drop_leaks', True)} takes them out of train)" if droppable else ""
    found = [
        (len(copies.leaks), f"{many(len(copies.leaks), 'image')} in more than one split{cure}"),
        (len(copies.conflicts), f"{many(len(copies.conflicts), 'image')} under different labels"),
        (
            copies.in_train,
            f"{many(copies.in_train, 'surplus train row')}: copies of another train image, which they weigh more often",
        ),
        (
            across,
            f"{many(across, 'pair')} of near duplicates (cosine >= {settings.near}) across splits",
        ),
        (
            conflicting,
            f"{many(conflicting, 'pair')} of near duplicates with different labels",
        ),
        *((1, f"no {split} images of {named(names)}") for split, names in report.empty.items()),
        *((1, f"fewer than {settings.tiny} {split} images of {named(names)}") for split, names in report.tiny.items()),
        (len(report.failed), f"{many(len(report.failed), 'failed image')} without features"),
        *((len(labels.suspects), suspicion(labels, of, settings)) for of, labels in judgements(report)),
    ]
    return [words for n, words in found if n]


def judgements(report: AuditReport) -> list[tuple[str, Labels]]:
    """What was judged of which splits."""
    found = report.labels
    if found is None:
        return []
    return [("train and val", found), *([] if found.test is None else [("test", found.test)])]


def suspicion(found: Labels, of: str, settings: AuditSettings) -> str:
    """The finding of suspected labels."""
    names = f" ({option('suspects', 'FILE.csv')} names them for `pipeline relabel`)"
    look = "looks" if len(found.suspects) == 1 else "look"
    return f"{many(len(found.suspects), f'{of} label')} {look} wrong{'' if settings.suspects is not None else names}"
