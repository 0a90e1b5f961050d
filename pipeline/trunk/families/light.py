"""torchvision imported without torch's compiler, which takes as long to import as all the rest of both.

Its detection operators, which nothing here uses, ask ``torch._dynamo.utils`` for a function when they are imported, and
that brings the compiler with it: half of what a prediction imports. (timm's networks do use it; timm stays as it is.)
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo.utils"


@contextlib.contextmanager
def compiler_left_out() -> Iterator[None]:
    """Within it, a function taken out of the compiler's helpers is one that imports them when it is called."""
    if _COMPILER in sys.modules:
        yield
        return
    stand_in = ModuleType(_COMPILER)
    stand_in.__dict__["__getattr__"] = _later
    sys.modules[_COMPILER] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(_COMPILER) is stand_in:
            del sys.modules[_COMPILER]


def _later(name: str) -> Callable[..., Any]:
    if name.startswith("__"):  # what the import system asks a module for
        raise AttributeError(name)

    def function(*arguments: Any, **options: Any) -> Any:
        import torch._dynamo.utils as compiler

        return getattr(compiler, name)(*arguments, **options)

    return function
