"""Settings of a stage: one frozen dataclass, from which the Python API, the command line and the record are all made.

Knows dataclasses only. Each option's default and help text is written once, in the field itself, with :func:`option`
or :func:`argument`; :func:`build` makes the dataclass from keyword arguments and names a wrong one; the command line
reads the same fields (``pipeline.cli.main``), and :func:`record` gives what is saved beside the results.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pipeline.base import spelling
from pipeline.base.errors import ConfigError
from pipeline.base.machine import DEVICE_HELP, require_device_name
from pipeline.base.precision import AUTO, PRECISIONS

T = TypeVar("T")

LATEST = "latest"
CACHE_HELP = "a feature cache: its path, its name (or the beginning of it), or `latest`"
RUN_HELP = "a run's folder, name or number, or `latest`"


def argument(
    help: str,
    *,
    metavar: str | None = None,
    default: Any = dataclasses.MISSING,
    identity: bool = True,
    made: bool = False,
) -> Any:
    """A positional argument; a field of a tuple type takes one or more values. ``identity`` as for :func:`option`.

    ``made`` says that it names caches or runs: given by a path, it says which workspace they lie in.
    """
    metadata = {"help": help, "positional": True, "metavar": metavar, "identity": identity, "made": made}
    return dataclasses.field(default=default, metadata=metadata)


def option(  # noqa: PLR0913 (the one place where all that an option can be is named)
    default: Any,
    help: str,
    *,
    choices: Collection[str] | None = None,
    metavar: str | None = None,
    minimum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    identity: bool = True,
    group: str = "",
    rule: Callable[[Any], None] | None = None,
) -> Any:
    """A named option with its default and help; the bounds and choices are checked by :func:`check`.

    ``minimum`` is inclusive, ``above`` and ``below`` are exclusive. ``identity`` False says that the result is the same
    whatever the option is: see :func:`identity`. ``group`` is the heading in the help under which this option and those
    after it stand, until another begins. ``rule`` raises ConfigError for a value that is not legal.
    """
    metadata = {
        "help": help,
        "positional": False,
        "metavar": metavar,
        "choices": choices or None,  # no copy: what is added to a list of kinds is a choice from then on
        "minimum": minimum,
        "above": above,
        "below": below,
        "identity": identity,
        "group": group,
        "rule": rule,
    }
    return dataclasses.field(default=default, metadata=metadata)


def cache(*, identity: bool = True, default: Any = LATEST) -> Any:
    """The argument of whatever works on a feature cache, which :func:`pipeline.store.find.find_cache` finds."""
    return argument(CACHE_HELP, default=default, identity=identity, made=True)


def run(*, metavar: str | None = None, identity: bool = True, default: Any = LATEST) -> Any:
    """The argument of whatever works on a run, which :func:`pipeline.runs.folder.find_run` finds."""
    return argument(RUN_HELP, default=default, metavar=metavar, identity=identity, made=True)


def made_things(settings: Any) -> list[str]:
    """The caches and runs that the settings name, as they were given."""
    named = [getattr(settings, f.name) for f in dataclasses.fields(settings) if f.metadata.get("made")]
    flat = [one for given in named for one in (given if isinstance(given, tuple) else (given,))]
    return [one for one in flat if one is not None]


def check_out(out: Path | None, name: str | None = None) -> None:
    """Check the path or the name of a cache that is to be written, if one is given.

    Raises:
        ConfigError: it is not that of one, or both are given.
    """
    if out is not None and out.suffix != ".h5":
        raise ConfigError(f"{spelling.option('out', out)} must end in .h5")
    if name is not None:
        check_name(name)
        if out is not None:
            raise ConfigError(f"{spelling.option('name', name)} and {spelling.option('out', out)}: give one of them")


def check_name(name: str) -> None:
    """Check a name for a cache, or for a run.

    Raises:
        ConfigError: it is not legal.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name) or name == LATEST or name.endswith(".h5"):
        raise ConfigError(
            f"name {name!r}: give letters, digits, and . _ - within them, 100 at most, no path and no ending; "
            f"{LATEST!r} is taken"
        )


def device(default: str = "auto", what: str = "the network runs", **rules: Any) -> Any:
    """The option of where something runs; ``pipeline.base.machine.resolve_device`` says which device it means."""
    return option(default, f"where {what}: {DEVICE_HELP}", metavar="DEVICE", rule=require_device_name, **rules)


def precision(what: str, *legal: str) -> Any:
    """The option of the arithmetic of ``what``; ``pipeline.base.precision`` says what a device has."""
    return option("float32", f"arithmetic of {what}", choices=legal or (*PRECISIONS, AUTO))


def force_precision() -> Any:
    """The option that goes with it."""
    return option(
        False, "compute in bfloat16 even where the processor only emulates it, many times as slowly", identity=False
    )


def column(kind: str, *, none: bool = False, group: str = "") -> Any:
    """The option that names a column of a CSV manifest; ``none`` says that there may be no such one."""
    words = f"a CSV manifest's column of {kind}s, where its name is not one that people use"
    return option(None, f"{words}; none: it has no such column" if none else words, metavar="NAME", group=group)


