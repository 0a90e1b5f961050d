"""A door: one function for Python and the command line, with the real options in its signature and its help."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.base import settings as st
from pipeline.base.doors import command
from pipeline.base.errors import ConfigError
from pipeline.base.watch import Watch
from pipeline.base.workspace import Workspace


@dataclass(frozen=True)
class MixSettings:
    """Settings of a toy verb."""

    first: str = st.argument("what to begin with")
    others: tuple[str, ...] = st.argument("what to add", default=("z",))
    times: int = st.option(2, "how often", minimum=1)
    how: str = st.option("fast", "the way", choices=("fast", "slow"))

    def __post_init__(self) -> None:
        st.check(self)


@command(MixSettings)
def mix(settings: MixSettings, desk: Workspace) -> tuple[MixSettings, Workspace]:
    """Mix things.

    Raises:
        ConfigError: sometimes.
    """
    return settings, desk


def test_arguments_come_by_place_and_options_by_name(tmp_path: Path) -> None:
    settings, desk = mix("a", ("b", "c"), times=3, workspace=tmp_path)
    assert settings == MixSettings("a", ("b", "c"), 3, "fast")
    assert desk.root == tmp_path
    assert mix(Path("a"))[0].first == "a"
    assert mix(first="a")[0] == MixSettings("a", ("z",), 2, "fast")


def test_the_signature_has_the_settings_defaults_then_workspace_and_watch() -> None:
    parameters = inspect.signature(mix).parameters
    assert list(parameters) == ["first", "others", "times", "how", "workspace", "watch"]
    assert parameters["times"].default == 2
    assert parameters["first"].default is inspect.Parameter.empty
    assert parameters["how"].kind is inspect.Parameter.KEYWORD_ONLY


def test_its_help_is_its_own_words_and_every_option() -> None:
    told = inspect.getdoc(mix)
    assert told is not None
    assert told.startswith("Mix things.\n")
    assert "    times: how often." in told
    assert "    how: the way. One of fast, slow." in told
    assert mix.__name__ == "mix"


@pytest.mark.parametrize(
    ("arguments", "options", "told"),
    [
        (("a",), {"tmes": 3}, "unknown setting 'tmes'.*did you mean times?"),
        ((), {}, "missing setting 'first': what to begin with"),
        (("a",), {"times": 0}, "times is 0: it must be at least 1"),
        (("a",), {"how": "fst"}, "how 'fst' is not known: choose from fast, slow; did you mean fast?"),
    ],
)
def test_a_wrong_option_is_one_line_with_the_cure(
    arguments: tuple[str, ...], options: dict[str, object], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        mix(*arguments, **options)


def test_too_many_places_or_one_twice_are_python_errors() -> None:
    with pytest.raises(TypeError, match="takes first, others by place"):
        mix("a", ("b",), 3)
    with pytest.raises(TypeError, match="got 'first' twice"):
        mix("a", first="b")


def test_a_door_with_its_settings_made_is_its_work() -> None:
    desk = Workspace(Path("there"), Watch())
    assert mix.work(MixSettings("a"), desk) == (MixSettings("a"), desk)
    assert mix.settings is MixSettings
