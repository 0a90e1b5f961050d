"""The public functions of scoring. Imports no more than their settings: the work is imported when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.base.doors import command
from pipeline.base.workspace import Workspace
from pipeline.stages.score.settings import CompareSettings, EvaluateSettings

if TYPE_CHECKING:
    from pipeline.stages.score.compare import CompareResult
    from pipeline.stages.score.figures import EvaluateResult

ONE_LOOK = "figures on test are kept whole or not at all: the same command goes on, and counts as the same look"


@command(EvaluateSettings, ONE_LOOK)
def evaluate(settings: EvaluateSettings, desk: Workspace) -> EvaluateResult:
    """Score a run on the test split, once.

    Asked again, the recorded figures are given. How many other runs had been scored on these test rows stands with them
    (``scored_before``; counted in the workspace's ``tested.jsonl``). Or score it on another split, on another cache
    (``data``) or on new labelled images (``images``). ``errors`` and ``confusion`` say what it takes for what, by
    default of val: that spends no look at the test split. ``test["confusion"]`` is the matrix row by row, of more than
    100 classes its cells that are not 0: their ``true`` and ``predicted`` classes and the ``count`` of rows.

    Raises:
        HeadError, CacheError: no rows, a look that cannot be put on record, a cache that is not the one the run learned
            from or, with ``data``, one of another key or with classes that the head does not know.
        DataError: ``images`` without labels, or of which none can be used.
        ConfigError: a file that cannot be written.
    """
    from pipeline.stages.score.evaluate import evaluate as work

    return work(settings, desk)


@command(CompareSettings, ONE_LOOK)
def compare(settings: CompareSettings, desk: Workspace) -> CompareResult:
    """Compare two runs on the same test rows: better, or chance?

    Evaluates where that is still to be done.

    Raises:
        HeadError, CacheError: a run without test figures to be had, or two that were tested on different rows.
    """
    from pipeline.stages.score.compare import compare as work

    return work(settings, desk)
