"""The program: ``pipeline``, and ``python -m pipeline``. Ctrl-C while it is still being loaded is one line, too."""

import os
import sys


def main() -> int:
    """Run the command line; gives the exit status."""
    try:
        from pipeline.cli.main import main as run
    except BaseException as error:
        from pipeline.base.interrupt import is_stop

        if not is_stop(error):
            raise
        os.write(sys.stderr.fileno(), b"stopped; nothing was begun\n")
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
