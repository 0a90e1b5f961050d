"""The command line: the only room that parses, prints and exits.

Each command is a door (``pipeline.cli.commands``); options, defaults and help texts are read from its settings. The
work behind it is imported when it is done, so that help is quick.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from pipeline.base.errors import Interrupted, PipelineError
from pipeline.base.interrupt import held_while_importing, is_stop, told
from pipeline.base.spelling import as_flags
from pipeline.base.workspace import Workspace
from pipeline.cli.commands import COMMANDS
from pipeline.cli.config import same_cache
from pipeline.cli.parser import parse, settings_of, top_parser
from pipeline.show.terminal.console import Console, fail, stopped


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 done in part, 2 refused, 128 + signal interrupted."""
    with as_flags(), held_while_importing():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(arguments: Sequence[str]) -> int:
    try:
        return _run(arguments)
    except Interrupted as stop:
        _fail(str(stop), arguments, stopped)
        return 128 + stop.signal
    except KeyboardInterrupt as stop:
        _fail(told(stop), arguments, stopped)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`pipeline ... | head`): nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if is_stop(error):  # a library may have made its own error of it
            _fail(told(error), arguments, stopped)
            return 130
        if isinstance(error, PipelineError):
            _fail(str(error), arguments)
            return 2
        if not isinstance(error, OSError):
            raise
        # What the system refuses has its own words where that is likely; this is for wherever else a disk can fail.
        what = f"{os.fspath(error.filename)!a}: " if error.filename is not None else ""
        _fail(f"{what}{error.strerror or error}; when that is mended, the same command goes on from there", arguments)
        return 2


def _fail(message: str, arguments: Sequence[str], say: Callable[[str], None] = fail) -> None:
    if "--debug" in arguments:
        traceback.print_exc()
    say(message)


def _run(arguments: Sequence[str]) -> int:
    if not arguments:
        top_parser(None, COMMANDS).print_help()
        return 0
    # SystemExit comes from --help and --version alone: the parser's own errors are ConfigError.
    try:
        parsed = parse(arguments, COMMANDS)
    except SystemExit as done:
        return int(done.code or 0)
    desk = Workspace.at(parsed.workspace, Console(stderr=parsed.json, quiet=parsed.quiet))
    result = COMMANDS[parsed.command].work(same_cache(settings_of(parsed, COMMANDS), desk), desk)
    if parsed.json:
        print(json.dumps(result.to_json(), allow_nan=False))
    return getattr(result, "exit_status", 0)


if __name__ == "__main__":
    sys.exit(main())
