"""Command lines and their help, read from doors and their settings. Knows argparse; runs nothing.

Each option's default and help stand in its settings dataclass; those that every command has (--workspace, --json,
--quiet, --debug) stand here.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pipeline.base import workspace
from pipeline.base.doors import Door
from pipeline.base.errors import ConfigError
from pipeline.base.machine import own_version
from pipeline.base.settings import declared, flag_name

Commands = Mapping[str, Door[Any]]
EPILOG = "Each has --help, --json (one object on standard output), --quiet and --debug. Begin with: pipeline demo"


class _Parser(argparse.ArgumentParser):
    """argparse, but a wrong argument is one line and exit 2, like every other error."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(
            prog, max_help_position=30, width=min(110, os.get_terminal_size().columns) if sys.stdout.isatty() else 100
        )


def parse(arguments: Sequence[str], commands: Commands) -> argparse.Namespace:
    """What a command line (without the program's name) asks of one of ``commands``; see :func:`settings_of`.

    Raises:
        ConfigError: an unknown command or option, or an illegal value.
        SystemExit: after --help and --version.
    """
    name = next((a for a in arguments if not a.startswith("-")), None)
    parsed, unknown = top_parser(name, commands).parse_known_args(arguments)
    if unknown:
        raise ConfigError(f"unrecognized arguments: {' '.join(unknown)}; see `pipeline {name or ''} --help`")
    if parsed.command is None:
        raise ConfigError(f"no command: choose from {', '.join(commands)}; see `pipeline --help`")
    return parsed


def settings_of(parsed: argparse.Namespace, commands: Commands) -> Any:
    """The settings of the command that was parsed.

    Raises:
        ConfigError: values that are not legal, or do not go together.
    """
    kind = commands[parsed.command].settings
    values = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(kind)}
    # Of an argument that takes any number of values and got none, argparse makes a list of none.
    return kind(**{k: tuple(v) or None if isinstance(v, list) else v for k, v in values.items()})


def top_parser(name: str | None, commands: Commands) -> argparse.ArgumentParser:
    """The parser; only the command that is asked for gets its options, the others their line of help."""
    parser = _Parser(
        prog="pipeline",
        description="Run a frozen trunk once over your images, keep its features, train new heads in seconds.",
        epilog=EPILOG,
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"pipeline {own_version()}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for each, door in commands.items():
        says = str(door.__doc__).split("\n\n", 1)[0]
        sub = subparsers.add_parser(each, help=says[0].lower() + says[1:].rstrip("."), formatter_class=_Help)
        if each != name:
            continue
        sub.description = says
        add_options(sub, door.settings)
        sub.add_argument("--workspace", type=Path, metavar="PATH", help=workspace.HELP)
        sub.add_argument(
            "--json",
            action="store_true",
            help="print the result as JSON on standard output, the rest on standard error",
        )
        sub.add_argument("--quiet", action="store_true", help="print results and warnings only")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_options(parser: argparse.ArgumentParser, kind: type[Any]) -> None:
    """Add one argument or option for each field of the settings dataclass ``kind``."""
    types = declared(kind)
    for field in dataclasses.fields(kind):
        rule, (base, many) = field.metadata, types[field.name]
        given = field.default
        text = rule["help"].replace("%", "%%")
        shown = " ".join(map(str, given)) if isinstance(given, tuple) else given
        if rule["positional"]:
            nargs = {(True, True): "+", (True, False): "*", (False, True): None, (False, False): "?"}
            required = given is dataclasses.MISSING
            parser.add_argument(
                field.name,
                metavar=rule["metavar"] or field.name.upper(),
                type=base,
                nargs=nargs[many, required],
                default=None if required else given,
                help=text if required or given is None else f"{text} (default: {shown})",
            )
            continue
        if base is bool:
            action = argparse.BooleanOptionalAction if given else "store_true"
            parser.add_argument(flag_name(field.name), action=action, default=given, help=text)
            continue
        default = "" if given is None else f" (default: {shown})"
        choices = "{" + ",".join(rule["choices"]) + "}" if rule.get("choices") else None
        parser.add_argument(
            flag_name(field.name),
            type=base,
            nargs="+" if many else None,
            default=given,
            metavar=choices or rule["metavar"] or _metavar(base),
            help=f"{text}{default}",
        )


def _metavar(base: type[Any]) -> str:
    return {int: "N", float: "X", Path: "PATH"}.get(base, "NAME")
