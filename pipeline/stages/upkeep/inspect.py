"""`pipeline inspect`: what a cache holds and where it comes from; or, of two caches, where they differ."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.base.items import SPLITS
from pipeline.base.words import count, size
from pipeline.base.workspace import Workspace
from pipeline.show.tables import difference_table, settings_panel
from pipeline.stages.upkeep.settings import InspectSettings
from pipeline.store import Cache, difference
from pipeline.store.find import find_cache


@dataclass(frozen=True)
class InspectReport:
    """What each cache holds, and of two the fields in which they differ."""

    caches: list[dict[str, Any]]
    difference: dict[str, list[Any]] | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"caches": self.caches, "difference": self.difference}


def inspect(settings: InspectSettings, desk: Workspace) -> InspectReport:
    """Show one cache, or the difference of two.

    Raises:
        CacheError: a cache is missing or damaged.
    """
    opened = [find_cache(c, desk) for c in settings.caches]
    plain = [_contents(c) for c in opened]
    if len(opened) == 1:
        desk.watch.show(settings_panel(_lines(opened[0], plain[0]), title=str(opened[0].path)))
        return InspectReport(plain, None)
    fields = difference(_comparable(opened[0]), _comparable(opened[1]))
    if fields:
        desk.watch.show(difference_table(fields, [str(c.path) for c in opened]))
    else:
        desk.watch.say("the two caches hold the same rows, labels and splits, made with the same settings")
    return InspectReport(plain, {name: [left, right] for name, left, right in fields})


def _contents(cache: Cache) -> dict[str, Any]:
    good = cache.states == 1
    by_class = {
        name: {
            split: int(((cache.labels == c) & (cache.splits == s) & good).sum()) for s, split in enumerate(SPLITS) if s
        }
        for c, name in enumerate(cache.classes)
    }
    return {
        "path": str(cache.path),
        "key": cache.key,
        "rows": len(cache),
        "dim": cache.dim,
        "dtype": cache.dtype.name,
        "bytes": os.stat(cache.path).st_size,
        "splits": cache.counts(),
        "failed": cache.failed(),
        "unlabelled": int(np.sum((cache.labels < 0) & good)),
        "classes": by_class,
        "created": cache.created,
        "versions": cache.versions,
        "about": cache.about,
        "provenance": cache.provenance,
    }


def _lines(cache: Cache, plain: dict[str, Any]) -> dict[str, object]:
    """The view's lines: name -> text."""
    splits = ", ".join(f"{count(n)} {name}" for name, n in plain["splits"].items() if n)
    failed = ", ".join(f"{n} {kind}" for kind, n in plain["failed"].items()) or "none"
    shown = [f"{name} ({sum(per.values()):,})" for name, per in plain["classes"].items()][:20]
    more = f", and {len(cache.classes) - 20} more" if len(cache.classes) > 20 else ""
    return {
        "rows": f"{count(plain['rows'])} x {plain['dim']} {plain['dtype']}, {size(plain['bytes'])}",
        "splits": splits,
        "failed": failed,
        "classes": f"{len(cache.classes)}: {', '.join(shown)}{more}",
        "source": plain["about"]["source"],
        "root": plain["about"]["root"],
        "split notes": "; ".join(plain["about"]["notes"]) or "as the source gives them",
        "pretrained": "yes" if plain["about"]["pretrained"] else "no: random or unknown weights",
        **{name: value for name, value, _ in difference(cache.provenance, {})},
        "key": plain["key"],
        "created": plain["created"],
        "versions": ", ".join(f"{k} {v}" for k, v in plain["versions"].items()),
    }


def _comparable(cache: Cache) -> dict[str, Any]:
    """What two caches are compared in: everything but where and when."""
    plain = _contents(cache)
    kept = ("rows", "dim", "splits", "failed", "unlabelled", "classes", "provenance", "key")
    return {**{name: plain[name] for name in kept}, "content": cache.content}
