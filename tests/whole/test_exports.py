"""What `import pipeline` gives: every verb, and never a module in a verb's place."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from types import FunctionType

import pytest

import pipeline
from pipeline.cli.commands import DOORS

STAGES = {"extract", "train", "search", "baseline", "evaluate", "compare", "finetune"}
USE_AND_UPKEEP = {"predict", "export", "rows", "trace", "catalog", "inspect", "verify", "audit", "relabel", "report"}
VERBS = sorted(STAGES | USE_AND_UPKEEP | {"open_cache"})
COMMAND_LINE_ONLY = {"bench", "demo"}


def test_every_verb_is_public_and_nothing_else() -> None:
    assert sorted(pipeline.__all__) == VERBS
    assert set(VERBS) - {"open_cache"} == {door.__name__ for door in DOORS} - COMMAND_LINE_ONLY


@pytest.mark.parametrize("name", VERBS)
def test_each_verb_is_a_function_that_says_what_it_does(name: str) -> None:
    verb = getattr(pipeline, name)
    assert isinstance(verb, FunctionType)
    assert verb.__doc__
    assert name in dir(pipeline)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'learn'"):
        _ = pipeline.learn


def test_no_module_at_the_top_has_a_verbs_name() -> None:
    assert not {module.name for module in pkgutil.iter_modules(pipeline.__path__)} & set(VERBS)


def test_a_verb_stays_a_function_after_its_module_is_imported() -> None:
    importlib.import_module("pipeline.stages.learn.search")
    from pipeline import search

    assert search in DOORS


def test_importing_the_package_alone_imports_no_numpy_and_no_torch() -> None:
    code = "import sys, pipeline; print({'numpy', 'torch', 'h5py'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_dir_shows_what_is_public_and_nothing_else() -> None:
    assert dir(pipeline) == sorted(pipeline.__all__)
