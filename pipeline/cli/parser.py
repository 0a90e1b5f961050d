"""Command lines and their help, read from doors and their settings. Knows argparse; runs nothing.

Each option's default and help stand in its settings dataclass; those that every command has (--workspace, --config,
--json, --quiet, --debug) stand here.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pipeline.base import workspace
from pipeline.base.doors import Door
from pipeline.base.errors import ConfigError
from pipeline.base.machine import own_version
from pipeline.base.settings import Declared, declared, meant
from pipeline.base.spelling import flag_name
from pipeline.cli import config

Commands = Mapping[str, Door[Any]]
EPILOG = "Each has --help, --json (one object on standard output), --quiet and --debug. Begin with: pipeline demo"
COMMON = "every command"
LONGEST_CHOICE = 45  # characters; more words than that are listed in the text
WIDEST = 110  # columns of a help, where the terminal is wider


class _Parser(argparse.ArgumentParser):
    """argparse, but a wrong argument is one line and exit 2, like every other error."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (.*?): expected .*one argument$", r"\1 needs a value", message)
        message = re.sub(r"^the following arguments are required: (.*)$", self._missing, message)
        raise ConfigError(f"{message.removeprefix('argument ')}; see `{self.prog} --help`")

    def _missing(self, found: re.Match[str]) -> str:
        """That arguments are missing; of the last alone, what it is that was given as the first."""
        places = [str(action.metavar) for action in self._get_positional_actions()]
        missing, first = found[1].split(", "), places[0] if places else ""
        if first in missing or first not in ("RUN", "CACHE"):
            return f"{found[1]} must be given"
        return f"{found[1]} must be given, after a {first}, which may be `latest`"


class _Help(argparse.HelpFormatter):
    """As wide as the terminal, or as COLUMNS says; in a narrow one the texts begin further left."""

    def __init__(self, prog: str) -> None:
        width = min(WIDEST, shutil.get_terminal_size((100, 24)).columns)
        super().__init__(prog, max_help_position=30 if width >= 90 else 14, width=width)


def parse(arguments: Sequence[str], commands: Commands) -> argparse.Namespace:
    """What a command line (without the program's name) asks of one of ``commands``; see :func:`settings_of`.

    Raises:
        ConfigError: an unknown command or option, or an illegal value; or a file of options that does not fit.
        SystemExit: after --help and --version.
    """
    name = next((a for a in arguments if not a.startswith("-")), None)
    if name is not None and name not in commands:
        raise ConfigError(f"no command {name!r}: choose from {', '.join(commands)}{meant(name, commands)}")
    path = config.path_in(arguments)
    values = config.values_in(path, name, commands[name].settings) if path is not None and name is not None else {}
    parser = top_parser(name, commands, values)
    if name is not None:
        _require_known(arguments, parser, name)
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        many = "is" if len(unknown) == 1 else "are"
        raise ConfigError(f"{' '.join(map(repr, unknown))} {many} too many; see `pipeline {name or ''} --help`")
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


def _require_known(arguments: Sequence[str], parser: argparse.ArgumentParser, name: str) -> None:
    """Raises ConfigError at a word that looks like an option and is none, before its value is taken for something."""
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    actions = commands.choices[name]._actions
    known = [flag for action in actions for flag in action.option_strings]
    shown = [flag for action in actions for flag in action.option_strings if action.help != argparse.SUPPRESS]
    for word in arguments:
        if word == "--":
            return
        flag = word.split("=", 1)[0]
        if flag.startswith("--") and not any(one.startswith(flag) for one in (*known, "--version")):
            near = meant(flag, shown) or f"; see `pipeline {name} --help`"
            raise ConfigError(f"{flag} is no option of `pipeline {name}`{near}")


def top_parser(
    name: str | None, commands: Commands, values: Mapping[str, Any] | None = None
) -> argparse.ArgumentParser:
    """The parser; only the command that is asked for gets its options, the others their line of help.

    ``values`` stand in for its fields' defaults.
    """
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
        sub = subparsers.add_parser(
            each, help=says[0].lower() + says[1:].rstrip("."), formatter_class=_Help, add_help=False
        )
        if each != name:
            continue
        sub.description = says
        sub.usage = " ".join([f"pipeline {each}", *_places(door.settings), "[OPTIONS]"])
        add_options(sub, door.settings, values or {})
        _add_common(sub.add_argument_group(COMMON))
    return parser


