"""A run's folder: what was asked for, what came out, and everything needed to do it again.

::

    cache/runs/0001-train-digits/
        config.json        settings, cache and key, versions, hardware, times
        metrics.json       the figures
        trace.jsonl        one line per epoch or iteration
        head.safetensors   } the head (see pipeline.heads.artifact)
        head.json          }
        held_out.safetensors  what such a head says of rows that it did not learn from (pipeline.stages.learn.held_out)
        evaluation.json    the test figures, written by `pipeline evaluate`, once

A folder is built under a hidden name and renamed when it is whole, so a run that exists is a finished run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict, TypeVar

from pipeline.base.errors import CacheError, HeadError
from pipeline.base.files import (
    drafts,
    locked,
    make_folder,
    sweep,
    try_writing,
    whole_folder,
    write_bytes,
    write_json,
    write_text,
    writing,
)
from pipeline.base.machine import hardware, versions
from pipeline.base.records import read_record
from pipeline.base.schema import Count, Malformed, NotNegative, PathText, Positive, Rule, Sha256, Share, made
from pipeline.base.settings import LATEST, given, record
from pipeline.base.workspace import Workspace
from pipeline.runs.recipe import About, Provenance, Recipe, about_of, led, way, weights_from
from pipeline.store import Cache, difference, open_cache

R = TypeVar("R")

FORMAT = "pipeline-run"
FORMAT_VERSION = 1
RUN_NAME = re.compile(r"(?P<number>[0-9]{4,})-(?P<stage>[a-z]+)-.+")
NUMBERS_LOCK = ".numbers.lock"
HIGHEST = ".highest"  # the number of a run that was deleted: it is not given again
PATIENCE = 60.0  # seconds that another process may take for its number
_CURE = "give the folder of a whole run, or train again"


class CacheRecord(TypedDict):
    """The cache that a run learned from; ``from_here`` is the way to it from the run's folder."""

    path: PathText
    from_here: NotRequired[PathText]
    key: Sha256
    content: Sha256
    rows: dict[str, Count]  # good rows by split
    about: About


class Config(TypedDict):
    """What is read again of ``config.json``; time, command and hardware are in it for people."""

    format: Literal["pipeline-run"]
    format_version: Literal[1]
    stage: Literal["train", "search", "baseline", "fewshot", "finetune"]
    settings: dict[str, Any]
    given: NotRequired[dict[str, Any]]  # the settings that are not the defaults
    cache: CacheRecord
    provenance: dict[str, Any]  # of its cache's rows
    classes: Annotated[list[str], Rule("a list of different names", lambda names: len(set(names)) == len(names))]
    learned_from: NotRequired[Annotated[list[str], Rule("one split or more", len)]]
    state_sha256: NotRequired[Sha256 | None]  # of what it came of, where that was removed when it was kept
    started: str
    versions: dict[str, str]


class Metrics(TypedDict):
    """What is read again of ``metrics.json``, where a stage writes it; the other figures are for people."""

    val: NotRequired[Share | None]
    after: NotRequired[Share | None]  # the same of a fine-tuned network
    chosen_from: NotRequired[Count]
    temperature: NotRequired[Positive]
    model_sha256: NotRequired[Sha256]
    seconds: NotRequired[NotNegative | None]
    scored_before: NotRequired[Count | None]  # of what scores several methods on test


@dataclass(frozen=True)
class Run:
    """A finished run; ``config`` and ``metrics`` are the contents of its JSON files."""

    folder: Path
    config: Config
    metrics: Metrics

    @property
    def stage(self) -> str:
        """Which stage made it."""
        return self.config["stage"]

    @property
    def made_by(self) -> Provenance:
        """What the features that it learned from were made by."""
        return made(self.config["provenance"], Provenance)

    @property
    def learned_in(self) -> str | None:
        """The precision of the features that the head learned from, where its network runs in float32 instead."""
        precision = self.made_by["precision"]
        return None if self.stage == "finetune" or precision == "float32" else precision


