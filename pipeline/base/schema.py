"""Schemas: what plain JSON values must be, said as a type beside what writes them, and held to it.

A schema is a TypedDict (the record stays a dict), a dataclass (it is made), ``str``, ``int`` (of 64 bits), ``float``
(finite, whole numbers too), ``bool``, ``Path``, ``list[T]``, a tuple, ``dict[str, T]``, ``T | None``, a list or what is
none (``list[T] | U``), ``Literal``, ``Any`` (finite numbers all the same), or ``Annotated`` with rules. Fields that it
does not name are let be. Knows values and types; nothing of files.

A rule that needs a name of its module is made outside the class: an annotation's own lambda may not see it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import reprlib
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from pipeline.base.errors import PipelineError

T = TypeVar("T")


class Malformed(ValueError):
    """What a record's field is and what is needed, or why it is none at all, in one line."""


class Rule:
    """What a value of the right type must be besides: in ``words``, and whether it ``holds``."""

    def __init__(self, words: str, holds: Callable[[Any], object]) -> None:
        self.words, self.holds = words, holds


def _is_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


Count = Annotated[int, Rule("a whole number from 0", lambda n: n >= 0)]
Size = Annotated[int, Rule("a whole number from 1", lambda n: n >= 1)]
Positive = Annotated[float, Rule("a number above 0", lambda x: x > 0)]
NotNegative = Annotated[float, Rule("a number from 0", lambda x: x >= 0)]
Share = Annotated[float, Rule("a number from 0 to 1", lambda x: 0 <= x <= 1)]
PathText = Annotated[str, Rule("a path", _is_path)]
Sha256 = Annotated[str, Rule("64 hex digits", lambda s: len(s) == 64 and set(s) <= set("0123456789abcdef"))]
NOT_FINITE_TOO = Rule("a number", lambda _: True)
Figure = Annotated[float, NOT_FINITE_TOO]  # of what may have diverged

_SCALARS = {str: "a text", int: "a whole number", float: "a finite number", bool: "true or false", Path: "a path"}


def made(value: Any, schema: type[T], where: str = "") -> T:
    """What ``value``, plain JSON values, is by the schema; ``where`` it stands in the record is for the message.

    Raises:
        Malformed: it is not what the schema says.
    """
    found: T = _made(value, schema, where)
    return found


def _made(value: Any, schema: Any, where: str) -> Any:
    origin, args, named = _form(schema)
    if origin is None and not named:
        return _anything(value, where) if schema is Any else _scalar(value, schema, where)
    if origin is Annotated:
        rules = schema.__metadata__
        if NOT_FINITE_TOO in rules and type(value) is float:
            return value
        found = _made(value, args[0], where)
        for rule in rules:
            if not rule.holds(found):
                raise _wrong(value, rule.words, where)
        return found
    if origin in (types.UnionType, typing.Union):
        kinds = [a for a in args if a is not type(None)]
        if value is None and len(kinds) < len(args):
            return None
        return _made(value, next((a for a in kinds if _is_list(a) is (type(value) is list)), kinds[0]), where)
    if origin is Literal:
        if not any(type(value) is type(one) and value == one for one in args):
            raise _wrong(value, " or ".join(map(repr, args)), where)
        return value
    if origin in (list, tuple):
        return _list(value, origin, args, where)
    if type(value) is not dict:
        raise _wrong(value, "an object", where)
    if origin is dict:
        return {name: _made(inner, args[1], _at(where, name)) for name, inner in value.items()}
    return _with_fields(value, schema, where)


@functools.cache
def _form(schema: Any) -> tuple[Any, tuple[Any, ...], bool]:
    """What a type is made of, and whether it names fields."""
    named = typing.is_typeddict(schema) or dataclasses.is_dataclass(schema)
    return typing.get_origin(schema), typing.get_args(schema), named


def _scalar(value: Any, schema: Any, where: str) -> Any:
    kind = type(value)
    sound = kind is schema or (kind is int and schema is float) or (kind is str and schema is Path)
    if sound and kind in (int, float):
        sound = _in_64_bits(value) if kind is int else math.isfinite(value)
    if not sound or (schema is Path and not _is_path(value)):
        raise _wrong(value, _SCALARS[schema], where)
    return schema(value)


def _is_list(schema: Any) -> bool:
    return _form(schema)[0] in (list, tuple)


def _in_64_bits(number: int) -> bool:
    return -(2**63) <= number < 2**63


def _list(value: Any, origin: Any, args: tuple[Any, ...], where: str) -> Any:
    if type(value) is not list:
        raise _wrong(value, "a list", where)
    if origin is tuple and args[-1] is not ...:
        if len(value) != len(args):
            raise _wrong(value, f"a list of {len(args)}", where)
        return tuple(_made(v, a, f"{where}[{i}]") for i, (v, a) in enumerate(zip(value, args, strict=True)))
    # Of names and counts there may be a million: they are looked at together.
    if args[0] is str and set(map(type, value)) <= {str}:
        return origin(value)
    if args[0] is int and set(map(type, value)) == {int} and all(_in_64_bits(end) for end in (min(value), max(value))):
        return origin(value)
    return origin(_made(inner, args[0], f"{where}[{i}]") for i, inner in enumerate(value))


def _with_fields(value: dict[str, Any], schema: Any, where: str) -> Any:
    found = dict(value)
    for name, (hint, required) in _fields(schema).items():
        if name in value:
            found[name] = _made(value[name], hint, _at(where, name))
        elif required:
            raise Malformed(f"it has no {_at(where, name)}")
    if typing.is_typeddict(schema):
        return found
    try:
        return schema(**{name: found[name] for name in _fields(schema) if name in value})
    except PipelineError as error:
        raise Malformed(f"{where or 'it'} cannot be: {error}") from error


@functools.cache
def _fields(schema: Any) -> dict[str, tuple[Any, bool]]:
    """Field -> its type, and whether it must be there."""
    hints = typing.get_type_hints(schema, include_extras=True)
    if typing.is_typeddict(schema):
        optional = {name for name, hint in hints.items() if typing.get_origin(hint) is NotRequired}
        return {n: (typing.get_args(h)[0], False) if n in optional else (h, True) for n, h in hints.items()}
    none = dataclasses.MISSING
    return {f.name: (hints[f.name], f.default is f.default_factory is none) for f in dataclasses.fields(schema)}


def _anything(value: Any, where: str) -> Any:
    if type(value) in (int, float):
        _scalar(value, type(value), where)
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value) if type(value) is list else ():
        _anything(inner, _at(where, str(name)))
    return value


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _wrong(value: Any, needed: str, where: str) -> Malformed:
    return Malformed(f"{where or 'it'} is {reprlib.repr(value)}: {needed} is needed")