def check(settings: Any) -> None:
    """Check every field's choices and bounds; to be called from ``__post_init__``.

    Raises:
        ConfigError: names the option, the wrong value and the legal ones.
    """
    types = declared(type(settings))
    for field in dataclasses.fields(settings):
        value, rule, words = getattr(settings, field.name), field.metadata, types[field.name].words
        named = spelling.place(field.name) if rule.get("positional") else spelling.option(field.name)
        if value is None:
            continue
        for one in value if isinstance(value, tuple) else (value,):
            if one in words:
                continue
            if types[field.name].one is int and isinstance(one, (float, str)):
                raise ConfigError(f"{named} is {one!r}: it must be {types[field.name].what}")
            try:
                _check_one(named, one, rule, "".join(f" or {word!r}" for word in words))
            except TypeError as error:
                raise ConfigError(f"{named} is {one!r}: it must be {types[field.name].what}") from error
        if isinstance(value, tuple) and not value:
            raise ConfigError(f"{named} is empty: give at least one value")


def _check_one(named: str, value: Any, rule: Mapping[str, Any], other: str) -> None:
    choices = rule.get("choices")
    if choices and value not in choices:
        raise ConfigError(f"{named} {value!r} is not known: choose from {', '.join(choices)}{meant(value, choices)}")
    if rule.get("rule") is not None:
        rule["rule"](value)
    if rule.get("minimum") is not None and not value >= rule["minimum"]:
        raise ConfigError(f"{named} is {value}: it must be at least {rule['minimum']}{other}")
    if rule.get("above") is not None and not value > rule["above"]:
        raise ConfigError(f"{named} is {value}: it must be above {rule['above']}{other}")
    if rule.get("below") is not None and not value < rule["below"]:
        raise ConfigError(f"{named} is {value}: it must be below {rule['below']}{other}")


def meant(word: object, known: Iterable[str]) -> str:
    """What follows the refusal of a word: ``; did you mean train?`` where one of those known is near, else nothing."""
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def build(kind: type[T], options: Mapping[str, Any]) -> T:
    """Make the settings ``kind`` from keyword arguments.

    Raises:
        ConfigError: an unknown name (the nearest legal one is offered), a missing one, or an illegal value.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in options:
        if name not in fields:
            raise ConfigError(f"unknown setting {name!r}: choose from {', '.join(fields)}{meant(name, fields)}")
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in options]
    if missing:
        raise ConfigError(f"missing setting {missing[0]!r}: {fields[missing[0]].metadata['help']}")
    fitting = declared(kind)
    made = {name for name, f in fields.items() if f.metadata.get("made")}
    plain = {n: _as_declared(fitting[n], _numbers_as_names(v) if n in made else v) for n, v in options.items()}
    return kind(**plain)


def _numbers_as_names(value: Any) -> Any:
    """A run's number, or some of them, as the name that it is."""
    if isinstance(value, (tuple, list)):
        return [_numbers_as_names(one) for one in value]
    return str(value) if type(value) is int else value


class Declared(NamedTuple):
    """The type of a field: that of one value, whether there may be many of them, and words that may stand for one."""

    one: type[Any]
    many: bool
    words: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """What a value must be, for messages."""
        return " or ".join([_KINDS.get(self.one, "a number"), *map(repr, self.words)])


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path, as text"}


def declared(kind: type[Any]) -> Mapping[str, Declared]:
    """Field -> its type in the settings ``kind``: ``tuple[float, ...] | None`` is many of float.

    ``tuple[int | Literal["all"], ...]`` is many of int, for which the word ``all`` may stand.
    """
    return {name: _declared(hint) for name, hint in typing.get_type_hints(kind).items()}


def _declared(hint: Any) -> Declared:
    if isinstance(hint, types.UnionType):
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    many = typing.get_origin(hint) is tuple
    one = typing.get_args(hint)[0] if many else hint
    kinds = [kind for kind in typing.get_args(one) if typing.get_origin(kind) is not Literal]
    words = [typing.get_args(kind) for kind in typing.get_args(one) if typing.get_origin(kind) is Literal]
    # Of several kinds the first is the command line's.
    return Declared(next(iter(kinds), one), many, tuple(itertools.chain(*words)))


def _as_declared(type_: Declared, value: Any) -> Any:
    """Accept str for Path fields, one value for a tuple; leave the rest alone."""
    if value is None:
        return None
    if type_.many:
        items = (value,) if isinstance(value, (str, os.PathLike, int, float)) or _is_picture(value) else tuple(value)
        return tuple(_one_as_declared(type_.one, v) for v in items)
    return _one_as_declared(type_.one, value)


def _one_as_declared(type_: type[Any], value: Any) -> Any:
    if type_ is Path and isinstance(value, (str, os.PathLike)):
        return Path(value)
    if type_ is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def _is_picture(value: Any) -> bool:
    """Whether it is one image (PIL's, or an array of pixels), not many of something; imports neither library."""
    return hasattr(type(value), "__array_interface__") and getattr(value, "ndim", 2) in (2, 3)


def record(settings: Any, **resolved: Any) -> dict[str, Any]:
    """The settings as plain JSON values, for the record kept beside the results.

    ``resolved`` is what words such as ``latest`` turned out to mean: by it the same can be asked for again.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        return value

    return {f.name: plain(resolved.get(f.name, getattr(settings, f.name))) for f in dataclasses.fields(settings)}


def given(settings: Any) -> dict[str, Any]:
    """Those of the record that are not the defaults, without what is named by place."""
    told = record(settings)
    options = [f for f in dataclasses.fields(settings) if not f.metadata["positional"]]
    return {f.name: told[f.name] for f in options if getattr(settings, f.name) != f.default}


def identity(settings: Any) -> dict[str, Any]:
    """Those of the record that decide the result: what an interrupted job is known by when the same is asked again."""
    told = record(settings)
    return {f.name: told[f.name] for f in dataclasses.fields(settings) if f.metadata["identity"]}
