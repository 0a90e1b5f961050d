"""How an option is called where the user is: ``--image-size 64`` on the command line, ``image_size=64`` in Python.

Whatever names an option in a message calls :func:`option`, and no message holds a flag of its own. Knows names and
plain values; not which options there are.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_UNSAID: Any = object()
_flags = False  # of the whole process: a command line has one, and threads of its work say what it says


@contextmanager
def as_flags() -> Iterator[None]:
    """Inside, options are called what they are called on the command line."""
    global _flags
    before, _flags = _flags, True
    try:
        yield
    finally:
        _flags = before


def flag_name(name: str) -> str:
    """The command line's spelling of an option: ``image_size`` -> ``--image-size``."""
    return "--" + name.replace("_", "-")


def option(name: str, value: Any = _UNSAID) -> str:
    """An option, alone or with a value, as the user would write it; ``option("prefix", False)`` is ``--no-prefix``."""
    if not _flags:
        return name if value is _UNSAID else f"{name}={_python(value)}"
    if value is _UNSAID or value is True:
        return flag_name(name)
    if value is False:
        return flag_name(f"no_{name}")
    values = value if isinstance(value, (tuple, list)) else (value,)
    return " ".join([flag_name(name), *(_word(v) for v in values)])


def place(name: str) -> str:
    """An argument that is given by its place: ``SOURCE`` on the command line, ``source`` in Python."""
    return name.upper() if _flags else name


def _python(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return repr(str(value) if isinstance(value, Path) else value)


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else shlex.quote(str(value))
