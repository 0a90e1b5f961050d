"""Settings from a file (``--config``): a run's own record, to repeat it, or the user's TOML or JSON.

Gives values for a command's fields, each of its type; what the command line says goes before them. Knows which record
is of which command; the values' bounds are checked where all settings are.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.base.errors import ConfigError, HeadError
from pipeline.base.records import parse, read_file, reason
from pipeline.base.schema import Malformed
from pipeline.base.settings import Declared, declared, meant
from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace

FLAG = "--config"
HELP = (
    "options from a record: a run (its folder, name or number, or latest), which is repeated, but for a look at test; "
    "or from a TOML or JSON file with options by name; what the command line says goes first"
)
RECORD, RECORD_FORMAT = "config.json", "pipeline-run"  # pipeline.runs.folder's, which would make --help slow
MADE_BY = {"fewshot": "search"}  # stages that are not named as the command that makes them
LOOKS = frozenset({"evaluate", "test"})  # settings that say whether test rows are scored


class Recorded(str):
    """The path of the cache that a run's record names: to be shown to be the same before a repetition learns from it.

    ``record`` is the path of the record.
    """

    record: Path


def path_in(arguments: Sequence[str]) -> Path | None:
    """The file that ``--config`` names among the words of a command line, or the folder of a run that it names.

    Raises:
        ConfigError: neither is there.
    """
    named = _word_after(FLAG, arguments)
    if named is None or os.path.lexists(named) or Path(named).suffix in (".toml", ".json"):
        return None if named is None else Path(named)
    from pipeline.runs.folder import run_folder

    try:
        return run_folder(named, Workspace.at(_word_after("--workspace", arguments)))
    except HeadError as error:
        raise ConfigError(f"{FLAG} {named}: neither a TOML or JSON file nor a run: {error}") from error


def _word_after(flag: str, arguments: Sequence[str]) -> str | None:
    for at, word in enumerate(arguments):
        if word == "--":
            break
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
        if word == flag and at + 1 < len(arguments):
            return arguments[at + 1]
    return None


def values_in(path: Path, command: str, kind: type[Any]) -> dict[str, Any]:
    """What the file says of the settings ``kind`` of ``command``, by field.

    Raises:
        ConfigError: it cannot be read, is another command's record, or names what is no option, or a wrong value.
    """
    path = path / RECORD if path.is_dir() else path
    found = _read(path)
    recorded = found.get("format") == RECORD_FORMAT
    if recorded:
        maker = MADE_BY.get(str(found.get("stage")), found.get("stage"))
        if maker != command:
            raise ConfigError(f"{path} is the record of a run of `pipeline {maker}`, not of `pipeline {command}`")
    settings = found.get("settings") if recorded else found
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{path}: a run's record must have its settings: give another")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    types, values = declared(kind), dict[str, Any]()
    for written, value in settings.items():
        name = written.replace("-", "_")
        if name not in fields:
            near = meant(name, fields)
            raise ConfigError(f"{path}: {written!r} is no option of `pipeline {command}`{near or '; see its --help'}")
        if name in values:
            raise ConfigError(f"{path}: {name} is there twice, as {name!r} and as {name.replace('_', '-')!r}")
        values[name] = _fitting(value, types[name], f"{path}: {written}", optional=fields[name].default is None)
    if recorded:
        # The test rows have been looked at: to repeat a run is no reason to look again, as one run more.
        values |= dict.fromkeys(LOOKS & values.keys(), False)
    if recorded and "cache" in values:
        values["cache"] = Recorded(values["cache"])
        values["cache"].record = path
    if recorded and values.get("run"):  # the one that it went on from: where all has moved, it lies beside
        beside = path.absolute().parent.parent / Path(values["run"]).name
        values["run"] = str(beside) if beside.is_dir() else values["run"]
    return values


def same_cache(settings: Any, desk: Workspace) -> Any:
    """The settings with the cache of a run's record found again, and shown to hold what it held then.

    Raises:
        CacheError, HeadError: it is gone or has changed, or the record is damaged.
    """
    named = getattr(settings, "cache", None)
    if not isinstance(named, Recorded):
        return settings
    from pipeline.runs.folder import cache_of, load_run

    cache = cache_of(load_run(named.record.parent))
    looks = [name for name in sorted(LOOKS) if getattr(settings, name, True) is False]
    alone = f"; test rows are left alone ({option(looks[0], True)} scores them)" if looks else ""
    desk.watch.say(f"repeating {named.record.parent.name}, on {cache.path}{alone}")
    return dataclasses.replace(settings, cache=str(cache.path))


def _read(path: Path) -> dict[str, Any]:
    try:
        data = read_file(path)
        if path.suffix == ".toml":
            return tomllib.loads(data.decode("utf-8"))
        return parse(data, dict[str, Any])
    except (OSError, Malformed) as error:
        raise ConfigError(f"{FLAG} {path}: {reason(error)}; give a run's folder, or a TOML or JSON file") from error
    except ValueError as error:  # TOML's, or text that is not UTF-8
        raise ConfigError(f"{FLAG} {path} is not TOML: {error}") from error


def _fitting(value: Any, type_: Declared, where: str, *, optional: bool) -> Any:
    """The value as its field has it."""
    if value is None and optional:
        return None
    if type_.many:
        values = value if isinstance(value, list) else [value]
        return tuple(_fitting(one, type_._replace(many=False), where, optional=False) for one in values)
    if value in type_.words:
        return value
    known = int | float if type_.one is float else str if type_.one is Path else type_.one
    if not isinstance(value, known) or (isinstance(value, bool) and type_.one is not bool):
        raise ConfigError(f"{where} is {value!r}: it must be {type_.what}")
    return type_.one(value)
