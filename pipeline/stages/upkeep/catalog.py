"""`pipeline list`: what there is of runs or caches, side by side; a note on one, another name, or none of it.

A run or cache that is damaged is a row that says so: a list is where one looks for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.base.errors import CacheError, HeadError
from pipeline.base.spelling import option
from pipeline.base.words import csv_text
from pipeline.base.workspace import Workspace
from pipeline.runs import folder as runs
from pipeline.runs.keeping import NOTE, delete_run, read_note, rename_run, write_note
from pipeline.runs.recipe import about_of, provenance_of
from pipeline.stages.score.figures import recorded
from pipeline.stages.upkeep import words
from pipeline.stages.upkeep.results import CatalogReport, ListedCache, ListedRun
from pipeline.stages.upkeep.settings import CatalogSettings
from pipeline.store.companions import delete_cache, files_of, note_path, rename_cache
from pipeline.store.find import cache_files, cache_path
from pipeline.store.reader import open_cache

Learned = dict[tuple[str, str], list[str]]  # key and content of a cache -> the names of the runs that learned from it
L = TypeVar("L", ListedRun, ListedCache)


def catalog(settings: CatalogSettings, desk: Workspace) -> CatalogReport:
    """List with settings made."""
    paths, learned = _paths(settings, desk), _learned_from(desk) if settings.caches else {}
    paths = _changed(paths, settings, desk, learned)
    if settings.caches:
        caches = _sorted([_cache_row(path, learned) for path in paths], settings.sort)
        report, table = CatalogReport("caches", tuple(caches)), words.cache_table(caches)
    else:
        listed = _sorted([_run_row(path) for path in paths], settings.sort)
        report, table = CatalogReport("runs", tuple(listed)), words.run_table(listed)
    if settings.csv:
        desk.watch.write(_as_csv(report.to_json()[report.of]))
    elif report.rows:
        desk.watch.result(table)
    elif not settings.delete:
        desk.watch.say(words.nothing_yet(desk.features if settings.caches else desk.runs, report.of))
    return report


def _paths(settings: CatalogSettings, desk: Workspace) -> list[Path]:
    """The caches or folders of runs that are named, or all."""
    if settings.names is None:
        return cache_files(desk) if settings.caches else runs.run_folders(desk)
    found = [cache_path(n, desk) if settings.caches else runs.run_folder(n, desk) for n in settings.names]
    return list(dict.fromkeys(found))


def _learned_from(desk: Workspace) -> Learned:
    found: Learned = {}
    for folder in runs.run_folders(desk):
        try:
            cache = runs.load_run(folder).config["cache"]
            found.setdefault((cache["key"], cache["content"]), []).append(folder.name)
        except HeadError:
            continue  # it is told of where runs are listed
    return found


# -- changes ----------------------------------------------------------------------------------------------------------


def _changed(paths: list[Path], settings: CatalogSettings, desk: Workspace, learned: Learned) -> list[Path]:
    """What is there when the note is written, the name given, or all of it deleted.

    Raises:
        CacheError, HeadError: something that is named is not one of ours: it is left alone.
    """
    if settings.delete or settings.note is not None or settings.rename is not None:
        for path in paths:
            _require_ours(path, settings.caches, desk)
    if settings.delete:
        _delete(paths, settings, desk, learned)
        return []
    if settings.note is not None:
        for path in paths:
            write_note(note_path(path) if settings.caches else path / NOTE, settings.note)
    if settings.rename is not None:
        paths = [(rename_cache if settings.caches else rename_run)(paths[0], settings.rename)]
    return paths


def _require_ours(path: Path, caches: bool, desk: Workspace) -> None:
    """Raises where a path is not a cache's or a run's, so that nothing else is renamed or deleted.

    A damaged one is known by its place and name in the workspace; elsewhere, it must be whole.
    """
    if caches:
        ours = path.is_file() and path.suffix == ".h5" and not path.is_symlink()
        if not ours:
            raise CacheError(f"{path} is no feature cache: nothing but caches is changed here")
        if path.resolve().parent != desk.features.resolve():
            about_of(open_cache(path))
    elif path.resolve().parent != desk.runs.resolve() or not runs.is_run_name(path.name):
        runs.load_run(path)


def _delete(paths: Sequence[Path], settings: CatalogSettings, desk: Workspace, learned: Learned) -> None:
    size = sum(_size(file) for path in paths for file in (files_of(path) if settings.caches else [path]))
    for path in paths if settings.caches else ():
        if names := _runs_of(path, learned):
            desk.watch.warn(words.still_needed(path.name, names))
    question = words.delete(paths, size)
    if not (settings.yes or desk.watch.confirm(question)):
        raise (CacheError if settings.caches else HeadError)(
            f"nothing was deleted ({words.listed(paths)}): answer y when asked, at a terminal or on standard input, "
            f"or give {option('yes', True)}"
        )
    for path in paths:
        (delete_cache if settings.caches else delete_run)(path)
        desk.watch.result(f"deleted {path}")


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else list(path.rglob("*"))
    return sum(file.lstat().st_size for file in files)


def _runs_of(path: Path, learned: Learned) -> list[str]:
    try:
        cache = open_cache(path)
        return learned.get((cache.key, cache.content), [])
    except CacheError:
        return []  # nobody can learn from it any more


# -- rows -------------------------------------------------------------------------------------------------------------


def _run_row(folder: Path) -> ListedRun:
    number, note = runs.number_of(folder.name), read_note(folder / NOTE)
    try:
        run = runs.load_run(folder)
    except HeadError as error:
        return ListedRun(folder, number, "damaged", "", {}, note=note, damaged=str(error))
    config, metrics = run.config, run.metrics
    try:
        scored, damaged = recorded(folder), ""
    except HeadError as error:
        scored, damaged = None, str(error)
    return ListedRun(
        folder,
        number,
        run.stage,
        Path(config["cache"]["path"]).name.removesuffix(".h5"),
        config.get("given", {}),
        val=metrics.get("after", metrics.get("val")),
        # Of fine-tuning's weights before, between and after those are kept that are best on val.
        val_chosen_from=metrics.get("chosen_from", 2 if run.stage == "finetune" else 1),
        test=None if scored is None else scored.test["accuracy"],
        test_rows=None if scored is None else scored.test["n"],
        scored_before=metrics.get("scored_before") if scored is None else scored.scored_before,
        seconds=metrics.get("seconds"),
        when=config["started"],
        note=note,
        damaged=damaged,
        pretrained=config["cache"]["about"]["pretrained"],
    )


def _cache_row(path: Path, learned: Learned) -> ListedCache:
    note, size = read_note(note_path(path)), sum(file.stat().st_size for file in files_of(path))
    try:
        cache = open_cache(path)
        about, made_by = about_of(cache), provenance_of(cache)
    except CacheError as error:
        return ListedCache(path, path.name.removesuffix(".h5"), "", "", 0, {}, 0, size, note=note, damaged=str(error))
    return ListedCache(
        path,
        path.name.removesuffix(".h5"),
        about["source"],
        made_by["trunk"]["name"],
        len(cache),
        cache.counts(),
        len(cache.classes),
        size,
        runs=tuple(learned.get((cache.key, cache.content), ())),
        when=cache.created,
        note=note,
        made=words.made_in(made_by),
    )


def _sorted(rows: list[L], by: str | None) -> list[L]:
    """Figures best first, everything else from the lowest; what has none comes last."""
    if by is None:
        return rows
    there = [row for row in rows if getattr(row, by) not in (None, "")]
    there.sort(key=lambda row: getattr(row, by), reverse=by == "val")
    return there + [row for row in rows if getattr(row, by) in (None, "")]


def _as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each, under a line of names; what is no single value is JSON."""
    plain = [[json.dumps(v) if isinstance(v, (dict, list, tuple)) else v for v in row.values()] for row in rows]
    return csv_text([rows[0], *plain] if rows else [])
