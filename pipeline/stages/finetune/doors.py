"""The public functions of stage three. Imports no more than their settings: the work is imported when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.base.doors import command
from pipeline.base.interrupt import GOES_ON
from pipeline.base.workspace import Workspace
from pipeline.stages.finetune.settings import FinetuneSettings

if TYPE_CHECKING:
    from pipeline.stages.finetune.job import FinetuneResult


@command(FinetuneSettings, f"finished maps, epochs and checkpoints are kept: {GOES_ON}")
def finetune(settings: FinetuneSettings, desk: Workspace) -> FinetuneResult:
    """Reattach a trained head and train end to end (stage three).

    The better of before and after, on val, is kept. Interrupted, the same call goes on from where it was.

       Raises:
           HeadError, CacheError, DataError, WeightsError, ConfigError: before training wherever it can be known.
           Interrupted: after a signal; the state is kept.
    """
    from pipeline.stages.finetune.job import finetune as work

    return work(settings, desk)
