"""The public functions of stage one. Imports settings and results only: the work is imported when asked for."""

from __future__ import annotations

from pipeline.base.doors import command
from pipeline.base.interrupt import GOES_ON
from pipeline.base.workspace import Workspace
from pipeline.stages.extract.results import ExtractResult
from pipeline.stages.extract.settings import ExtractSettings


@command(ExtractSettings, f"finished blocks are kept: {GOES_ON}")
def extract(settings: ExtractSettings, desk: Workspace) -> ExtractResult:
    """Run images through the frozen trunk once, into a feature cache (stage one).

    Does only what is not done yet, and returns where the cache lies.

    Raises:
        ConfigError, DataError, WeightsError, CacheError: before the first forward pass wherever it can be known.
        Interrupted: after a signal; everything finished is kept and the same call resumes.
    """
    from pipeline.stages.extract.job import extract as work

    return work(settings, desk)
