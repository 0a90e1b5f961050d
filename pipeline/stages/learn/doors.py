"""The public functions of stage two. Imports no more than their settings: the work is imported when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.base.doors import command
from pipeline.base.interrupt import NO_HALF_RUN
from pipeline.base.workspace import Workspace
from pipeline.stages.learn.settings import BaselineSettings, SearchSettings, TrainSettings

if TYPE_CHECKING:
    from pipeline.stages.learn.baseline import BaselineReport
    from pipeline.stages.learn.few_shot import FewShotResult
    from pipeline.stages.learn.kept import TrainResult


@command(TrainSettings, NO_HALF_RUN)
def train(settings: TrainSettings, desk: Workspace) -> TrainResult:
    """Train one head on a cache (stage two).

    Test rows are not read. Of a minibatch head the best epoch on val is kept.

       Raises:
           ConfigError, CacheError, HeadError
    """
    from pipeline.stages.learn.train import train as work

    return work(settings, desk)


@command(SearchSettings, NO_HALF_RUN)
def search(settings: SearchSettings, desk: Workspace) -> TrainResult | FewShotResult:
    """Try many heads, choose on val, refit, test once.

    Or choose by cross-validation (``cv``); the refit is on train and val. With ``shots`` mean and deviation over draws
    of so many images of each class instead; with ``"all"`` among them a learning curve, from val alone.

    Raises:
        ConfigError, CacheError, HeadError: among them a cache without val rows, on which nothing can be chosen.
    """
    from pipeline.stages.learn.search import search as work

    return work(settings, desk)


@command(BaselineSettings, NO_HALF_RUN)
def baseline(settings: BaselineSettings, desk: Workspace) -> BaselineReport:
    """Fit simple methods on the same rows.

    Fitted on train, scored on val; with ``test`` on test, too, which counts as one run scored there.

    Raises:
        HeadError, CacheError: a cache without labelled train rows, or without rows to score on.
        DataError: floors are asked for, and the images are not where the cache found them.
    """
    from pipeline.stages.learn.baseline import baseline as work

    return work(settings, desk)
