"""The program: ``pipeline``, and ``python -m pipeline``. Ctrl-C while it is still being loaded is one line, too."""

import os
import sys

# Threads of an operation wait for each other by looking again and again, GNU's OpenMP for milliseconds; beside another
# job the one that is waited for does not run meanwhile. 126 heads of 1,528 rows took 2 to 65 s on two cores. So they
# look as often as if there were more threads than cores, and then sleep: 2.2 to 4.4 s. PyTorch reads it when loaded.
SPINS = "GOMP_SPINCOUNT", "1000"


def main() -> int:
    """Run the command line; gives the exit status."""
    os.environ.setdefault(*SPINS)
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
