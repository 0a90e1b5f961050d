"""``python -m pipeline`` is the same as ``pipeline``."""

import sys

from pipeline.cli.main import main

sys.exit(main())