class Draft:
    """A run that is being written; every file is flushed to disk before the folder gets its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written: dict[str, Any] = {}
        self._run: Run | None = None

    @property
    def run(self) -> Run:
        """The run that it has become."""
        assert self._run is not None, "asked for before it was whole"
        return self._run

    def became(self, final: Path) -> None:
        """It has taken the run's name: from now on it is there."""
        self._run = Run(final, self._written["config.json"], self._written.get("metrics.json", {}))

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file of the run."""
        write_json(self.folder / name, value)
        self._written[name] = value

    def write_lines(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write one JSON-lines file of the run."""
        self.write_text(name, "".join(json.dumps(row) + "\n" for row in rows))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write one file of the run."""
        write_bytes(self.folder / name, data)

    def write_text(self, name: str, text: str) -> None:
        """Write one file of the run."""
        write_text(self.folder / name, text)


@contextmanager
def new_run(
    desk: Workspace, *, stage: str, name: str, settings: Any, about: Mapping[str, Any], run: Path | None = None
) -> Iterator[tuple[Draft, Path]]:
    """A draft to fill, and the folder it becomes when the block ends without an error (otherwise it is removed).

    ``settings`` is the dataclass of what was asked for; the cache, and the ``run`` that it was to go on from, are
    recorded as what they turned out to be.

    Raises:
        HeadError: the folder cannot be written.
    """
    runs = desk.runs
    began, clock = time.time(), time.perf_counter()
    with writing(runs):
        make_folder(runs)
        with contextlib.ExitStack() as drafting:
            with locked(runs / NUMBERS_LOCK, patience=PATIENCE):  # of two that begin at once each gets its own
                sweep(runs)
                final = runs / f"{_next_number(runs):04d}-{stage}-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}"
                draft = Draft(drafting.enter_context(whole_folder(final)))
            yield draft, final
            cache = about["cache"]
            config = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "stage": stage,
                "settings": record(settings, cache=cache["path"], run=run and str(run.resolve())),
                "given": given(settings),
                **about,
                "cache": {**cache, "from_here": way(final, cache["path"])},
                "command": sys.argv,
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
                "seconds": time.perf_counter() - clock,
                "versions": versions(),
                "hardware": hardware(),
            }
            draft.write_json("config.json", config)
        draft.became(final)


def require_writable(desk: Workspace) -> None:
    """Find out before long work whether a run can be kept.

    Raises:
        HeadError: it cannot.
    """
    with writing(desk.runs):
        make_folder(desk.runs)
        try_writing(desk.runs)


def _next_number(runs: Path) -> int:
    names = []
    for draft in drafts(runs):  # first: a run that takes its name meanwhile is then seen among the others
        with contextlib.suppress(FileNotFoundError):
            names += os.listdir(draft)
    names += os.listdir(runs)
    numbers = [int(m.group(1)) for name in names if (m := re.match(r"(\d{4,})-", name))]
    return max([*numbers, highest(runs)]) + 1


def highest(runs: Path) -> int:
    """The highest number that a deleted run had; 0 where none was deleted."""
    try:
        written = (runs / HIGHEST).read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return 0
    return int(written) if re.fullmatch("[0-9]{1,9}", written) else 0


def find_run(spec: str | Path, desk: Workspace) -> Run:
    """The run at a path, of a name (or its number) under the workspace's runs, or the ``latest`` that has a head.

    Raises:
        HeadError: there is none (the runs that there are, are named), or it is damaged.
    """
    return load_run(run_folder(spec, desk))


def run_folders(desk: Workspace) -> list[Path]:
    """The runs of a workspace, by number."""
    there = [folder for folder in desk.runs.glob("[0-9]*-*") if (folder / "config.json").exists()]
    return sorted(there, key=lambda folder: (number_of(folder.name), folder.name))


def run_folder(spec: str | Path, desk: Workspace) -> Path:
    """The folder of the run that :func:`find_run` finds.

    Raises:
        HeadError: there is none; the runs that there are, are named.
    """
    runs, text = desk.runs, str(spec)
    known = [folder.name for folder in run_folders(desk)]
    if text == LATEST:
        with_head = [n for n in known if (runs / n / "head.json").exists() or (runs / n / "model.safetensors").exists()]
        if not with_head:
            raise HeadError(f"no run in {runs} yet: train a head first with `pipeline train`")
        desk.watch.say(f"latest run: {with_head[-1]}")
        return runs / with_head[-1]
    meant = [n for n in known if text.isdigit() and number_of(n) == int(text)]
    named = [n for n in known if n.split("-", 2)[2:] == [text]]
    meant = meant or (named if len(named) == 1 else [])
    for folder in (Path(text), runs / text, *(runs / n for n in meant)):
        if (folder / "config.json").is_file():
            return folder
    shown = ", ".join(known[-5:]) or "none yet: train a head first with `pipeline train`"
    more = "..., " if len(known) > 5 else ""
    first = ", which is a file (the run stands first)" if Path(text).is_file() else ""
    raise HeadError(
        f"no run {text!r}{first}: give a run's folder, its name or number, or {LATEST!r}; in {runs}: {more}{shown}"
    )


def learned_from_other(path: Path, content: str, desk: Workspace) -> list[str]:
    """Names of the runs that learned from the cache at ``path`` when its content was another: they are refused now."""
    found, here = [], os.path.realpath(path)
    for folder in run_folders(desk):
        try:
            cache = _config(folder)["cache"]
        except HeadError:
            continue  # a damaged run is told of when it is asked for
        places = [os.path.realpath(place) for place in _recorded_places(folder, cache)]
        if here in places and cache["content"] != content:
            found.append(folder.name)
    return found


def kept_from(state_sha256: str | None, desk: Workspace) -> Run | None:
    """The run that came of the state of that SHA-256, if one has: its job was killed before it could remove the state.

    Raises:
        HeadError: the run is damaged.
    """
    for folder in run_folders(desk) if state_sha256 else ():
        with contextlib.suppress(OSError):  # a damaged run is told of when it is asked for
            if f'"{state_sha256}"' in (folder / "config.json").read_text(encoding="utf-8", errors="replace"):
                return load_run(folder)
    return None


def result_of(run: Run, kind: type[R]) -> R:
    """The result that its job gave, from the figures that it wrote.

    Raises:
        HeadError: they are not what such a job writes.
    """
    try:
        return made({**run.metrics, "run": str(run.folder)}, kind)
    except Malformed as error:
        raise HeadError(f"{run.folder}/metrics.json: {error}; {_CURE}") from error


def is_run_name(name: str) -> bool:
    """Whether a folder is named as a workspace's runs are: NUMBER-STAGE-NAME."""
    return RUN_NAME.fullmatch(name) is not None


