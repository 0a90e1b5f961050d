"""What a schema says is held to, and an error names the field, what it is and what is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest

from pipeline.base.errors import ConfigError
from pipeline.base.schema import Figure, Malformed, PathText, Rule, Size, made


@dataclass(frozen=True)
class Inner:
    size: Size
    name: str = "none"

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ConfigError("bad is no name")


class Outer(TypedDict):
    inner: Inner
    kind: Literal["a", "b"]
    ratio: float | None
    pairs: tuple[tuple[str, int], ...]
    loss: Figure
    by_name: dict[str, list[bool]]
    counts: NotRequired[list[int]]
    place: Annotated[Path, Rule("an absolute path", Path.is_absolute)]
    more: NotRequired[PathText]
    free: NotRequired[Any]


GOOD: dict[str, Any] = {
    "inner": {"size": 3, "later": 1},
    "kind": "a",
    "ratio": 1,
    "pairs": [["x", 1]],
    "loss": float("nan"),
    "by_name": {"y": [True]},
    "place": "/a",
    "unknown": {"let": "be"},
}


def test_what_the_schema_says_is_made_and_what_it_does_not_name_is_let_be() -> None:
    found = made(GOOD, Outer)
    assert found["inner"] == Inner(3)
    assert (found["ratio"], type(found["ratio"])) == (1.0, float)  # as it is written again, to the last byte
    assert found["pairs"] == (("x", 1),)
    assert found["place"] == Path("/a")
    assert found["unknown"] == {"let": "be"}  # type: ignore[typeddict-item]
    assert made({**GOOD, "ratio": None}, Outer)["ratio"] is None


class Either(TypedDict):
    counts: list[list[int]] | Inner | None


def test_what_may_be_a_list_or_something_else_is_told_by_whether_it_is_a_list() -> None:
    assert made({"counts": [[1], []]}, Either)["counts"] == [[1], []]
    assert made({"counts": {"size": 2}}, Either)["counts"] == Inner(2)
    assert made({"counts": None}, Either)["counts"] is None
    with pytest.raises(Malformed, match=r"counts\[0\]\[0\] is 'x': a whole number is needed"):
        made({"counts": [["x"]]}, Either)
    with pytest.raises(Malformed, match="it has no counts.size"):
        made({"counts": {}}, Either)
    with pytest.raises(Malformed, match="counts is 3: an object is needed"):
        made({"counts": 3}, Either)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"inner": {"size": 0}}, "inner.size is 0: a whole number from 1 is needed"),
        ({"inner": {"size": 1.0}}, "inner.size is 1.0: a whole number is needed"),
        ({"inner": {"size": True}}, "inner.size is True: a whole number is needed"),
        ({"inner": {"size": 2**63}}, "inner.size is 9223372036854775808: a whole number is needed"),
        ({"inner": {}}, "it has no inner.size"),
        ({"inner": {"size": 1, "name": "bad"}}, "inner cannot be: bad is no name"),
        ({"inner": [1]}, r"inner is \[1\]: an object is needed"),
        ({"kind": "c"}, "kind is 'c': 'a' or 'b' is needed"),
        ({"ratio": float("inf")}, "ratio is inf: a finite number is needed"),
        ({"ratio": 10**400}, "ratio is 1000.*: a finite number is needed"),
        ({"pairs": [["x", 1], ["y"]]}, r"pairs\[1\] is \['y'\]: a list of 2 is needed"),
        ({"pairs": {}}, "pairs is {}: a list is needed"),
        ({"loss": "nan"}, "loss is 'nan': a finite number is needed"),
        ({"by_name": {"y": [1]}}, r"by_name.y\[0\] is 1: true or false is needed"),
        ({"counts": [1, 2**63]}, r"counts\[1\] is 9223372036854775808: a whole number is needed"),
        ({"counts": [1, True]}, r"counts\[1\] is True: a whole number is needed"),
        ({"place": "a"}, "place is 'a': an absolute path is needed"),
        ({"place": "/a\0"}, "place is .*: a path is needed"),
        ({"more": "\ud800"}, "more is .*: a path is needed"),
        ({"free": {"x": [1, float("nan")]}}, "free.x.1 is nan: a finite number is needed"),
    ],
)
def test_what_is_otherwise_is_named_with_what_is_needed(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(Malformed, match=f"^{words}$") as caught:
        made({**GOOD, **changed}, Outer)
    assert "\n" not in str(caught.value)


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(Malformed) as caught:
        made({"size": ["x" * 1000] * 1000}, Inner)
    assert len(str(caught.value)) < 300
