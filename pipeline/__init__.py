"""Run a frozen trunk once, keep its features, train new heads in seconds, fine-tune only when it pays.

The public API: each stage is a function with keyword arguments (``help(pipeline.extract)`` shows them), and
``open_cache`` opens what stage one wrote. A name is imported when it is asked for, so that importing this package costs
nothing; ``__init__.pyi`` tells editors and type checkers what is here.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "pipeline.stages.extract.doors": ("extract",),
    "pipeline.stages.learn.doors": ("train", "search", "baseline"),
    "pipeline.stages.score.doors": ("evaluate", "compare"),
    "pipeline.stages.finetune.doors": ("finetune",),
    "pipeline.stages.use.doors": ("predict", "export", "rows", "trace"),
    "pipeline.stages.report.doors": ("report",),
    "pipeline.stages.upkeep.doors": ("catalog", "inspect", "verify", "audit", "relabel"),
    "pipeline.store.find": ("open_cache",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
