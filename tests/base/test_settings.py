"""Settings read from their fields: what is a job's identity, types, and values as callers may give them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.base import settings as st


@dataclass(frozen=True)
class Baking:
    """A stage's settings."""

    dough: str = st.argument("what is baked")
    oven: str = st.argument("where", default="mine", identity=False)
    minutes: int = st.option(20, "how long")
    tins: tuple[Path, ...] = st.option((), "forms")
    loud: bool = st.option(False, "say so", identity=False)


def test_what_decides_no_result_is_in_the_record_and_not_in_the_identity() -> None:
    settings = Baking("rye", oven="theirs", tins=(Path("a"),), loud=True)
    assert st.record(settings) == {"dough": "rye", "oven": "theirs", "minutes": 20, "tins": ["a"], "loud": True}
    assert st.identity(settings) == {"dough": "rye", "minutes": 20, "tins": ["a"]}


def test_an_option_counts_unless_its_field_says_otherwise() -> None:
    assert st.identity(Baking("rye", minutes=21)) != st.identity(Baking("rye"))
    assert st.identity(Baking("rye", oven="theirs", loud=True)) == st.identity(Baking("rye"))


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
