"""Configurations drawn at random from a space of settings.

Knows :class:`MinibatchConfig`'s fields. A space is plain values, as a TOML file gives them: for each setting a list of
choices, or a table with ``low``, ``high`` and perhaps ``log``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from pipeline.base.errors import ConfigError
from pipeline.heads.kinds import readers
from pipeline.heads.minibatch.config import MinibatchConfig

RANGE_KEYS = {"low", "high", "log"}
REAL = {f.name for f in fields(MinibatchConfig) if str(f.type).startswith("float")}
WHOLE = {f.name for f in fields(MinibatchConfig) if str(f.type).startswith("int")}
DRAWS_EACH = 100  # for one that is new, before a small space counts as used up


def sample_configs(
    space: Mapping[str, Any], n: int, seed: int, base: MinibatchConfig | None = None
) -> list[MinibatchConfig]:
    """n different configs drawn from ``space``, other settings those of ``base``; the same seed draws the same.

    Choices are equally likely; a range is uniform, or uniform in the logarithm with ``log = true``, both ends included
    for whole numbers. A space of fewer than n configs gives fewer.

    Raises:
        ConfigError: an unknown setting, a list or range that cannot be drawn from, or a value that is not legal.
    """
    if n < 1:
        raise ConfigError(f"n is {n}: at least 1 configuration must be drawn")
    base = base or MinibatchConfig()
    for name, choice in space.items():
        _check(name, choice)
    rng = np.random.default_rng([seed, 2])
    found: dict[MinibatchConfig, None] = {}
    for _ in range(DRAWS_EACH * n):
        found[replace(base, **{name: _draw(name, choice, rng) for name, choice in space.items()})] = None
        if len(found) == n:
            break
    return list(found)


def _check(name: str, choice: Any) -> None:
    known = [f.name for f in fields(MinibatchConfig)]
    if name not in known:
        raise ConfigError(f"space has {name!r}, which is no setting: choose from {', '.join(known)}")
    if isinstance(choice, list) and choice:
        for value in choice:
            _check_type(name, value)
        return
    if not isinstance(choice, Mapping) or not {"low", "high"} <= set(choice) <= RANGE_KEYS:
        raise ConfigError(f"space {name} is {choice!r}: give a list of choices, or low and high (and log = true)")
    if name not in REAL | WHOLE:
        raise ConfigError(f"space {name} is a range, but the setting is no number: give a list of choices")
    low, high, log = choice["low"], choice["high"], choice.get("log", False)
    for value in (low, high):
        _check_type(name, value)
    if not low < high:
        raise ConfigError(f"space {name} goes from {low} to {high}: low must be below high")
    if not isinstance(log, bool) or (log and low <= 0):
        raise ConfigError(
            f"space {name} has log = {log!r} and low = {low}: log is true or false, and true above 0 only"
        )


def _check_type(name: str, value: Any) -> None:
    """Pass a value of the setting's type that is legal beside the defaults, of a kind that the setting is for."""
    if name in REAL:
        what, right = "a finite number", isinstance(value, (int, float)) and math.isfinite(value)
    elif name in WHOLE:
        what, right = "a whole number", isinstance(value, int)
    else:
        what, right = "a word", isinstance(value, str)
    if not right or isinstance(value, bool):
        raise ConfigError(f"space {name} has {value!r}: {what} is needed")
    try:
        MinibatchConfig(**{"kind": (*readers(name), MinibatchConfig.kind)[0], name: value})
    except ConfigError as error:
        raise ConfigError(f"space: {error}") from error


def _draw(name: str, choice: Any, rng: np.random.Generator) -> Any:
    if isinstance(choice, list):
        return choice[int(rng.integers(len(choice)))]
    low, high = choice["low"], choice["high"]
    if name in WHOLE and not choice.get("log", False):
        return int(rng.integers(low, high, endpoint=True))
    if choice.get("log", False):
        drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
    else:
        drawn = float(rng.uniform(low, high))
    return round(drawn) if name in WHOLE else min(max(drawn, low), high)
