"""Settings read from their fields: types, and values as callers may give them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.base import settings as st


@dataclass(frozen=True)
class Example:
    """Every kind of type that a settings class has."""

    source: str = st.argument("one text")
    out: Path | None = st.option(None, "a path, or none")
    ways: tuple[float, ...] = st.option((1.0,), "many numbers")
    names: tuple[str, ...] | None = st.option(None, "many texts, or none")
    fast: bool = st.option(False, "a switch")
    share: float = st.option(0.5, "a number")


def test_types_are_those_of_the_annotations() -> None:
    assert st.declared(Example) == {
        "source": (str, False),
        "out": (Path, False),
        "ways": (float, True),
        "names": (str, True),
        "fast": (bool, False),
        "share": (float, False),
    }


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"source": Path("a/b")}, {"source": "a/b"}),
        ({"out": "x.h5"}, {"out": Path("x.h5")}),
        ({"out": None}, {"out": None}),
        ({"ways": 2}, {"ways": (2,)}),
        ({"ways": [2.0, 3.0]}, {"ways": (2.0, 3.0)}),
        ({"names": "one"}, {"names": ("one",)}),
        ({"names": Path("one")}, {"names": ("one",)}),
        ({"names": None}, {"names": None}),
        ({"fast": True, "share": 0}, {"fast": True, "share": 0}),
    ],
)
def test_values_are_taken_as_people_give_them(given: dict[str, Any], kept: dict[str, Any]) -> None:
    made = st.build(Example, {"source": "s", **given})
    assert {name: getattr(made, name) for name in kept} == kept
