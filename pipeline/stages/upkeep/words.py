"""What the commands of upkeep say: of a cache's contents, its soundness, its images, its new labels.

Pure functions of what was found, to lines and tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.items import NONE
from pipeline.base.spelling import option
from pipeline.base.values import Cell, Column, Part, Table, figures
from pipeline.base.words import ABSENT, count, few, many, percent, seconds, setting, size
from pipeline.runs.recipe import Provenance
from pipeline.runs.remarks import how_near
from pipeline.stages.upkeep.results import (
    ListedCache,
    ListedRun,
    RelabelResult,
    VerifyReport,
)
from pipeline.store import difference

LOOKED = "several"  # in the place of a figure on test
LISTED = 10
CLASSES_NAMED = 20
DECODED_SCALED = "scaled: large JPEGs were shrunk while they were decoded"


# -- inspect ----------------------------------------------------------------------------------------------------------


def contents(plain: Mapping[str, Any]) -> Table:
    """What a cache is, and what of, as the report of inspect has it: what matters first."""
    classes, about, made_by = plain["classes"], plain["about"], plain["provenance"]
    splits = ", ".join(f"{count(n)} {name}" for name, n in plain["splits"].items() if n)
    failed = ", ".join(f"{n} {kind}" for kind, n in plain["failed"].items())
    weights = made_by["weights"]["name"] + ("" if about["pretrained"] else " (random or unknown: not pretrained)")
    pairs = {
        "features": f"{count(plain['rows'])} rows of {plain['dim']} {plain['dtype']}, {size(plain['bytes'])}",
        "splits": splits,
        **({"failed": f"{failed} (no features)"} if failed else {}),
        "classes": count(len(classes)) if classes else "none: images without labels",
        **({"unlabelled": many(n, "row")} if classes and (n := plain.get("unlabelled")) else {}),
        "source": about["source"],
        **_precision(made_by, about.get("agreement")),
        **({"computed on": "; ".join(map(_gpu, about["gpus"]))} if "gpus" in about else {}),
        **({"decoding": DECODED_SCALED} if "scaled" in made_by.get("decode", {}) else {}),
        "trunk": f"{made_by['trunk']['name']}, {made_by['trunk']['layer']}; weights {weights}",
        "created": plain["created"],
        "settings fingerprint": plain["key"],
    }
    return _pairs(pairs, plain["path"])


def _precision(made_by: Mapping[str, Any], agreed: Mapping[str, Any] | None) -> dict[str, str]:
    """Of features that were not computed in float32: how near they are to those."""
    return {} if agreed is None else {"precision": f"{made_by['precision']}; {how_near(agreed)}"}


def _gpu(card: Mapping[str, str]) -> str:
    words = {"capability": "compute capability", "cuda": "CUDA", "rocm": "ROCm", "cudnn": "cuDNN", "driver": "driver"}
    return f"{card['name']} ({', '.join(f'{words[name]} {card[name]}' for name in words if name in card)})"


def per_class(plain: Mapping[str, Any], limit: int = CLASSES_NAMED) -> Table:
    """How many images of each class each split has; of many classes the first."""
    classes = plain["classes"]
    splits = [name for name, n in plain["splits"].items() if n and name != "none"]
    rows = [[name, *(count(per.get(split, 0)) for split in splits)] for name, per in list(classes.items())[:limit]]
    more = f"the first {limit} of {count(len(classes))} classes" if len(classes) > limit else ""
    return Table([Column("Class", fit="name"), *figures(*(s.capitalize() for s in splits))], rows, caption=more)


def details(plain: Mapping[str, Any]) -> Table:
    """The rest of what is known of a cache, name by name: all that decides a row's numbers, and how it came about."""
    about = plain["about"]
    pairs = {
        "root": about["root"],
        "split notes": "; ".join(about["notes"]) or "as the source gives them",
        **{name: value for name, value, _ in difference(plain["provenance"], {})},
        "versions": ", ".join(f"{k} {v}" for k, v in plain["versions"].items()),
    }
    return _pairs(pairs, "All that decides a row, and where it comes from")


