"""Settings: what of them is a job's identity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
