"""A stage's public function, the same for Python and for the command line: keyword arguments in, a frozen result out.

Knows settings and workspaces only. The options, their defaults and their help are read from the settings dataclass:
``help(pipeline.extract)`` and ``inspect.signature`` show the real ones.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import re
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from pipeline.base.interrupt import ANEW, on_interrupt
from pipeline.base.settings import build, made_things
from pipeline.base.watch import Watch
from pipeline.base.workspace import HELP, Workspace

S = TypeVar("S")
R = TypeVar("R")
Place = str | os.PathLike[str] | None


class Door(Protocol[R]):
    """A public function: ``settings`` is the dataclass of its options, ``work`` itself with settings made.

    Before the work, what killed jobs left in the workspace is cleared away.
    """

    settings: type[Any]
    command: str
    work: Callable[[Any, Workspace], R]
    __name__: str

    def __call__(
        self,
        *arguments: Any,
        workspace: Place = None,
        watch: Watch | None = None,
        **options: Any,
    ) -> R:
        """Build the settings from the arguments, and do the work."""


def command(
    kind: type[S], stopped: str = ANEW, *, name: str | None = None
) -> Callable[[Callable[[S, Workspace], R]], Door[R]]:
    """Make ``work(settings, desk)`` a door: called with the fields of the settings ``kind`` as arguments.

    ``stopped`` is what is kept, and what the same command will do, when Ctrl-C comes where the work says nothing of it.

    Positional fields may be given by place; every option by name only. ``workspace`` is the folder that things lie in,
    ``watch`` hears what the stage says. ``name`` is the command's, where it is not the function's own.
    """
    places = [f.name for f in dataclasses.fields(kind) if f.metadata["positional"]]  # type: ignore[arg-type]

    def decorate(work: Callable[[S, Workspace], R]) -> Door[R]:
        @functools.wraps(work)
        def door(
            *arguments: Any,
            workspace: Place = None,
            watch: Watch | None = None,
            **options: Any,
        ) -> R:
            if len(arguments) > len(places):
                raise TypeError(f"{work.__name__}() takes {', '.join(places)} by place; give the rest by name")
            given = dict(zip(places, arguments, strict=False))
            if twice := given.keys() & options.keys():
                raise TypeError(f"{work.__name__}() got {sorted(twice)[0]!r} twice")
            return swept(build(kind, {**given, **options}), Workspace.at(workspace, watch))

        def swept(settings: S, desk: Workspace) -> R:
            with on_interrupt(stopped):
                for given in made_things(settings)[:1]:
                    desk = desk.holding(given)
                desk.sweep()
                return work(settings, desk)

        made = cast(Any, door)
        made.settings, made.work, made.command = kind, swept, name or work.__name__
        made.__signature__ = signature(kind, work)
        made.__doc__ = f"{inspect.getdoc(work)}\n\n{_options(kind)}"
        del made.__wrapped__  # or help() would show what it wraps
        return cast(Door[R], made)

    return decorate


def signature(kind: type[Any], work: Callable[..., Any]) -> inspect.Signature:
    """The door's signature: places, then options with their defaults, then ``workspace`` and ``watch``."""
    by_place: list[inspect.Parameter] = []
    by_name: list[inspect.Parameter] = []
    for field in dataclasses.fields(kind):
        place = field.metadata["positional"]
        parameter = inspect.Parameter(
            field.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD if place else inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=field.type,
        )
        (by_place if place else by_name).append(parameter)
    for name, type_ in (("workspace", "str | os.PathLike[str] | None"), ("watch", "Watch | None")):
        by_name.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=type_))
    return inspect.Signature([*by_place, *by_name], return_annotation=work.__annotations__.get("return"))


def _in_python(help: str) -> str:
    """A help text, written for the command line, with the options that it names as they are in Python."""
    return re.sub(r"--([a-z][a-z-]*)", lambda flag: flag[1].replace("-", "_"), help)


def _options(kind: type[Any]) -> str:
    lines = ["Args:"]
    for field in dataclasses.fields(kind):
        choices = field.metadata.get("choices")
        legal = f" One of {', '.join(choices)}." if choices else ""
        lines.append(f"    {field.name}: {_in_python(field.metadata['help'].rstrip('.'))}.{legal}")
    lines.append(f"    workspace: {HELP}.")
    lines.append("    watch: hears what is said meanwhile; by default nobody does.")
    return "\n".join(lines)
