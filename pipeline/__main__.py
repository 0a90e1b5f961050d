"""The program: ``pipeline``, and ``python -m pipeline``. Ctrl-C while it is still being loaded is one line, too."""

import os
import sys


def main() -> int:
    """Run the command line; gives the exit status."""
    try:
        from pipeline.cli.main import main as run
    except BaseException as error:
        if not _is_stop(error):
            raise
        os.write(sys.stderr.fileno(), b"stopped; nothing was begun\n")
        return 130
    return run()


def _is_stop(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C, or what Python made of it where it came while a class was being made."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _is_stop(error.__cause__))


if __name__ == "__main__":
    sys.exit(main())
