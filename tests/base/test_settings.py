"""Settings read from their fields: types, values as callers may give them, and what of them is a job's identity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from pipeline.base import settings as st
from pipeline.base.errors import ConfigError


@dataclass(frozen=True)
class Example:
    """Every kind of type that a settings class has."""

    source: str = st.argument("one text")
    out: Path | None = st.option(None, "a path, or none")
    ways: tuple[float, ...] = st.option((1.0,), "many numbers")
    names: tuple[str, ...] | None = st.option(None, "many texts, or none")
    fast: bool = st.option(False, "a switch")
    share: float = st.option(0.5, "a number")
    few: tuple[int | Literal["all"], ...] | None = st.option(None, "numbers or a word", minimum=1)

    def __post_init__(self) -> None:
        st.check(self)


def test_types_are_those_of_the_annotations() -> None:
    assert st.declared(Example) == {
        "source": (str, False, ()),
        "out": (Path, False, ()),
        "ways": (float, True, ()),
        "names": (str, True, ()),
        "fast": (bool, False, ()),
        "share": (float, False, ()),
        "few": (int, True, ("all",)),
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
        ({"few": "all"}, {"few": ("all",)}),
        ({"few": (1, "all")}, {"few": (1, "all")}),
    ],
)
def test_values_are_taken_as_people_give_them(given: dict[str, Any], kept: dict[str, Any]) -> None:
    made = st.build(Example, {"source": "s", **given})
    assert {name: getattr(made, name) for name in kept} == kept


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"few": "most"}, "few is 'most': it must be a whole number or 'all'$"),
        ({"few": 2.5}, "few is 2.5: it must be a whole number or 'all'$"),
        ({"few": (1, 0, "all")}, "few is 0: it must be at least 1 or 'all'$"),
    ],
)
def test_what_is_neither_a_number_nor_a_word_that_stands_for_one_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        st.build(Example, {"source": "s", **given})


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
