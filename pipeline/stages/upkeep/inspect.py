"""`pipeline inspect`: what a cache holds and where it comes from; or, of two caches, where they differ."""

from __future__ import annotations

import os
from typing import Any

from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace
from pipeline.runs.recipe import about_of
from pipeline.stages.upkeep import words
from pipeline.stages.upkeep.results import InspectReport
from pipeline.stages.upkeep.settings import InspectSettings
from pipeline.store import Cache, difference
from pipeline.store.find import find_cache


def inspect(settings: InspectSettings, desk: Workspace) -> InspectReport:
    """Show one cache, or the difference of two.

    Raises:
        CacheError: a cache is missing or damaged.
    """
    opened = [find_cache(c, desk) for c in settings.caches]
    plain = [_contents(c) for c in opened]
    if len(opened) == 1:
        for table in (words.contents, *([words.per_class] if plain[0]["classes"] else ())):
            desk.watch.result(table(plain[0]))
        if settings.full:
            desk.watch.result(words.details(plain[0]))
        else:
            desk.watch.say(f"every setting, the split's notes and versions: {option('full', True)}")
        return InspectReport(plain, None)
    fields = difference(_comparable(opened[0]), _comparable(opened[1]))
    if fields:
        desk.watch.result(words.differences(fields, words.apart([c.path for c in opened])))
    else:
        desk.watch.result("the two caches hold the same rows, labels and splits, made with the same settings")
    return InspectReport(plain, {name: [left, right] for name, left, right in fields})


def _contents(cache: Cache) -> dict[str, Any]:
    by_class = {name: {s: n for s, n in per.items() if s != "none"} for name, per in cache.class_counts().items()}
    return {
        "path": str(cache.path),
        "key": cache.key,
        "rows": len(cache),
        "dim": cache.dim,
        "dtype": cache.dtype.name,
        "bytes": os.stat(cache.path).st_size,
        "splits": cache.counts(),
        "failed": cache.failed(),
        "unlabelled": cache.unlabelled(),
        "classes": by_class,
        "created": cache.created,
        "versions": cache.versions,
        "about": about_of(cache),
        "provenance": cache.provenance,
    }


def _comparable(cache: Cache) -> dict[str, Any]:
    """What two caches are compared in: everything but where and when."""
    plain = _contents(cache)
    kept = ("rows", "dim", "splits", "failed", "unlabelled", "classes", "provenance", "key")
    return {**{name: plain[name] for name in kept}, "content": cache.content}