def number_of(name: str) -> int:
    """The number that a run's name begins with."""
    return int(name.split("-", 1)[0])


def load_run(folder: Path) -> Run:
    """The run in ``folder``.

    Raises:
        HeadError: its files are missing, damaged or of another format version.
    """
    return Run(folder, _config(folder), read_record(folder / "metrics.json", Metrics, HeadError, _CURE))


def _config(folder: Path) -> Config:
    config = read_record(folder / "config.json", Config, HeadError, _CURE)
    try:
        made(config["provenance"], Provenance, "provenance")
    except Malformed as why:
        raise HeadError(f"{folder / 'config.json'}: {why}; {_CURE}") from why
    return config


def cache_record(cache: Cache) -> dict[str, Any]:
    """What a run records of the cache that it learned from."""
    return {
        "cache": {
            "path": str(cache.path.resolve()),
            "key": cache.key,
            "content": cache.content,
            "rows": cache.counts(),
            "about": about_of(cache),
        },
        "provenance": cache.provenance,
        "classes": list(cache.classes),
    }


def cache_of(run: Run) -> Cache:
    """The cache that a run learned from, opened and shown to be the same.

    It is known by its key and content: where it lies from the run's folder, where it lay then, or under another name
    among the features of the workspace that the run lies in.

    Raises:
        CacheError: it is gone, has another key, or other rows, labels or splits.
    """
    recorded, name = run.config["cache"], run.folder.name
    places, features = _recorded_places(run.folder, recorded), Workspace(run.folder.parent.parent).features
    there = [place for place in places if place.exists()]
    found: list[Cache] = []
    for place in there:
        cache = open_cache(place)
        if _is_that(cache, recorded):
            return cache
        found.append(cache)
    for other in sorted(features.glob("*.h5")):
        with contextlib.suppress(CacheError):  # a damaged one is told of when it is asked for
            if _is_that(cache := open_cache(other), recorded):
                return cache
    for cache in found:
        require_key(run, cache, f"is not the cache that {name} learned from", "train again")
        raise CacheError(f"{cache.path}: images, labels or splits have changed since {name}: train again")
    looked = " or ".join(map(str, dict.fromkeys(places)))
    raise CacheError(
        f"the cache that {name} learned from is not at {looked}, and none in {features} holds the same rows: put it "
        "there, or extract its images again"
    )


def _is_that(cache: Cache, recorded: CacheRecord) -> bool:
    return cache.key == recorded["key"] and cache.content == recorded["content"]


def _recorded_places(folder: Path, recorded: CacheRecord) -> list[Path]:
    """Where a run's cache may lie: as it is reached from the run's folder, and where it lay then."""
    then = Path(recorded["path"])
    return [Path(led(folder, recorded["from_here"])), then] if "from_here" in recorded else [then]


def recipe_of(run: Run, desk: Workspace) -> Recipe:
    """The recipe that the features of a run were made by.

    Raises:
        WeightsError: the weights are not to be had, are not the same bytes any more, or have no such layer.
    """
    recorded = run.config["cache"]
    folder = _recorded_places(run.folder, recorded)[0].parent
    return Recipe.of(run.made_by, weights_from(recorded["about"], folder, desk), desk)


def require_key(run: Run, cache: Cache, what: str, cure: str) -> None:
    """Raises CacheError with the difference field by field when the cache has another key than the run's."""
    if cache.key != run.config["cache"]["key"]:
        fields = "; ".join(f"{n}: {a!r} -> {b!r}" for n, a, b in difference(run.config["provenance"], cache.provenance))
        raise CacheError(f"{cache.path} {what} ({fields}): {cure}")
