"""The command line: the only room that parses, prints and exits.

Each command is a settings dataclass and the stage function that takes it; options, defaults and help texts are read
from the dataclass. A stage's module is imported only when its command is asked for, so that help is quick.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
import traceback
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from pipeline.base.errors import ConfigError, Interrupted, PipelineError
from pipeline.base.settings import flag_name


@dataclass(frozen=True)
class Command:
    """One command: where its settings and its function are."""

    help: str
    module: str
    settings: str
    function: str


COMMANDS = {
    "extract": Command(
        "images -> frozen trunk -> feature cache (stage one)", "stages.extract.job", "ExtractSettings", "run_extract"
    ),
    "train": Command("train a head on a cache (stage two)", "stages.learn.train", "TrainSettings", "run_train"),
    "search": Command(
        "try many heads, choose on val, refit, test once", "stages.learn.search", "SearchSettings", "run_search"
    ),
    "baseline": Command("simple methods on the same rows", "stages.learn.baseline", "BaselineSettings", "run_baseline"),
    "evaluate": Command(
        "score a run on the test split, once", "stages.score.evaluate", "EvaluateSettings", "run_evaluate"
    ),
    "compare": Command(
        "two runs on the same test rows: better, or chance?", "stages.score.compare", "CompareSettings", "run_compare"
    ),
    "finetune": Command(
        "reattach the head and train end to end (stage three)",
        "stages.finetune.job",
        "FinetuneSettings",
        "run_finetune",
    ),
    "predict": Command("classes and probabilities of images", "stages.use.predict", "PredictSettings", "run_predict"),
    "export": Command(
        "a run's classifier as a file for other programs", "stages.use.export", "ExportSettings", "run_export"
    ),
    "trace": Command(
        "show the model: load, remove head, add head, train", "stages.use.trace", "TraceSettings", "run_trace"
    ),
    "inspect": Command(
        "what a cache holds, or how two caches differ", "stages.upkeep.inspect", "InspectSettings", "run_inspect"
    ),
    "verify": Command(
        "check a cache: structure, checksums, rows against fresh ones",
        "stages.upkeep.verify",
        "VerifySettings",
        "run_verify",
    ),
    "audit": Command(
        "duplicates across splits, label conflicts, balance", "stages.upkeep.audit", "AuditSettings", "run_audit"
    ),
    "relabel": Command(
        "new labels or splits, without the trunk", "stages.upkeep.relabel", "RelabelSettings", "run_relabel"
    ),
    "bench": Command("measure, each entry as a ratio of two ways", "bench.run", "BenchSettings", "run_bench"),
    "demo": Command("the whole pipeline on handwritten digits", "cli.demo", "DemoSettings", "run_demo"),
}
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 2 refused, 128 + signal interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except Interrupted as stop:
        _fail(str(stop), arguments)
        return 128 + stop.signal
    except PipelineError as error:
        _fail(str(error), arguments)
        return 2
    except KeyboardInterrupt:
        _fail("interrupted", arguments)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`pipeline ... | head`): nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _fail(message: str, arguments: Sequence[str]) -> None:
    from pipeline.show.terminal import fail

    if "--debug" in arguments:
        traceback.print_exc()
    fail(message)


def _run(arguments: Sequence[str]) -> int:
    if not arguments:
        _top_parser(None).print_help()
        return 0
    # SystemExit comes from --help and --version alone: _Parser.error raises ConfigError.
    try:
        parsed = _parse(arguments)
    except SystemExit as done:
        return int(done.code or 0)
    command = COMMANDS[parsed.command]
    settings = _settings(parsed)
    from pipeline.show.terminal import Console

    function = getattr(importlib.import_module(f"pipeline.{command.module}"), command.function)
    result = function(settings, Console(stderr=parsed.json, quiet=parsed.quiet))
    if parsed.json:
        print(json.dumps(result.to_json(), allow_nan=False))
    return 0


def parse(arguments: Sequence[str]) -> Any:
    """The settings that a command line (without the program's name) asks for.

    Raises:
        ConfigError: an unknown command or option, or an illegal value.
    """
    return _settings(_parse(arguments))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    name = next((a for a in arguments if not a.startswith("-")), None)
    parsed, unknown = _top_parser(name).parse_known_args(arguments)
    if unknown:
        raise ConfigError(f"unrecognized arguments: {' '.join(unknown)}; see `pipeline {name or ''} --help`")
    if parsed.command is None:
        raise ConfigError(f"no command: choose from {', '.join(COMMANDS)}; see `pipeline --help`")
    return parsed


def _settings(parsed: argparse.Namespace) -> Any:
    command = COMMANDS[parsed.command]
    kind = getattr(importlib.import_module(f"pipeline.{command.module}"), command.settings)
    values = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(kind)}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _top_parser(name: str | None) -> argparse.ArgumentParser:
    """The parser; only the command that is asked for gets its options, the others their line of help."""
    parser = _Parser(
        prog="pipeline",
        description="Run a frozen ResNet once over your images, keep its features, train new heads in seconds.",
        epilog=EPILOG,
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"pipeline {version('pipeline')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for each, command in COMMANDS.items():
        sub = commands.add_parser(each, help=command.help, formatter_class=_Help)
        if each != name:
            continue
        module = importlib.import_module(f"pipeline.{command.module}")
        kind = getattr(module, command.settings)
        sub.description = command.help[0].upper() + command.help[1:] + "."
        add_options(sub, kind)
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
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        rule, (base, many) = field.metadata, _base_type(hints[field.name])
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


def _base_type(hint: Any) -> tuple[type[Any], bool]:
    """The type that argparse converts with, and whether there may be many: ``tuple[float, ...]`` -> (float, True)."""
    if isinstance(hint, types.UnionType):
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    return hint, False


def _metavar(base: type[Any]) -> str:
    return {int: "N", float: "X", Path: "PATH"}.get(base, "NAME")


if __name__ == "__main__":
    sys.exit(main())