def _add_common(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-h", "--help", action="help", help="show this help")
    group.add_argument("--workspace", type=Path, metavar="PATH", help=workspace.HELP)
    group.add_argument(config.FLAG, type=Path, metavar="FILE", help=config.HELP)
    group.add_argument(
        "--json",
        action="store_true",
        help="print the result as JSON on standard output, the rest on standard error",
    )
    group.add_argument("--quiet", action="store_true", help="print results and warnings only")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _places(kind: type[Any]) -> list[str]:
    """The arguments by place, as a usage line has them."""
    found, types = [], declared(kind)
    for field in dataclasses.fields(kind):
        if field.metadata["positional"]:
            name = field.metadata["metavar"] or field.name.upper()
            name += " ..." if types[field.name].many else ""
            found.append(name if field.default is dataclasses.MISSING else f"[{name}]")
    return found


def add_options(parser: argparse.ArgumentParser, kind: type[Any], values: Mapping[str, Any]) -> None:
    """Add one argument or option for each field of the settings dataclass ``kind``, under the headings of its groups.

    A field's group holds for those after it, too, until another begins. ``values`` stand in for defaults.
    """
    types, group = declared(kind), parser.add_argument_group("options")
    for field in dataclasses.fields(kind):
        if title := field.metadata.get("group"):
            group = parser.add_argument_group(title)
        default = values.get(field.name, field.default)
        if field.metadata["positional"]:
            _add_place(parser, field, types[field.name], default)
        else:
            _add_option(group, field, types[field.name], default)


def _add_place(parser: argparse.ArgumentParser, field: Any, type_: Declared, default: Any) -> None:
    nargs = {(True, True): "+", (True, False): "*", (False, True): None, (False, False): "?"}
    required = default is dataclasses.MISSING
    parser.add_argument(
        field.name,
        metavar=field.metadata["metavar"] or field.name.upper(),
        type=_converter(type_),
        nargs=nargs[type_.many, required],
        default=None if required else default,
        help=_help(field, None if required else default),
    )


def _add_option(group: argparse._ArgumentGroup, field: Any, type_: Declared, default: Any) -> None:
    flag, choices = flag_name(field.name), field.metadata.get("choices")
    if type_.one is bool:
        text = field.metadata["help"].replace("%", "%%")
        if field.default:
            group.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=default, help=f"{text} (default: yes)"
            )
            return
        group.add_argument(flag, action="store_true", default=default, help=text)
        # what a file of options has switched on, the command line can switch off
        group.add_argument(
            flag_name(f"no_{field.name}"),
            dest=field.name,
            action="store_false",
            help=argparse.SUPPRESS,
            default=default,
        )
        return
    words = "{" + ",".join(choices or ()) + "}"
    named = choices and len(words) * (2 if type_.many else 1) <= LONGEST_CHOICE  # of many values it stands there twice
    group.add_argument(
        flag,
        type=_converter(type_),
        nargs="+" if type_.many else None,
        default=default,
        metavar=words if named else field.metadata["metavar"] or _metavar(type_),
        help=_help(field, default, "" if named or not choices else f": {', '.join(choices)}"),
    )


def _help(field: Any, default: Any, choices: str = "") -> str:
    text = str(field.metadata["help"] + choices).replace("%", "%%")
    if default is None or (choices and default == tuple(field.metadata["choices"])):
        return text
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"{text} (default: {shown.replace('%', '%%')})"


def _converter(type_: Declared) -> Callable[[str], Any]:
    """From a word of the command line to a value; what is no number is said so, with its name."""
    base = type_.one
    if base not in (int, float):
        return base if base is not str else lambda word: word  # a text stays the object that it is

    def convert(word: str) -> Any:
        if word in type_.words:
            return word
        try:
            return base(word)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{word!r} is not {type_.what}") from None

    return convert


def _metavar(type_: Declared) -> str:
    return "|".join([{int: "N", float: "X", Path: "PATH"}.get(type_.one, "NAME"), *type_.words])