def _pairs(pairs: Mapping[str, Any], title: str) -> Table:
    rows = [[name.replace("_", " "), setting(value)] for name, value in pairs.items()]
    return Table([Column(role="dim"), Column(fit="fold")], rows, title)


def apart(paths: Sequence[Path]) -> list[str]:
    """Caches by their names, or by their paths where the names are the same."""
    names = [path.name.removesuffix(".h5") for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def differences(fields: Sequence[tuple[str, object, object]], names: Sequence[str]) -> Table:
    """Fields in which two caches differ, ``(field, left, right)``, under the two names; None where there is none."""
    rows = [[field, *(ABSENT if v is None else setting(v) for v in (left, right))] for field, left, right in fields]
    return Table([Column("Differs"), *(Column(name, fit="fold") for name in names)], rows)


# -- verify and relabel -----------------------------------------------------------------------------------------------


def kinds(found: Mapping[str, Sequence[str]], title: str, limit: int = LISTED) -> Table:
    """What there is of each kind: how many, and the first ``limit`` names."""
    rows: list[list[Cell]] = []
    for kind, names in found.items():
        rows += [["" if i else kind, "" if i else count(len(names)), name] for i, name in enumerate(names[:limit])]
        if len(names) > limit:
            rows.append(["", "", Part(f"and {count(len(names) - limit)} more", "dim")])
    return Table([Column(), *figures("Count"), Column(fit="fold")], rows, title)


def counted(found: Mapping[str, list[str]]) -> str:
    """How many of each kind."""
    return ", ".join(f"{len(paths):,} {name}" for name, paths in found.items())


def sound(report: VerifyReport) -> str:
    """The one plain line of a cache in which all is well."""
    good, failed = report.rows - report.failed, f", {report.failed:,} failed" if report.failed else ""
    blocks = many(report.blocks, "block")
    text = f"{report.cache} is sound: {good:,} good rows{failed}, {blocks}, all checksums hold"
    if report.sample is not None:
        s = report.sample
        text += (
            f"; {many(s.rows, 'row')} extracted afresh, which differ by at most {s.max_difference:.1e} of their "
            f"largest feature ({s.tolerance:.1e} is allowed; {s.engine})"
        )
    return text


def splits_stay(source: str, splits: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    """Said where a source gives no splits and the cache has some."""
    bare = int(((splits == NONE) & (labels >= 0)).sum())
    without = f", {many(bare, 'labelled image')} in none of them" if bare else ""
    anew = option("val_fraction")
    return f"{source} gives no splits: the images keep those of the cache{without} ({anew} divides them anew)"


def unnamed(source: str, number: int, *, dropped: bool) -> str:
    """Said where a table of ids does not name all images of the cache."""
    what = "dropped" if dropped else f"left as it is in the cache ({option('drop_missing', True)} drops it)"
    return f"not named in {source}, and so {what}: {many(number, 'image')}"


def relabelled(result: RelabelResult) -> str:
    """What became of the rows, in one line."""
    dropped = f", {len(result.dropped):,} dropped" if result.dropped else ""
    copied = f", {result.copied:,} more copies" if result.copied else ""
    counts = ", ".join(f"{n:,} {name}" for name, n in result.counts.items() if n)
    return (
        f"{many(result.rows, 'row')}: {result.relabelled:,} with another class, {result.resplit:,} in another split, "
        f"{result.renamed:,} under another path{copied}{dropped}; now {counts}, "
        f"{many(len(result.classes), 'class')}; no image went through the trunk -> {result.cache}"
    )


# -- list -------------------------------------------------------------------------------------------------------------


def run_table(rows: Sequence[ListedRun]) -> Table:
    """Runs side by side."""
    cells: list[list[Cell]] = []
    for row in rows:
        chosen = "*" if row.val is not None and row.val_chosen_from > 1 else ""
        told = " ".join(f"{name}={_short(value)}" for name, value in row.settings.items())
        val = "" if row.val is None else percent(row.val) + chosen
        looked = "" if row.scored_before is None else LOOKED
        test = looked if row.test is None else percent(row.test)
        took = "" if row.seconds is None else seconds(row.seconds)
        note = Part(f"damaged: {row.damaged}", "bad") if row.damaged else Part(row.note)
        data = row.data if row.pretrained or "random" in row.data else f"{row.data} (random)"  # default names say it
        cells.append([f"{row.number} {row.stage}", data, told, val, test, took, _when(row.when), note])
    columns = [
        Column("Run"),
        Column("Data", fit="name"),
        Column("Settings", fit="wrap"),
        *figures("Val", "Test", "Time"),
        Column("When", role="dim"),
        Column("Note", fit="wrap"),
    ]
    starred = any(row.val_chosen_from > 1 and row.val is not None for row in rows)
    caption = ["* chosen by this figure: optimistic"] if starred else []
    if any(row.test is None and row.scored_before is not None for row in rows):
        caption.append(f"{LOOKED}: several methods were scored on the test rows, and counted as one run is")
    return _filled(columns, cells, "\n".join(caption))


def made_in(made_by: Provenance) -> str:
    """How a cache's features came about, where it is not as they come about when nobody says."""
    precision = made_by["precision"]
    exact = "scaled" not in made_by.get("decode", {})
    return ", ".join([precision] * (precision != "float32") + ["decoded exactly"] * exact)


def cache_table(rows: Sequence[ListedCache]) -> Table:
    """Caches side by side."""
    cells: list[list[Cell]] = []
    for row in rows:
        splits = ", ".join(f"{count(n)} {split}" for split, n in row.splits.items() if n)
        note = Part(f"damaged: {row.damaged}", "bad") if row.damaged else Part(row.note)
        runs = "" if not row.runs else str(len(row.runs))
        cells.append(
            [
                row.name,
                row.source,
                row.made,
                splits,
                str(row.classes or ""),
                size(row.size),
                runs,
                _when(row.when),
                note,
            ]
        )
    columns = [
        Column("Cache", fit="name"),
        Column("Source", fit="fold"),
        Column("Made", fit="wrap"),
        Column("Rows", fit="wrap"),
        *figures("Classes", "Size", "Runs"),
        Column("When", role="dim"),
        Column("Note", fit="wrap"),
    ]
    return _filled(columns, cells, "")


def _filled(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], caption: str) -> Table:
    """The table without its columns in which nothing stands."""
    told = [any(cell not in ("", Part("")) for cell in column) for column in zip(*rows, strict=True)]
    kept = [[cell for cell, there in zip(row, told, strict=True) if there] for row in rows]
    return Table([column for column, there in zip(columns, told, strict=bool(rows)) if there], kept, "", caption)


def _short(value: object) -> str:
    return ",".join(map(setting, value)) if isinstance(value, list) else setting(value)


def _when(utc: str) -> str:
    """A time of a record as the clock here showed it, to the minute, or of other years the day; else as it is."""
    try:
        then = datetime.fromisoformat(utc).astimezone()
    except ValueError:
        return utc
    return then.strftime("%m-%d %H:%M" if then.year == datetime.now().year else "%Y-%m-%d")


def listed(paths: Sequence[Path]) -> str:
    """The names of files or folders, the first few."""
    return few([path.name for path in paths])


def delete(paths: Sequence[Path], n_bytes: int) -> str:
    """The question before something is deleted: where it lies, and how much it is."""
    places = ", ".join(dict.fromkeys(str(path.parent) for path in paths))
    return f"delete {listed(paths)} in {places} ({size(n_bytes)})?"


def still_needed(cache: str, runs: Sequence[str]) -> str:
    """What is lost with a cache."""
    return (
        f"{many(len(runs), 'run')} learned from {cache} ({few(runs)}): without it they predict, but cannot be "
        "evaluated or fine-tuned"
    )


def nothing_yet(place: Path, of: str) -> str:
    """That there is nothing to list."""
    how = "pipeline extract SOURCE" if of == "caches" else "pipeline train"
    return f"no {of} in {place} yet: make one with `{how}`"
